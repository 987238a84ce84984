"""Three simple predictors of codes, fitted by counting: baselines for the loss of a trained model."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

# Weights of the prior, in counts; the one with the lowest loss on held-back training rows is taken.
STRENGTHS = tuple(10.0 ** (half / 2) for half in range(-4, 11))
HELD_BACK = 0.1
# Counting more rows than this changes the third decimal and costs minutes and gigabytes.
MAX_TRAIN_TOKENS = 16_000_000


class Table:
    """Counts of codes after contexts, stored sparsely, since a dense table of 16k codes would take 2 GB.

    P(code | context) = (count(context, code) + strength * prior(code)) / (count(context) + strength): counts
    interpolated with a prior, whose weight decreases with the count of the context.

    Args:
        contexts, codes: integers of the same shape; contexts 0..num_codes, codes 0..num_codes - 1.
    """

    def __init__(self, contexts: np.ndarray, codes: np.ndarray, num_codes: int):
        self.num_codes = num_codes
        self.pairs, self.counts = np.unique(self._pair(contexts, codes), return_counts=True)
        self.context_counts = np.bincount(contexts.ravel(), minlength=num_codes + 1)

    def _pair(self, contexts: np.ndarray, codes: np.ndarray) -> np.ndarray:
        return contexts.ravel().astype(np.int64) * self.num_codes + codes.ravel()

    def lookup(self, contexts: np.ndarray, codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """count(context, code) and count(context) of every token, both of shape (n,)."""
        if not len(self.pairs):  # images have no previous frame
            return np.zeros(codes.size, np.int64), np.zeros(codes.size, np.int64)
        wanted = self._pair(contexts, codes)
        where = np.searchsorted(self.pairs, wanted).clip(max=len(self.pairs) - 1)
        return np.where(self.pairs[where] == wanted, self.counts[where], 0), self.context_counts[contexts.ravel()]

    def nats(self, contexts: np.ndarray, codes: np.ndarray, prior: np.ndarray, strength: float) -> np.ndarray:
        """-log P of every token (n,), in nats. prior (num_codes,): probabilities."""
        pair, context = self.lookup(contexts, codes)
        return -np.log((pair + strength * prior[codes.ravel()]) / (context + strength))

    def most_likely(self, contexts: np.ndarray, prior: np.ndarray, strength: float) -> np.ndarray:
        """The code with the highest P after each context, in the shape of `contexts`; of equal ones the lowest."""
        distinct, which = np.unique(contexts, return_inverse=True)
        begins = np.searchsorted(self.pairs, distinct.astype(np.int64) * self.num_codes)
        ends = np.searchsorted(self.pairs, (distinct.astype(np.int64) + 1) * self.num_codes)
        best = np.empty(len(distinct), dtype=np.int64)
        for k, (begin, end) in enumerate(zip(begins, ends, strict=True)):
            weights = strength * prior
            weights[self.pairs[begin:end] % self.num_codes] += self.counts[begin:end]
            best[k] = weights.argmax()
        return best[which].reshape(contexts.shape)


def left_neighbours(codes: np.ndarray, num_codes: int) -> np.ndarray:
    """The previous token in raster order, across line and frame borders: (N, T, h, w) -> the same shape.

    The first token of a row follows the start token, as in the rows that the model reads, which is context `num_codes`.
    """
    flat = codes.reshape(len(codes), -1)
    left = np.empty_like(flat)
    left[:, 0], left[:, 1:] = num_codes, flat[:, :-1]
    return left.reshape(codes.shape)


class Predictors:
    """Unigram, bigram and previous-frame predictors fitted on codes (N, T, h, w) of a codebook of `num_codes`.

    unigram: the frequency of a code; prior: uniform.
    bigram: given the previous token in raster order (the row's start before the first); prior: the unigram.
    previous_frame: given the code at the same position one frame earlier, with one table for all positions; prior: the
    unigram. In the first frame of a row, it is the bigram.
    """

    names = ("unigram", "bigram", "previous_frame")

    def __init__(self, codes: np.ndarray, num_codes: int, strengths: dict[str, float] | None = None):
        self.num_codes = num_codes
        self.strengths = dict.fromkeys(self.names, 1.0) | (strengths or {})
        codes = _checked(codes, num_codes)
        self.tables = {
            "unigram": Table(np.zeros_like(codes), codes, num_codes),
            "bigram": Table(left_neighbours(codes, num_codes), codes, num_codes),
            "previous_frame": Table(codes[:, :-1], codes[:, 1:], num_codes),
        }

    def nats(self, name: str, codes: np.ndarray) -> np.ndarray:
        """-log P of every token under the predictor of that name, in nats; (N, T, h, w) -> the same shape."""
        if name == "unigram":
            return self._table_nats(name, np.zeros_like(codes), codes, self._uniform)
        prior = self._unigram()
        if name == "bigram":
            return self._table_nats(name, left_neighbours(codes, self.num_codes), codes, prior)
        first = codes[:, :1]
        return np.concatenate(
            [
                self._table_nats("bigram", left_neighbours(first, self.num_codes), first, prior),
                self._table_nats(name, codes[:, :-1], codes[:, 1:], prior),
            ],
            axis=1,
        )

    def most_likely_next(self, codes: np.ndarray) -> np.ndarray:
        """The most likely code one frame later at the same position, by previous_frame: any shape -> the same."""
        return self.tables["previous_frame"].most_likely(codes, self._unigram(), self.strengths["previous_frame"])

    @property
    def _uniform(self) -> np.ndarray:
        return np.full(self.num_codes, 1 / self.num_codes)

    def _unigram(self) -> np.ndarray:
        """The probability of every code, the prior of the other predictors."""
        every = np.arange(self.num_codes)
        return np.exp(-self._table_nats("unigram", np.zeros_like(every), every, self._uniform))

    def _table_nats(self, name: str, contexts: np.ndarray, codes: np.ndarray, prior: np.ndarray) -> np.ndarray:
        return self.tables[name].nats(contexts, codes, prior, self.strengths[name]).reshape(codes.shape)

    def maps(self, codes: np.ndarray) -> dict[str, np.ndarray]:
        """Mean nats at every position of a row: (N, T, h, w) -> {name: (T, h, w)}."""
        codes = _checked(codes, self.num_codes)
        return {name: self.nats(name, codes).mean(0) for name in self.names}


def fit(codes: np.ndarray, num_codes: int) -> Predictors:
    """Predictors fitted on training codes (N, T, h, w), with their smoothing chosen on the last tenth of these rows.

    The tables are then counted over all rows. Raises ValueError for fewer than two rows.
    """
    if len(codes) < 2:
        raise ValueError(
            f"Fitting the simple predictors needs at least two rows of codes, not {len(codes)}; tokenize more data."
        )
    held_back = max(1, round(HELD_BACK * len(codes)))
    trial, rest = Predictors(codes[:-held_back], num_codes), _checked(codes[-held_back:], num_codes)
    for name in Predictors.names:  # unigram first: it is the prior of the others, and bigram has the first frames

        def loss(strength: float, name: str = name) -> float:
            trial.strengths[name] = strength
            return trial.nats(name, rest).mean()

        trial.strengths[name] = min(STRENGTHS, key=loss)
    return Predictors(codes, num_codes, trial.strengths)


def run_losses(run: str | Path) -> dict | None:
    """Losses of the predictors for a run: fitted on its training rows, scored on the rows of its `val_loss`.

    They are kept in RUN/predictors.json, which is used as long as the shards are unchanged, and after they are deleted.

    Returns:
        {"unigram", "bigram", "previous_frame"} in nats per code token, with sources weighted as in the mixture;
        "train_rows", "val_rows"; "shards", a hash of the manifests; "maps": {source: {predictor: nats at every position
        of a row, a list of T * h * w}}. None if nothing can be counted: the shards were deleted and nothing was kept,
        the sources are pixels, or there are no validation rows.
    """
    from tokenization.files import write_json
    from training.args import DataArgs
    from training.flags import read_recipe

    run, kept = Path(run), Path(run) / "predictors.json"
    recipe = read_recipe(run)
    settings = {key: recipe[key] for key in ("shards", "val_shards", "sources", "val_rows") if key in recipe}
    sources = DataArgs(**settings).mixture()
    known = json.loads(kept.read_text()) if kept.is_file() else None
    manifests = [Path(folder) / "manifest.json" for s in sources for folder in (s.data, s.val_data) if folder]
    if not all(manifest.is_file() for manifest in manifests):
        return known
    digest = hashlib.sha256(b"".join(manifest.read_bytes() for manifest in manifests)).hexdigest()[:16]
    if known and known["shards"] == digest and "maps" in known:
        return known

    found = {**dict.fromkeys(Predictors.names, 0.0), "train_rows": 0, "val_rows": 0, "shards": digest, "maps": {}}
    for source in sources:
        counted = _of_source(run, source, recipe.get("val_rows", 256))
        if counted is None:
            return None
        maps, train_rows, val_rows = counted
        for name, places in maps.items():
            found[name] += source.weight * float(places.mean())
        found["maps"][source.name] = {name: places.ravel().tolist() for name, places in maps.items()}
        found["train_rows"] += train_rows
        found["val_rows"] += val_rows
    write_json(kept, found)
    return found


def _of_source(run: Path, source, val_rows: int) -> tuple[dict[str, np.ndarray], int, int] | None:
    """(maps (T, h, w) of the predictors, training rows counted, validation rows) of one source of shards."""
    from training.rows import shard_rows as data

    manifest = data.read_manifest(source.data)
    frames = manifest["num_frames"] if manifest["kind"] == "video" else 1
    limit = max(2, MAX_TRAIN_TOKENS // (frames * int(np.prod(manifest["grid"]))))
    if manifest["kind"] == "image":  # a row that the model reads is a pack of images
        from training.find_model import latest

        val_rows *= json.loads((latest(run) / "config.json").read_text())["num_frames"]
    train = data.read_codes(source.data, None if source.val_data else "train", limit)
    validation = data.read_codes(source.val_data or source.data, None if source.val_data else "validation", val_rows)
    if len(train) < 2 or not len(validation):
        return None
    return fit(train, manifest["num_codes"]).maps(validation), len(train), len(validation)


def _checked(codes: np.ndarray, num_codes: int) -> np.ndarray:
    codes = np.asarray(codes)
    if codes.ndim != 4 or not codes.size:
        raise ValueError(f"Codes have the shape {codes.shape}; they must be (N, T, h, w) with at least one row.")
    codes = codes.astype(np.int64)
    if codes.min() < 0 or codes.max() >= num_codes:
        raise ValueError(f"Codes are in {codes.min()}..{codes.max()}; they must be in 0..{num_codes - 1}.")
    return codes
