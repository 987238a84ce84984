"""What counts of n-grams say: independence, entropy, unseen mass, Zipf's slope, and the compression of codes."""

from __future__ import annotations

import lzma
import math
import zlib

import numpy as np

from evaluation.ngrams.counting import Spectrum, bits_of

BINS = 4096  # of log probabilities; the error of the expected number is then below 1e-5 of it
FREQUENT = 10  # an n-gram of the ranks that Zipf's slope is fitted on occurs at least so often
FEWEST_RANKS = 10
POINTS = 48  # log-spaced ranks of a rank-frequency curve
COMPRESSED = 1 << 22  # codes: lzma takes seconds for them; 10,000 images of 256 have 2.6 million


def expected_distinct(code_counts: np.ndarray, n: int, totals: np.ndarray) -> np.ndarray:
    """Distinct n-grams to expect among `totals` of them if codes were drawn independently, with the same frequencies.

    The sum over all n-grams of 1 - (1 - p)^total, with p the product of the frequencies of its codes. The sum has
    num_codes^n terms; those of equal p are taken together on a grid of log p, which is exact for codes of equal
    frequency. Overlapping n-grams are treated as independent draws, as if they did not share codes.

    Args:
        code_counts: how often each code occurs, (num_codes,).
    """
    logs = np.log(code_counts[code_counts > 0] / code_counts.sum())
    low, step = logs.min(), max(np.ptp(logs) / (BINS - 1), 1e-12)
    place = (logs - low) / step
    lower = np.minimum(place.astype(np.int64), BINS - 2)
    # Between two grid points a code counts for both, so that the mean log p stays the same.
    single = np.bincount(lower, 1 - (place - lower), BINS) + np.bincount(lower + 1, place - lower, BINS)
    kinds = single
    for _ in range(n - 1):
        kinds = np.convolve(kinds, single)
    held = kinds > 0
    p = np.exp(np.minimum(0, n * low + step * np.flatnonzero(held)))
    with np.errstate(divide="ignore"):  # a single code: p = 1
        return np.array([-(kinds[held] @ np.expm1(total * np.log1p(-p))) if total else 0.0 for total in totals])


def plain_entropy(spectrum: Spectrum) -> float:
    """Entropy of the observed frequencies in bits, the plug-in estimate; too low where kinds are rare or unseen."""
    share = spectrum.times / spectrum.total
    return float(-(spectrum.kinds * share) @ np.log2(share))


def entropy(spectrum: Spectrum) -> float:
    """Entropy in bits, corrected for kinds that are rare or unseen.

    The estimator of Chao, Wang and Jost (2013), "Entropy and the species accumulation curve", Methods in Ecology and
    Evolution 4, 1091-1100. It takes places as independent draws; neighbours in one picture are not, so that it is still
    too low.
    """
    from scipy.integrate import quad
    from scipy.special import digamma

    total = spectrum.total
    nats = float((spectrum.kinds * spectrum.times / total) @ (digamma(total) - digamma(spectrum.times)))
    once, twice = spectrum.kinds_seen(1), spectrum.kinds_seen(2)
    if once == 0 or (once == 1 and twice == 0):  # nothing is thought to be unseen
        return nats / math.log(2)
    rare = 2 * twice / ((total - 1) * once + 2 * twice) if twice else 2 / ((total - 1) * (once - 1) + 2)
    if rare < 1:
        # Theirs is q^(1 - total) (-log(rare) - sum of q^r / r over r < total) with q = 1 - rare: a difference of large
        # numbers. It equals q times the integral of e^-s / (1 - q e^(-s / total)) ds / total over s > 0; s = e^u.
        log_q = math.log1p(-rare)

        def integrand(u: float) -> float:
            s = math.exp(u)
            return math.exp(u - s) / (total * -math.expm1(log_q - s / total))

        steep = math.log(max(rare * total, 1e-300))
        integral, _ = quad(integrand, -60, 7, points=[steep] if -60 < steep < 7 else None, limit=500)
        nats += once / total * math.exp(log_q) * integral
    return nats / math.log(2)


def unseen_mass(spectrum: Spectrum) -> float:
    """The probability that the next n-gram is one not yet seen: the share of those seen once (Good 1953, Turing)."""
    return spectrum.kinds_seen(1) / spectrum.total


def rank_frequency(spectrum: Spectrum, ranks: np.ndarray) -> np.ndarray:
    """How often the n-gram of each rank occurs; rank 1 is the most frequent one."""
    last = spectrum.kinds[::-1].cumsum()
    return spectrum.times[::-1][np.searchsorted(last, ranks)]


def spaced_ranks(last: int) -> np.ndarray:
    """At most POINTS ranks from 1 to `last`, evenly spaced on a log scale."""
    return np.unique(np.geomspace(1, last, POINTS).round().astype(np.int64))


def zipf_slope(spectrum: Spectrum) -> tuple[float, int] | None:
    """(s, last rank) of frequency ~ rank^-s, by least squares of logs at log-spaced ranks.

    From rank 1 to the last n-gram that occurs at least FREQUENT times: beyond, frequencies are steps of whole numbers.
    None for fewer than FEWEST_RANKS ranks.
    """
    last = int(spectrum.kinds[spectrum.times >= FREQUENT].sum())
    if last < FEWEST_RANKS:
        return None
    ranks = spaced_ranks(last)
    slope, _ = np.polyfit(np.log(ranks), np.log(rank_frequency(spectrum, ranks)), 1)
    return float(-slope), last


def compression(codes: np.ndarray, num_codes: int) -> tuple[int, dict[str, float]]:
    """(codes taken, {"zlib", "lzma"}: compressed size, as a share of log2(num_codes) bits a code).

    The codes are in raster order, one image after the other, at most the first COMPRESSED. Both compressors look for
    repeated bytes. A code is packed into as few bits as hold any, or into two bytes, which keeps repeats aligned; the
    smaller result counts. zlib at level 9, lzma at preset 6 (xz).
    """
    flat = codes.reshape(-1)[:COMPRESSED]
    bits = bits_of(num_codes)
    tight = np.packbits(np.unpackbits(flat.astype(">u2").view(np.uint8)).reshape(-1, 16)[:, 16 - bits :])
    layouts = [tight.tobytes(), flat.astype("<u2").tobytes()]
    least = max(len(flat) * math.log2(num_codes) / 8, 1)
    sizes = {
        "zlib": min(len(zlib.compress(layout, 9)) for layout in layouts),
        "lzma": min(len(lzma.compress(layout, preset=6)) for layout in layouts),
    }
    return len(flat), {name: size / least for name, size in sizes.items()}
