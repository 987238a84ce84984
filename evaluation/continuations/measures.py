"""Measures of drawn frames: values of every clip and horizon and of every case, and their means with 95 % intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from evaluation.continuations import rhythm
from evaluation.continuations.reading import FOUND, Reading, read
from evaluation.continuations.truth import JUDGED, MASKED, RETURNED, Cases, Truth, bounces, periods, returns
from evaluation.metrics import verdict
from evaluation.results import ContinuationScores, Curve, Rhythm, Share, Versus
from tokenization.toyworld import motion

# Measures at each horizon. `mse` is of pixels in [0, 1] and is reported as PSNR.
CURVES = ("iou", "identity", "place", "codes", "object_codes", "changed_codes", "mse", "ssim")
EVENTS = ("bounce", "returned", "period")
KEPT = 0.75  # share of an object's judged frames whose phase must be right
QUIET = 1e-15  # mean squared error of equal frames, as in `evaluate_tokenizer.scores.psnr`: 150 dB
RESAMPLES = 1000


@dataclass(frozen=True)
class Drawn:
    """Frames that continue the clips: uint8 (C, G, R, R, 3), and their codes (C, G, h, w)."""

    frames: np.ndarray
    codes: np.ndarray


@dataclass(frozen=True)
class Values:
    """The values of one way of drawing.

    curves: for each of CURVES (C, G), nan where a clip has nothing to judge. events: for each of EVENTS its parts, by
    name, (E,) each over its cases, 1 or 0, or the mean of several drawings; "right" is the whole. For "rhythm" the
    parts are the autocorrelations of `rhythm.measure`.
    """

    curves: dict[str, np.ndarray]
    events: dict[str, dict[str, np.ndarray]]


class Examiner:
    """Measures drawn frames against the truth of the clips.

    Args:
        truth: of C clips. codes: of all their frames, (C, T, h, w), by the tokenizer that drawings use.
    """

    def __init__(self, truth: Truth, codes: np.ndarray):
        self.truth, prompt = truth, truth.prompt
        self.codes, self.drawn_codes = codes, codes[:, prompt:]
        grid = codes.shape[2:]
        masks = truth.drawn("masks")
        tokens = masks.reshape(*masks.shape[:2], grid[0], masks.shape[2] // grid[0], grid[1], -1)
        self.occupied = ((tokens > 0) & (tokens < motion.OCCLUDER)).any((3, 5))  # (C, G, h, w)
        self.cases = {"bounce": bounces(truth), "returned": returns(truth), "period": periods(truth)}
        self.cases["rhythm"] = rhythm.cases(truth)

    def values(self, drawn: Drawn) -> Values:
        """The values of one drawing of each clip."""
        return self.values_of(read(drawn.frames, self.truth), drawn)

    def values_of(self, reading: Reading, drawn: Drawn) -> Values:
        """As `values`, for frames that were read already."""
        truth = self.truth
        visibility, moving = truth.drawn("visibility"), truth.moving[:, None]
        judged = visibility >= JUDGED
        near = found_near(reading, truth)
        right = drawn.codes == self.drawn_codes
        curves = {
            "iou": self._by_clip(reading.iou, moving & (visibility >= MASKED)),
            "identity": self._by_clip(reading.identity, judged),
            "place": self._by_clip(near, judged),
            **codes_right(drawn.codes, self.codes, truth.prompt),
            "object_codes": _mean(right, self.occupied, (2, 3)),
            "mse": squared_error(drawn.frames, truth.drawn("video")),
            "ssim": similarity(drawn.frames, truth.drawn("video")),
        }
        events = {
            "bounce": _bounce(reading, truth, self.cases["bounce"], near),
            "returned": returned_parts(reading, self.cases["returned"], near),
            "period": _period(reading, self.cases["period"]),
            "rhythm": rhythm.measure(reading.picture, truth, self.cases["rhythm"]),
        }
        return Values(curves, events)

    def clips_of(self, event: str) -> np.ndarray:
        """The clip of every case, (E,)."""
        return self.truth.clip[self.cases[event].objects]

    def best(self, drawings: list[Values]) -> Values:
        """For each clip the values of its drawing with the best IoU, averaged over horizons; the first of equals."""
        iou = np.nan_to_num(np.stack([each.curves["iou"] for each in drawings]))  # (S, C, G)
        best = iou.mean(2).argmax(0)  # which values are nan depends on the truth alone

        def chosen(several: list[np.ndarray], which: np.ndarray) -> np.ndarray:
            return np.stack(several)[which, np.arange(len(which))]

        curves = {name: chosen([each.curves[name] for each in drawings], best) for name in drawings[0].curves}
        events = {
            name: {
                part: chosen([each.events[name][part] for each in drawings], best[self.clips_of(name)])
                for part in drawings[0].events[name]
            }
            for name in drawings[0].events
        }
        return Values(curves, events)

    def scores(self, values: Values, ceiling: Values | None = None) -> ContinuationScores:
        """Means over clips, or over cases, with 95 % bootstrap intervals over clips.

        ceiling: the values of the clips encoded and decoded, of which the IoU is then given as a share.
        """
        curves = {name: curve_of(values.curves[name]) for name in CURVES}
        share = None
        if ceiling is not None:
            pairs = zip(curves["iou"].mean, curve_of(ceiling.curves["iou"]).mean, strict=True)
            share = [own / most if own is not None and most else None for own, most in pairs]
        return ContinuationScores(
            iou=curves["iou"],
            iou_of_ceiling=share,
            identity=curves["identity"],
            place=curves["place"],
            codes=curves["codes"],
            object_codes=curves["object_codes"],
            changed_codes=curves["changed_codes"],
            psnr=decibels(curves["mse"]),
            **{name: share_of(values.events[name], self.clips_of(name)) for name in EVENTS},
            ssim=curves["ssim"],
            rhythm=_rhythm(values.events["rhythm"], self.clips_of("rhythm")),
        )

    def arrays(self, found: dict[str, Values]) -> dict[str, np.ndarray]:
        """The values of clips and cases: NAME.MEASURE and NAME.EVENT.PART; clips.EVENT are the clips of its cases."""
        arrays = {f"clips.{event}": self.clips_of(event) for event in self.cases}
        for name, values in found.items():
            arrays |= {f"{name}.{measure}": array for measure, array in values.curves.items()}
            for event, parts in values.events.items():
                arrays |= {f"{name}.{event}.{part}": array for part, array in parts.items()}
        return arrays

    def _by_clip(self, values: np.ndarray, judged: np.ndarray) -> np.ndarray:
        """Means over the judged objects of each clip: (O, G) each -> (C, G), nan without any."""
        shape = (len(self.truth.video), values.shape[1])
        sums, counts = np.zeros(shape), np.zeros(shape)
        np.add.at(sums, self.truth.clip, np.where(judged, values, 0.0))
        np.add.at(counts, self.truth.clip, judged)
        return _divide(sums, counts)


def mean(drawings: list[Values]) -> Values:
    """The mean of several drawings of the same clips."""
    return Values(
        {name: np.mean([each.curves[name] for each in drawings], axis=0) for name in drawings[0].curves},
        {
            name: {part: np.mean([each.events[name][part] for each in drawings], axis=0) for part in parts}
            for name, parts in drawings[0].events.items()
        },
    )


def codes_right(drawn: np.ndarray, codes: np.ndarray, prompt: int) -> dict[str, np.ndarray]:
    """`codes` and `changed_codes`, (C, G) each, of drawn codes (C, G, h, w) and those of all true frames."""
    true, last = codes[:, prompt:], codes[:, prompt - 1 : prompt]
    return {
        "codes": (drawn == true).mean((2, 3)),
        "changed_codes": _mean(drawn == true, true != last, (2, 3)),
    }


def found_near(reading: Reading, truth: Truth) -> np.ndarray:
    """Whether an object is found within one token of its true place, along x and along y: bool (O, G)."""
    away = np.abs(reading.place - truth.drawn("place")).max(2)
    return (reading.shown >= FOUND) & (away <= motion.TOKEN)


def _bounce(reading: Reading, truth: Truth, cases: Cases, near: np.ndarray) -> dict[str, np.ndarray]:
    """`contact`: within one token of the true place at the wall. `after`: exactly at it one frame later."""
    after = cases.objects, cases.frame + 1
    exact = (reading.place[after] == truth.drawn("place")[after]).all(1) & (reading.shown[after] >= FOUND)
    contact = near[cases.objects, cases.frame]
    return _floats(right=contact & exact, contact=contact, after=exact)


def returned_parts(reading: Reading, cases: Cases, near: np.ndarray) -> dict[str, np.ndarray]:
    """The parts of a return.

    `time`: at least RETURNED of its pixels are shown in the frame of return, and in none before it in which the truth
    hides it. `place`: within one token. `identity`: kept in that frame. `drawn`: as many pixels are shown in that
    frame, at a place within one token, whatever was shown before and whose picture it is.
    """
    back = cases.objects, cases.frame
    shown = reading.shown >= RETURNED
    early = (shown[cases.objects] & cases.frames).any(1)
    time, place, identity = shown[back] & ~early, near[back], reading.identity[back]
    return _floats(right=time & place & identity, time=time, place=place, identity=identity, drawn=shown[back] & place)


def _period(reading: Reading, cases: Cases) -> dict[str, np.ndarray]:
    """Whether the phase is the true one in at least KEPT of the object's judged frames."""
    share = _mean(reading.phase[cases.objects], cases.frames, 1)
    return _floats(right=share >= KEPT)


def _floats(**parts: np.ndarray) -> dict[str, np.ndarray]:
    return {name: values.astype(float) for name, values in parts.items()}


def squared_error(frames: np.ndarray, true: np.ndarray) -> np.ndarray:
    """Mean squared error of pixels in [0, 1], (C, G); true frames have 64 pixels a side, drawn ones a multiple."""
    times = frames.shape[2] // true.shape[2]
    found = np.empty(frames.shape[:2])
    for clip in range(len(frames)):
        whole = true[clip].repeat(times, 1).repeat(times, 2).astype(np.int32)
        found[clip] = ((frames[clip] - whole) ** 2).mean((1, 2, 3)) / 255**2
    return found


def similarity(frames: np.ndarray, true: np.ndarray) -> np.ndarray:
    """SSIM (`tokenization.evaluate_tokenizer.scores.ssim`), (C, G); sizes as in `squared_error`."""
    import torch

    from tokenization.evaluate_tokenizer.scores import ssim

    times = frames.shape[2] // true.shape[2]
    found = np.empty(frames.shape[:2])
    for clip in range(len(frames)):
        pair = frames[clip], true[clip].repeat(times, 1).repeat(times, 2)
        found[clip] = ssim(*(torch.from_numpy(np.ascontiguousarray(each.transpose(0, 3, 1, 2))) for each in pair))
    return found


def _mean(values: np.ndarray, counted: np.ndarray, axes) -> np.ndarray:
    return _divide((values & counted).sum(axes), counted.sum(axes))


def _divide(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.divide(sums, counts, out=np.full(np.shape(sums), np.nan), where=counts > 0)


def curve_of(values: np.ndarray) -> Curve:
    """The mean over clips at each horizon, (C, G), without those that have nothing to judge."""
    columns = [column[~np.isnan(column)] for column in values.T]
    return Curve(
        mean=[float(each.mean()) if len(each) else None for each in columns],
        ci95=[_interval(each, np.arange(len(each))) for each in columns],
        clips=[len(each) for each in columns],
    )


def share_of(parts: dict[str, np.ndarray], clips: np.ndarray) -> Share:
    right = parts["right"]
    return Share(
        mean=float(right.mean()) if len(right) else None,
        ci95=_interval(right, clips),
        cases=len(right),
        parts={
            name: float(values.mean()) if len(values) else None for name, values in parts.items() if name != "right"
        },
    )


def _rhythm(parts: dict[str, np.ndarray], clips: np.ndarray) -> Rhythm:
    at_period, other_lags = parts["at_period"], parts["other_lags"]
    ci95 = _interval(at_period - other_lags, clips)
    versus = None
    if ci95 is not None:
        versus = Versus(difference=float((at_period - other_lags).mean()), ci95=ci95, verdict=verdict(ci95))
    means = (float(each.mean()) if len(each) else None for each in (at_period, other_lags))
    return Rhythm(at_period=next(means), other_lags=next(means), cases=len(at_period), versus=versus)


def _interval(values: np.ndarray, clips: np.ndarray) -> list[float] | None:
    """95 % bootstrap interval of the mean, over clips; None for fewer than two."""
    from training.scores import bootstrap_interval

    distinct = len(np.unique(clips))
    if distinct < 2:
        return None
    return bootstrap_interval(values, groups=None if distinct == len(clips) else clips, samples=RESAMPLES)


def decibels(curve: Curve) -> Curve:
    """Mean squared errors -> PSNR of the mean error, which frames without any error do not dominate."""

    def level(error: float) -> float:
        return float(-10 * np.log10(max(error, QUIET)))

    def each(function: Callable, values: list) -> list:
        return [None if value is None else function(value) for value in values]

    bounds = each(lambda ends: [level(ends[1]), level(ends[0])], curve.ci95)
    return Curve(mean=each(level, curve.mean), ci95=bounds, clips=curve.clips)
