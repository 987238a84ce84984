"""The file that `toto ngrams` writes, as dataclasses."""

from __future__ import annotations

from dataclasses import dataclass

from evaluation.results import Record


@dataclass(frozen=True, kw_only=True)
class NgramScores(Record):
    """The n-grams of one order and length; docs/tokens.md defines the measures.

    Fields:
        n: codes. total, distinct: places, and different n-grams at them. seen_once: different ones at a single place.
        independent: distinct n-grams to expect if codes were drawn independently.
        unseen: probability that the next n-gram is a new one (Good-Turing).
        entropy, plain_entropy: bits of a code given the n - 1 before it; corrected for n-grams that are rare or unseen
            (Chao, Wang and Jost 2013), and of the observed frequencies. entropy is None above 90 % unseen.
        zipf: slope s of frequency ~ rank^-s. zipf_ranks: last rank of the fit, from 1. None for too few ranks.
        ranks, counts: how often the n-gram of some ranks occurs.
        growth, growth_independent: distinct n-grams, and their number under independence, in the first frames of
            `TokenNgrams.growth_frames`.
    """

    n: int
    total: int
    distinct: int
    independent: float
    seen_once: int
    unseen: float
    entropy: float | None
    plain_entropy: float
    zipf: float | None
    zipf_ranks: int | None
    ranks: list[int]
    counts: list[int]
    growth: list[int]
    growth_independent: list[float]


@dataclass(frozen=True, kw_only=True)
class TokenNgrams(Record):
    """The n-grams of one tokenizer on one data set.

    Fields:
        name: of the tokenizer or the folder of shards. fingerprint: of the tokenizer. resolution: of frames, in pixels.
        frames, frames_per_clip: counted; images have 1 a clip. growth_frames: log-spaced numbers of frames.
        codes_used: of num_codes.
        orders: by "raster", "horizontal", "vertical" and, for clips, "time": one entry per n, from 1 in raster order
            and from 2 in the others, as long as n codes fit.
        compressed_codes: number of codes that were compressed. compression: by "zlib" and "lzma" the compressed size
            as a share of log2(num_codes) bits a code.
    """

    name: str
    dataset: str
    split: str
    fingerprint: str
    resolution: int
    num_codes: int
    grid: list[int]
    frames: int
    frames_per_clip: int
    codes_used: int
    growth_frames: list[int]
    orders: dict[str, list[NgramScores]]
    compressed_codes: int
    compression: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class NgramsResult(Record):
    """The file that `toto ngrams` writes. n: length of the longest runs. tokens: by tokenizer or folder of shards."""

    command: str
    n: int
    tokens: list[TokenNgrams]
    versions: dict
