"""The measures of continuations as plain text."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.results import (
    CheckpointsResult,
    ContinuationResult,
    ContinuationScores,
    Curve,
    FrameContinuationResult,
    Share,
    Versus,
)

SHOWN = (1, 2, 4, 8)  # horizons
NAMES = {
    "greedy": "greedy",
    "sampled": "sampled, mean",
    "best": "sampled, best of n",
    "copy": "copy last frame",
    "constant_velocity": "constant velocity",
    "previous_frame": "previous-frame code",
    "untrained": "untrained",
    "ceiling": "ceiling",
}
CURVES = {
    "iou": "mask IoU, moving",
    "identity": "identity kept, %",
    "place": "place right, %",
    "codes": "codes right, %",
    "object_codes": "codes of objects, %",
    "changed_codes": "changed codes, %",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
}
NATS = {
    "teacher_forced": "after true frames",
    "greedy": "after greedy frames",
    "sampled": "after sampled frames",
}


def table(result: ContinuationResult) -> str:
    """Every measure at SHOWN horizons, and the events, a row per way of continuing."""
    horizons = [h for h in SHOWN if h <= result.num_frames]
    samples = result.sampling["num_samples"]
    lines = [
        f"\n{result.clips:,} {result.split} clips of {result.dataset}: {result.num_prompt_frames} prompt frames, "
        f"{result.num_frames} drawn"
    ]
    if isinstance(result, FrameContinuationResult):
        lines += curve_lines(result.scores, ("codes", "changed_codes", "psnr", "ssim"), horizons, samples)
        return "\n".join([*lines, *nats_lines(result.nats, horizons)])
    for names in (("iou", "identity", "place", "psnr"), ("codes", "object_codes", "changed_codes", "ssim")):
        lines += curve_lines(result.scores, names, horizons, samples)
    lines += [
        "",
        f"{'share right, %':<21}{'bounce':>20}{'return':>20}{'time':>7}{'place':>7}{'ident.':>7}{'period':>20}",
    ]
    for who, scores in result.scores.items():
        parts = "".join(_percent(scores.returned.parts[part]) for part in ("time", "place", "identity"))
        row = f"{_event(scores.bounce)}{_event(scores.returned)}{parts}{_event(scores.period)}"
        lines.append(f"{name_of(who, samples):<21}{row}")
    one = next(iter(result.scores.values()))
    lines.append(f"cases: {one.bounce.cases} bounces, {one.returned.cases} returns, {one.period.cases} periods")
    lines += _rhythm_lines(result, samples)
    if (found := result.permanence) is not None:
        with_object, deleted = (_event(each).strip() for each in (found.with_object, found.deleted))
        lines += [
            "",
            f"objects drawn at the frame and place of their return, %: {with_object}; "
            f"if they were deleted from the prompt: {deleted}",
            f"difference, points: {_difference(found.versus, 100)}",
        ]
    lines += nats_lines(result.nats, horizons)
    return "\n".join(lines)


def comparison_table(results: dict[str, ContinuationResult], way: str) -> str:
    """One way of continuing by several models of the same clips: measures and losses at SHOWN horizons, and events."""
    first = next(iter(results.values()))
    horizons = [h for h in SHOWN if h <= first.num_frames]
    same = len({result.tokenizer for result in results.values()}) == 1
    rows = {label: result.scores[way] for label, result in results.items()}
    rows["copy last frame"] = first.scores["copy"]
    measures = [n for n in CURVES if all(getattr(each, n, None) is not None for each in rows.values())]
    measures = [name for name in measures if same or "codes" not in name]
    width = max(21, *(len(label) + 2 for label in rows))
    lines = [
        f"\n{first.clips:,} {first.split} clips of {first.dataset}: {first.num_prompt_frames} prompt frames, "
        f"{first.num_frames} drawn, {name_of(way, first.sampling['num_samples'])}"
    ]
    for start in range(0, len(measures), 4):
        lines += curve_lines(rows, measures[start : start + 4], horizons, width=width)
    if same and all(result.nats is not None for result in results.values()):
        kind = "greedy" if way == "greedy" else "sampled"
        nats = {label: result.nats[kind] for label, result in results.items()}
        lines += nats_lines(nats, horizons, f"nats per token of the true frame {NATS[kind]}", width)
    if hasattr(rows["copy last frame"], "bounce"):
        lines += ["", f"{'share right, %':<{width}}{'bounce':>20}{'return':>20}{'period':>20}"]
        for label, scores in rows.items():
            events = (_event(each) for each in (scores.bounce, scores.returned, scores.period))
            lines.append(f"{label:<{width}}{''.join(events)}")
    return "\n".join(lines)


def curve_lines(
    scores: dict, names: Sequence[str], horizons: list[int], samples: int = 1, width: int = 21
) -> list[str]:
    """Measures side by side, a row for each of `scores`: name -> record with a `Curve` for each of `names`."""
    lines = ["", " " * width + "".join(f"{CURVES[name]:<{6 * len(horizons) + 2}}" for name in names)]
    lines.append(f"{'horizon':<{width}}" + ("".join(f"{h:>6}" for h in horizons) + "  ") * len(names))
    for who, own in scores.items():
        means = {
            name: [None] * max(horizons) if (curve := getattr(own, name)) is None else curve.mean for name in names
        }
        cells = ("".join(_cell(means[name][h - 1], name) for h in horizons) + "  " for name in names)
        lines.append(f"{name_of(who, samples):<{width}}" + "".join(cells))
    return lines


def nats_lines(
    nats: dict[str, Curve] | None,
    horizons: list[int],
    title: str = "nats per token of the true frame",
    width: int = 21,
) -> list[str]:
    """The losses of the true frames' codes, a row for each curve."""
    if nats is None:
        return []
    lines = ["", title, f"{'horizon':<{width}}" + "".join(f"{h:>8}" for h in horizons)]
    for name, curve in nats.items():
        lines.append(f"{NATS.get(name, name):<{width}}" + "".join(f"{curve.mean[h - 1]:>8.3f}" for h in horizons))
    return lines


def _rhythm_lines(result: ContinuationResult, samples: int) -> list[str]:
    """Autocorrelations at the true period and at other lags, a row per way of continuing."""
    found = {who: each.rhythm for who, each in result.scores.items() if each.rhythm is not None and each.rhythm.cases}
    if not found:
        return []
    cases = next(iter(found.values())).cases
    lines = ["", f"{'autocorrelation':<21}{'true period':>12}{'other lags':>12}{'difference':>24}   {cases} cases"]
    for who, own in found.items():
        lines.append(
            f"{name_of(who, samples):<21}{own.at_period:>12.3f}{own.other_lags:>12.3f}{_difference(own.versus):>24}"
        )
    return lines


def _difference(versus: Versus | None, unit: int = 1) -> str:
    if versus is None:
        return "-"
    low, high = versus.ci95
    return "{:.{n}f} [{:.{n}f}, {:.{n}f}]".format(
        *(unit * each for each in (versus.difference, low, high)), n=1 if unit == 100 else 3
    )


def checkpoint_table(result: CheckpointsResult) -> str:
    """The measures of the curve, a row per checkpoint and level."""
    heads = "".join(f"{label:>20}" for label in curve_labels(result.num_frames).values())
    rows = [(point.checkpoint, f"{point.tokens:,}", point.scores) for point in result.points]
    rows += [(NAMES[name], "", scores) for name, scores in result.levels.items()]
    width = max(20, *(len(name) + 1 for name, _, _ in rows))
    lines = [f"\n{'':<{width}}{'tokens':>12}{heads}"]
    for name, tokens, scores in rows:
        cells = "".join(f"{_percent(value, 20)}" for value in curve_values(scores).values())
        lines.append(f"{name:<{width}}{tokens:>12}{cells}")
    return "\n".join(lines)


def curve_labels(num_frames: int) -> dict[str, str]:
    """The measures of a curve against training tokens, in percent, and what they are called."""
    return {
        "iou_first": "mask IoU, frame 1",
        "iou_last": f"mask IoU, frame {num_frames}",
        "identity_last": f"identity, frame {num_frames}",
        "bounce": "bounces right",
        "returned": "returns right",
        "period": "periods kept",
    }


def curve_values(scores: ContinuationScores) -> dict[str, float | None]:
    """The values of `curve_labels`, as fractions."""
    return {
        "iou_first": scores.iou.mean[0],
        "iou_last": scores.iou.mean[-1],
        "identity_last": scores.identity.mean[-1],
        "bounce": scores.bounce.mean,
        "returned": scores.returned.mean,
        "period": scores.period.mean,
    }


def name_of(who: str, num_samples: int) -> str:
    """What a way of continuing is called in tables and figures; other names, of models, stay."""
    return NAMES.get(who, who).replace("of n", f"of {num_samples}")


def _cell(value: float | None, measure: str) -> str:
    if value is None:
        return f"{'-':>6}"
    return f"{value:6.3f}" if measure in ("iou", "ssim") else f"{value if measure == 'psnr' else 100 * value:6.1f}"


def _percent(value: float | None, width: int = 7) -> str:
    return f"{'-':>{width}}" if value is None else f"{100 * value:{width}.1f}"


def _event(share: Share) -> str:
    if share.mean is None or share.ci95 is None:
        return _percent(share.mean, 20)
    low, high = share.ci95
    return f"{f'{100 * share.mean:.1f} [{100 * low:.1f}, {100 * high:.1f}]':>20}"
