"""The first sentences of a report: what was learnt."""

from __future__ import annotations

from evaluation.metrics import verdict
from evaluation.report.comparisons import NO_DIFFERENCE, Comparison, counts
from evaluation.report.reading import AGAINST, Probe


def learnt(probes: list[Probe], comparisons: list[Comparison]) -> list[str]:
    """A sentence about the best read label of each model, and how many of all comparisons hold and do not."""
    found = [sentence for probe in probes if (sentence := best_label(probe)) is not None]
    if comparisons:
        found.append(counts(comparisons))
    return found


def best_label(probe: Probe) -> str | None:
    """The label whose lead over its strongest floor is largest, next to that floor; None without a paired lead."""
    leads = {
        label: min((lead.difference, who) for who, lead in task.best.versus.items() if who in task.baselines)
        for label, task in probe.tasks.items()
        if task.best.versus and set(task.best.versus) & set(task.baselines)
    }
    if not leads:
        return None
    label = max(leads, key=lambda name: leads[name][0])
    task, who = probe.tasks[label], leads[label][1]
    best, floor = task.best, task.baselines[who]
    numbers = f"{100 * best.accuracy:.1f} % right at layer {best.layer}"
    rival = AGAINST.get(who, who)
    says = verdict(best.versus[who].ci95)
    if len(probe.tasks) == 1:
        relation = "no significant difference from" if says == NO_DIFFERENCE else says
        return (
            f"Read from the frozen features of {probe.name}, {label} is {numbers}: {relation} its best measured floor, "
            f"{rival}, with {100 * floor.accuracy:.1f} %."
        )
    if says == "above":
        return (
            f"Of the labels read from the frozen features of {probe.name}, {label} leads most: {numbers}, where the "
            f"best measured floor, {rival}, gets {100 * floor.accuracy:.1f} %."
        )
    return (
        f"No label read from the frozen features of {probe.name} is above all its floors; {label} comes closest: "
        f"{numbers}, against {100 * floor.accuracy:.1f} % of {rival}."
    )
