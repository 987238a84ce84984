"""The result of `toto permanence cups` as plain text."""

from __future__ import annotations

from evaluation.permanence.cups_results import CupsResult

NAMES = {
    "model": "model",
    "last_frame": "last frame only",
    "shuffled": "history shuffled",
    "untrained": "untrained twin",
    "last_seen": "last visible cell",
    "any_cup": "one of the cups",
    "majority": "most common cell",
}


def table(result: CupsResult) -> str:
    """Predictors x strata: accuracy in percent; then the differences on the stratum of the claim, and the claim."""
    strata = result.predictors["model"].strata
    lines = [
        f"cell of the object in the last of {result.num_frames} frames of {result.dataset}, {result.head} head on the "
        f"tokens of {'the last frame' if result.tokens == 'last' else 'all frames'}; "
        + ", ".join(f"{count:,} {part}" for part, count in result.clips.items()),
        "",
        f"{'accuracy, %':<20}{'layer':>6}" + "".join(f"{name:>22}" for name in strata) + f"{'top 5':>8}{'L1':>7}",
        f"{'clips':<20}{'':>6}" + "".join(f"{each.clips:>22}" for each in strata.values()),
    ]
    for name, each in result.predictors.items():
        cells = [f"{100 * s.accuracy:.1f} [{100 * s.ci95[0]:.0f}, {100 * s.ci95[1]:.0f}]" for s in each.strata.values()]
        layer = "" if each.layer is None else each.layer
        top5 = "" if each.top5 is None else f"{100 * each.top5:.1f}"
        lines.append(
            f"{NAMES[name]:<20}{layer:>6}"
            + "".join(f"{cell:>22}" for cell in cells)
            + f"{top5:>8}{each.strata['all'].grid_l1:>7.2f}"
        )
    lines += ["", f"model minus control on '{result.claim.stratum}', points, paired 95 % interval:"]
    for name, each in result.predictors.items():
        if (versus := each.strata[result.claim.stratum].versus) is not None:
            low, high = versus.ci95
            lines.append(
                f"  {NAMES[name]:<20}{100 * versus.difference:+6.1f} [{100 * low:+.1f}, {100 * high:+.1f}]: "
                f"{versus.verdict}"
            )
    lines += ["", sentence(result)]
    return "\n".join(lines)


def sentence(result: CupsResult) -> str:
    """The claim, or its failure."""
    if result.claim.is_shown:
        return f"Shown: on '{result.claim.stratum}' the model is above every control."
    missing = ", ".join(NAMES[name] for name in result.claim.missing)
    return f"Not shown: on '{result.claim.stratum}' the model is not above {missing}."
