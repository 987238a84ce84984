"""The tables of `toto prompt score`, as Markdown."""

from __future__ import annotations

from evaluation.prompt.measures import MEASURES, PAIR_MEASURES, PERCENT, TITLES
from evaluation.prompt.results import PAIR_WAYS, WAYS, PairScore, PairsResult, PromptResult, WayScore


def table(result: PromptResult) -> str:
    """A table per task: every way with its measures, and whether the tuned model is apart from it."""
    return "\n\n".join(_task(name, result) for name in result.tasks)


def _task(name: str, result: PromptResult) -> str:
    scores = result.tasks[name].scores
    keys = [key for key in MEASURES[name] if key in scores]
    rows = [f"| {name}, {result.items} episodes | " + " | ".join(TITLES[key] for key in keys) + " |"]
    rows.append("|---|" + "---|" * len(keys))
    for way, title in WAYS.items():
        found = [scores[key].get(way) for key in keys]
        if any(found):
            rows.append(f"| {title} | " + " | ".join(map(_cell, found, keys)) + " |")
    return "\n".join(rows)


def _cell(score: WayScore | None, key: str) -> str:
    """Mean and interval; a star if the tuned model is better, a minus if it is worse, with its interval off zero."""
    if score is None or score.mean is None:
        return ""
    unit, digits = (100, 1) if key in PERCENT else (1, 3)
    text = f"{unit * score.mean:.{digits}f}"
    if score.ci95 is not None:
        text += f" ({unit * score.ci95[0]:.{digits}f} to {unit * score.ci95[1]:.{digits}f})"
    return text + mark(score, key)


def mark(score: WayScore, key: str) -> str:
    """ " *" if the tuned model is better than this way, " -" if it is worse, by the paired interval; else empty."""
    more = next(each[key] for each in MEASURES.values() if key in each)
    if score.tuned_minus is None or score.tuned_minus.ci95 is None:
        return ""
    low, high = score.tuned_minus.ci95
    if low <= 0 <= high:
        return ""
    return " *" if (low > 0) == more else " -"


def pairs_table(result: PairsResult) -> str:
    """A row per pair: what is known and clipped, then every way's measures, separated by slashes."""
    keys = [*PAIR_MEASURES[result.task], "nats"]
    ways = [way for way in PAIR_WAYS if any(way in each for each in result.pairs[0].scores.values())]
    heads = [f"{result.task}: {' / '.join(TITLES[key] for key in keys)}", "known, %", "clipped, %"]
    rows = ["| " + " | ".join([*heads, *(PAIR_WAYS[way] for way in ways)]) + " |"]
    rows.append("|" + "---|" * (len(heads) + len(ways)))
    for pair in result.pairs:
        cells = [pair.pair, f"{100 * pair.known:.1f}", f"{100 * pair.clipped:.1f}"]
        rows.append("| " + " | ".join([*cells, *(_pair_cell(pair, way, keys) for way in ways)]) + " |")
    return "\n".join(rows)


def _pair_cell(pair: PairScore, way: str, keys: list[str]) -> str:
    """The measures of a way; a way that has no likelihood shows none, and "-" is one that cannot be judged."""
    found = [(key, pair.scores[key][way]) for key in keys if way in pair.scores[key]]
    return " / ".join("-" if value is None else _number(value, key) for key, value in found)


def _number(value: float, key: str) -> str:
    return f"{100 * value:.1f}" if key in PERCENT else f"{value:.3f}"
