"""A stream of rows from weighted sources, each with its own epochs, which resumes exactly.

The source of row g of a run is a random draw that depends only on the seed and g; so does the row itself, if the source
is shards. The rows of a run and their order are then the same for any number of processes, unlike with
`interleave_datasets` and `split_dataset_by_node` of the datasets library.
"""

from __future__ import annotations

import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from training.args import Source
from training.flags import require
from training.rows.pixel_rows import Ended, PixelRows
from training.rows.shard_rows import ShardRows, check_fit, read_manifest, validation_rows

# Number of draws made at a time.
BLOCK = 4096


class RowStream:
    """The rows of one of `world` processes, as (number of the source, row), until a source ends the training.

    Args:
        sources: [(settings of the source, its rows)].
    """

    def __init__(self, sources: list[tuple[Source, ShardRows | PixelRows]], seed: int, rank: int = 0, world: int = 1):
        self.settings, self.sources = [setting for setting, _ in sources], [rows for _, rows in sources]
        for rows in self.sources:
            if not rows.is_indexed:
                rows.share(rank, world)
        self.seed, self.rank, self.world = seed, rank, world
        self.drawn, self.counts, self.left = 0, [0] * len(sources), [False] * len(sources)
        self._uniforms = lru_cache(maxsize=2)(self._draws)
        self._bounds = lru_cache(maxsize=2)(self._shares_up_to)

    @property
    def names(self) -> list[str]:
        return [setting.name for setting in self.settings]

    @property
    def fingerprints(self) -> dict[str, str]:
        """Name of the source -> a fingerprint of its rows."""
        return {name: rows.fingerprint for name, rows in zip(self.names, self.sources, strict=True)}

    def weights(self, names: Iterable[str]) -> list[float]:
        """Probabilities of these sources in the mixture."""
        return [setting.weight for setting in self.settings if setting.name in names]

    @property
    def is_indexed(self) -> bool:
        """Whether the rows and their order are the same for any number of processes."""
        return all(rows.is_indexed for rows in self.sources)

    def _draws(self, block: int) -> list[float]:
        return np.random.default_rng([self.seed, block]).random(BLOCK).tolist()

    def _shares_up_to(self, left: tuple[bool, ...]) -> list[float]:
        """Cumulative shares of the sources. left: which sources have left the mixture."""
        pairs = zip(self.settings, left, strict=True)
        weights = np.array([0.0 if has_left else setting.weight for setting, has_left in pairs])
        bounds = np.cumsum(weights / weights.sum())
        bounds[np.flatnonzero(weights)[-1] :] = 1.0  # exactly, in spite of rounding
        return bounds.tolist()

    def _choose(self) -> int:
        """The source of the next row of the run, for any process. Raises Ended if there is none."""
        while not all(self.left):
            draw = self._uniforms(self.drawn // BLOCK)[self.drawn % BLOCK]
            source = bisect_right(self._bounds(tuple(self.left)), draw)
            setting, rows = self.settings[source], self.sources[source]
            is_over = rows.is_indexed and self.counts[source] >= rows.rows_per_epoch
            if is_over and setting.at_end == "leave":
                self.left[source] = True
            elif is_over and setting.at_end == "stop":
                raise Ended(setting.name)
            else:
                return source
        raise Ended("every source")

    def take(self, count: int) -> list[tuple[int, object]] | None:
        """The next `count` rows of this process; None if the training is over.

        All processes return None at the same step, unless a source of pixels has ended.
        """
        found = []
        try:
            for _ in range(count):
                for rank in range(self.world):  # every process draws for all, so that all know the counts
                    source = self._choose()
                    k = self.counts[source]
                    self.counts[source] += 1
                    self.drawn += 1
                    if rank == self.rank:
                        mine = source, k
                found.append((mine[0], self.sources[mine[0]].row(mine[1])))
        except Ended:
            return None
        return found

    def __iter__(self) -> Iterator:
        """The rows, without their sources."""
        while (rows := self.take(1)) is not None:
            yield rows[0][1]

    def shares(self) -> dict[str, dict]:
        """Draws of all processes so far: name -> {"rows", "share", "epochs" (None if unknown)}."""
        return {
            setting.name: {
                "rows": count,
                "share": count / max(1, self.drawn),
                "epochs": count / rows.rows_per_epoch if rows.rows_per_epoch else None,
            }
            for setting, rows, count in zip(self.settings, self.sources, self.counts, strict=True)
        }

    def state_dict(self) -> dict:
        """The position of the stream after `take`, as JSON."""
        return {
            "drawn": self.drawn,
            "sources": {
                setting.name: {"count": count, "left": left, "position": rows.state_dict()}
                for setting, rows, count, left in zip(self.settings, self.sources, self.counts, self.left, strict=True)
            },
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from this position; sources that are not in the state start from their beginning."""
        self.drawn = state["drawn"]
        for number, name in enumerate(self.names):
            if name in state["sources"]:
                known = state["sources"][name]
                self.counts[number], self.left[number] = known["count"], known["left"]
                if self.sources[number].is_indexed == (known["position"] is None):  # no, if pixels became shards
                    self.sources[number].load_state_dict(known["position"])


def open_rows(
    source: Source, config, seed: int, resolution: int, to_row: Callable | None
) -> tuple[Source, ShardRows | PixelRows]:
    """A source that is ready to give training rows.

    Args:
        config: the TotoConfig that defines a row. resolution: side of the frames, for sources of pixels.
        to_row: makes a row of pixels (`pixel_rows.token_row`); None if the model can only read shards.
    Raises:
        ValueError, FileNotFoundError: no such source, nothing in it, tokens that do not fit the model, or pixels with
            at_end "leave".
    """
    require(
        source.is_shards or source.at_end != "leave",
        f"The source '{source.name}' cannot leave the mixture, because the number of rows in its pixels is unknown; "
        "tokenize it first (toto tokenize), or choose at_end repeat or stop.",
    )
    try:
        if source.val_data is not None and source.is_shards:
            check_fit(read_manifest(source.val_data), config)
        if source.is_shards:
            return source, ShardRows(source.data, config, seed, hold_out=source.val_data is None)
        which = None if source.is_toyworld or source.val_data or source.val_split else "train"
        settings = {"which": which, "repeat": source.at_end == "repeat"}
        return source, PixelRows(source, resolution, config.num_frames, to_row, seed, **settings)
    except (ValueError, OSError) as error:
        message = f"The source '{source.name}' cannot be used: {error}"
        if not source.is_toyworld and not Path(source.data).exists():
            message += " (docs/datasets.md explains how to make shards; --scale tiny runs a recipe without them)"
        raise (FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError)(message) from error


def check_tokenizers(sources: list[Source], processor) -> None:
    """Check that all sources have codes of the same visual tokenizer.

    Args:
        processor: tokenizes the pixels among the sources.
    Raises:
        ValueError: two tokenizers differ.
    """
    made = {}
    for source in sources:
        for folder in (source.data, source.val_data) if source.is_shards else ():
            if folder is not None:
                tokenizer = read_manifest(folder).get("tokenizer", {})
                made.setdefault(tokenizer.get("fingerprint"), folder)
    if made and processor is not None and not all(source.is_shards for source in sources):
        made.setdefault(processor.fingerprint, "--tokenizer")
    require(
        len(made) < 2,
        f"{' and '.join(list(made.values())[:2])} have different visual tokenizers, so their codes do not match; "
        "tokenize all sources with the same one.",
    )


def warn_of_other_codes(start: Path, processor) -> None:
    """Warn if the model in the folder `start` was trained on the codes of another visual tokenizer than these rows.

    This is not an error, because the blocks may still be useful.
    """
    from tokenization import TotoProcessor

    if (start / "visual_tokenizer").is_dir():
        learnt = TotoProcessor.from_pretrained(start)
        if learnt.fingerprint != processor.fingerprint:
            warnings.warn(
                f"{start} was trained on the codes of another visual tokenizer ({learnt.fingerprint}) than the data "
                f"({processor.fingerprint}), so its embeddings and head do not fit the codes.",
                stacklevel=2,
            )


def open_validation(source: Source, config, resolution: int, to_row: Callable | None, count: int) -> list:
    """At most `count` validation rows of a source, the same for every process."""
    if source.is_shards:
        return list(validation_rows(source.data, source.val_data, config, count))
    split = source.val_split or ("validation" if source.is_toyworld else None)
    setting = replace(source, data=source.val_data or source.data)
    which = None if split or source.val_data else "validation"
    rows = PixelRows(setting, resolution, config.num_frames, to_row, 0, which=which, repeat=False, split=split)
    found = []
    while len(found) < count:
        try:
            found.append(rows.row(len(found)))
        except Ended:
            break
    return found
