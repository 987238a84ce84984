"""The comparisons of a report: each with its verdict, and sentences that summarise them."""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.report.reading import AGAINST, NATS, Probe, Run, percent
from evaluation.report.run_figures import PREDICTORS
from evaluation.results import Versus

VALIDATION_LOSS, NO_DIFFERENCE = "validation loss", "no significant difference"
# verdict -> what a sentence says of all that is compared with it
RELATIONS = {
    "above": "above {}",
    NO_DIFFERENCE: "no significant difference from {}",
    "below": "below {}",
    "not below": "not below {}",
}


@dataclass(frozen=True)
class Comparison:
    """The claim that `subject` is better than `against` at `task`. Numbers are texts with their unit and interval.

    interval: 95 %, of the difference; paired where the result contains that. Empty for a loss.
    """

    subject: str
    task: str
    against: str
    ours: str
    theirs: str
    difference: str
    interval: str
    verdict: str
    holds: bool


def compare_run(run: Run) -> list[Comparison]:
    """The last validation loss against each simple predictor on the same tokens; none for losses of pixels."""
    if run.val_loss is None or run.predictors is None or run.unit != NATS:
        return []
    found = []
    for key, (label, _, _) in PREDICTORS.items():
        gap = run.val_loss - run.predictors[key]
        verdict = "below" if gap < 0 else "not below"
        numbers = (f"{run.val_loss:.3f} nats", f"{run.predictors[key]:.3f} nats", f"{gap:+.3f} nats", "")
        found.append(Comparison(run.name, VALIDATION_LOSS, label, *numbers, verdict, gap < 0))
    return found


def compare_probe(probe: Probe) -> list[Comparison]:
    """Each label's chosen row against each baseline; a comparison holds if the interval of the difference is above 0.

    The interval is paired where the result contains that, else computed from the two single intervals.
    """
    from evaluation.metrics import unpaired_difference, verdict

    found = []
    for label, task in probe.tasks.items():
        best = task.best
        for who, row in task.baselines.items():
            lead = (best.versus or {}).get(who)
            is_paired = lead is not None
            lead = lead or Versus.from_json(unpaired_difference(best.accuracy, best.ci95, row.accuracy, row.ci95))
            low, high = lead.ci95
            interval = f"[{100 * low:+.1f}, {100 * high:+.1f}]{'' if is_paired else ', unpaired'}"
            says = verdict(lead.ci95)  # files of earlier versions use other words
            ours, theirs = percent(best.accuracy, best.ci95), percent(row.accuracy, row.ci95)
            numbers = (ours, theirs, f"{100 * lead.difference:+.1f} points", interval, says)
            found.append(Comparison(probe.name, label, AGAINST.get(who, who), *numbers, says == "above"))
    return found


def counts(comparisons: list[Comparison]) -> str:
    """How many comparisons hold, show no significant difference, and are lost, as a sentence."""
    held, level = sum(c.holds for c in comparisons), sum(c.verdict == NO_DIFFERENCE for c in comparisons)
    lost = len(comparisons) - held - level
    said = [f"{held} of {len(comparisons)} comparisons hold"]
    said += [f"{level} show{'s' * (level == 1)} no significant difference"] if level else []
    said += [f"{lost} {'is' if lost == 1 else 'are'} lost"] if lost else []
    return f"{words(said)}."


def words(items: list[str], last: str = "and") -> str:
    """["a", "b", "c"] -> "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}" if items else ""


def summary(comparisons: list[Comparison]) -> dict[str, list[tuple[str, str]]]:
    """{model or run: [("holds" | "partly" | "open" | "fails", sentence) per task]}: what it is above and below.

    "open": no comparison shows a significant difference.
    """
    found = {}
    for subject, task in dict.fromkeys((c.subject, c.task) for c in comparisons):
        mine = [c for c in comparisons if (c.subject, c.task) == (subject, task)]
        beats = [c.against for c in mine if c.holds]
        said = [
            template.format(words(against, "or" if verdict == "not below" else "and"))
            for verdict, template in RELATIONS.items()
            if (against := [c.against for c in mine if c.verdict == verdict])
        ]
        state = "partly" if len(beats) < len(mine) else "holds"
        if not beats:
            state = "open" if all(c.verdict == NO_DIFFERENCE for c in mine) else "fails"
        found.setdefault(subject, []).append((state, f"{task} {mine[0].ours}: {'; '.join(said)}."))
    return found
