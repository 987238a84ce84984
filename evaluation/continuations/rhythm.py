"""Periodic motion: the autocorrelation of an object's pictures at its true period, against that at other lags."""

from __future__ import annotations

import numpy as np

from evaluation.continuations.truth import Cases, Truth
from tokenization.toyworld import sprites


def cases(truth: Truth) -> Cases:
    """Objects whose pictures change that have a pair of frames at their period, and one at another lag.

    `frames`, bool (E, T): the frames of the prompt and the drawn ones in which the whole object is seen.
    """
    seen = truth.visibility == 1
    lags = _lags(truth.period, seen.shape[1])
    objects = [
        k
        for k in np.flatnonzero(truth.period > 1)
        if len(_pairs(seen[k], truth.prompt, truth.period[k])[0])
        and any(len(_pairs(seen[k], truth.prompt, lag)[0]) for lag in lags[truth.period[k]])
    ]
    objects = np.array(objects, int)
    return Cases(objects, frames=seen[objects])


def measure(pictures: np.ndarray, truth: Truth, found: Cases) -> dict[str, np.ndarray]:
    """`at_period` and `other_lags`, (E,) each: autocorrelation at the true period, and its mean at the other lags.

    The pictures are those of the prompt, as they truly are, followed by the drawn ones; both have 1 for the body, 2 for
    the detail and 0 elsewhere. The mean picture is subtracted; the autocorrelation at a lag is the cosine between the
    pictures of all pairs of frames that far apart, together: 1 if all pairs are equal, 0 for pictures that never
    change. Of a pair the later frame is a drawn one, and the whole object is seen in both in truth. The other lags are
    those below twice the period. Paper silent; ours.

    Args:
        pictures: uint8 (O, G, 16, 16), `Reading.picture`. found: of `cases`.
    """
    lags = _lags(truth.period, truth.visibility.shape[1])
    at_period, other_lags = np.zeros(len(found.objects)), np.zeros(len(found.objects))
    for case, (k, seen) in enumerate(zip(found.objects, found.frames, strict=True)):
        true = sprites.pictures()[truth.sprite[k], truth.phase[k, : truth.prompt]]
        whole = np.concatenate([true, pictures[k]]).reshape(len(seen), -1).astype(float)
        whole -= whole[seen].mean(0)
        products = whole @ whole.T

        def correlation(lag: int, products=products, seen=seen) -> float | None:
            one, other = _pairs(seen, truth.prompt, lag)
            if not len(one):
                return None
            power = products[one, one].sum() * products[other, other].sum()
            return products[one, other].sum() / np.sqrt(power) if power > 0 else 0.0

        period = truth.period[k]
        at_period[case] = correlation(period)
        other_lags[case] = np.mean([each for lag in lags[period] if (each := correlation(lag)) is not None])
    return {"at_period": at_period, "other_lags": other_lags}


def _lags(periods: np.ndarray, frames: int) -> dict[int, list[int]]:
    """For each period the lags that it is compared with."""
    return {period: [lag for lag in range(1, min(2 * period, frames)) if lag != period] for period in set(periods)}


def _pairs(seen: np.ndarray, prompt: int, lag: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames that are `lag` apart and seen (T,), the later one drawn."""
    later = np.arange(max(prompt, lag), len(seen))
    later = later[seen[later] & seen[later - lag]]
    return later - lag, later
