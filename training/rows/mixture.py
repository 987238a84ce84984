"""A stream of rows from weighted sources, each with its own epochs, which resumes exactly.

The source of row g of a run is a random draw that depends only on the seed and g; so does the row itself, if the source
is shards. The rows of a run and their order are then the same for any number of processes, unlike with
`interleave_datasets` and `split_dataset_by_node` of the datasets library.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from training.args import Source
from training.flags import require
from training.rows.draws import Drawing, Draws, Position
from training.rows.frames import prefetch
from training.rows.pixel_rows import Ended, PixelRows
from training.rows.shard_rows import ShardRows, check_fit, read_manifest, validation_rows

# Steps whose rows are read ahead.
AHEAD = 2


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
            elif isinstance(rows, ShardRows):
                rows.read_in_blocks(world // int(os.environ.get("LOCAL_WORLD_SIZE", world)))
        self.seed, self.rank, self.world = seed, rank, world
        self.position = Position(0, (0,) * len(sources), (False,) * len(sources))
        self._drawing, self._draws = Drawing(self.settings, self._rows_of, seed, world), None
        self._are_shards = all(isinstance(rows, ShardRows) for rows in self.sources)
        self._reads_ahead, self._pins, self._ahead_count = False, False, 0
        self._ahead: Iterator | None = None

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

    def _rows_of(self, number: int) -> int | None:
        """Rows after which a source ends; None if it is repeated, or if that is unknown."""
        rows = self.sources[number]
        return rows.rows_per_epoch if rows.is_indexed and self.settings[number].at_end != "repeat" else None

    def _choose(
        self, position: Position, count: int, draws: Draws | None
    ) -> tuple[list[tuple[int, int]], Position, Draws]:
        """The next `count` rows of this process.

        Args:
            draws: those that an earlier call returned, if it ended at `position`.
        Returns:
            ([(source, number of the row in it)], the position after them, draws for the next call).
        Raises:
            Ended: the training is over before.
        """
        found, drawn, last = [], position.drawn, position.drawn + count * self.world
        turn = (drawn + self.rank) % self.world  # of this process
        if draws is None:
            draws = self._drawn(position, turn)
        while True:
            until = min(last, draws.end)
            found += draws.mine[draws.count(drawn) : draws.count(until)]
            drawn = until
            if drawn == last:
                return found, draws.at(drawn), draws
            draws = self._drawn(self._drawing.after(draws), turn)

    def _drawn(self, begin: Position, turn: int) -> Draws:
        """`Drawing.draw`; the rows of the draws are fetched from now on, where that is needed."""
        draws = self._drawing.draw(begin, turn)
        for number, rows in enumerate(self.sources):
            if isinstance(rows, ShardRows) and rows.in_blocks:
                rows.fetch_ahead([k for source, k in draws.mine if source == number])
        return draws

    def _read(
        self, position: Position, count: int, draws: Draws | None = None, pin: bool = False
    ) -> tuple[list[tuple[int, object]] | None, Position, Draws | None]:
        """(what `take` returns, the position after it, draws for the next call)."""
        try:
            mine, after, draws = self._choose(position, count, draws)
            if not self._are_shards:
                return [(source, self.sources[source].row(k)) for source, k in mine], after, draws
        except Ended:
            return None, position, None
        # One tensor for all, so that they reach the device in one copy (`stacked`).
        batch = torch.empty(count, self.sources[0].row_length, dtype=torch.long, pin_memory=pin)
        for (source, k), ids in zip(mine, batch.numpy(), strict=True):
            self.sources[source].fill(k, ids)
        return [(source, row) for (source, _), row in zip(mine, batch, strict=True)], after, draws

    def take(self, count: int) -> list[tuple[int, object]] | None:
        """The next `count` rows of this process; None if the training is over.

        All processes return None at the same step, unless a source of pixels has ended.
        """
        if not self._reads_ahead:
            rows, self.position, self._draws = self._read(self.position, count, self._draws)
            return rows
        if self._ahead is None or self._ahead_count != count:
            self._ahead, self._ahead_count = prefetch(self._following(self.position, count), AHEAD), count
        try:
            rows, self.position = next(self._ahead, (None, self.position))
        except BaseException:
            self._ahead = None  # another call meets the same error, not the end of the rows
            raise
        return rows

    def _following(self, position: Position, count: int) -> Iterator[tuple[list | None, Position]]:
        """(what `take` returns, the position after it), again and again. It changes nothing that others see."""
        draws, rows = None, []
        while rows is not None:
            rows, position, draws = self._read(position, count, draws, self._pins)
            yield rows, position

    @contextlib.contextmanager
    def reading_ahead(self, pin: bool) -> Iterator[None]:
        """Inside, a thread reads the rows of shards for the next calls of `take`, whose `count` should stay the same.

        The position is that of the rows that were taken. Pixels and labelled media are tokenized on the device or
        decoded by threads of their own, so mixtures with them are not read ahead.

        Args:
            pin: put the rows into pinned memory, from which a GPU copies while it computes.
        """
        self._reads_ahead, self._pins = self._are_shards, pin
        try:
            yield
        finally:
            self._reads_ahead, self._ahead, self._draws = False, None, None

    def __iter__(self) -> Iterator:
        """The rows, without their sources."""
        while (rows := self.take(1)) is not None:
            yield rows[0][1]

    def shares(self) -> dict[str, dict]:
        """Draws of all processes so far: name -> {"rows", "share", "epochs" (None if unknown)}."""
        return {
            setting.name: {
                "rows": count,
                "share": count / max(1, self.position.drawn),
                "epochs": count / rows.rows_per_epoch if rows.rows_per_epoch else None,
            }
            for setting, rows, count in zip(self.settings, self.sources, self.position.counts, strict=True)
        }

    def state_dict(self) -> dict:
        """The position of the stream after `take`, as JSON."""
        each = zip(self.settings, self.sources, self.position.counts, self.position.left, strict=True)
        return {
            "drawn": self.position.drawn,
            "sources": {
                setting.name: {"count": count, "left": left, "position": rows.state_dict()}
                for setting, rows, count, left in each
            },
        }

    def load_state_dict(self, state: dict) -> None:
        """Continue from this position; sources that are not in the state start from their beginning."""
        counts, left = list(self.position.counts), list(self.position.left)
        for number, name in enumerate(self.names):
            if name in state["sources"]:
                known = state["sources"][name]
                counts[number], left[number] = known["count"], known["left"]
                if self.sources[number].is_indexed == (known["position"] is None):  # no, if pixels became shards
                    self.sources[number].load_state_dict(known["position"])
        self.position = Position(state["drawn"], tuple(counts), tuple(left))
        self._draws = self._ahead = None


def stacked(rows: list[torch.Tensor]) -> torch.Tensor:
    """Rows of ids (L,) as (B, L), without a copy if they follow each other in one tensor, which may be pinned."""
    whole = rows[0]._base
    if whole is None or whole.dim() != 2 or any(row._base is not whole for row in rows):
        return torch.stack(rows)
    length = whole.shape[1]
    first = rows[0].storage_offset()
    if [row.storage_offset() for row in rows] != [first + length * number for number in range(len(rows))]:
        return torch.stack(rows)
    return whole[first // length : first // length + len(rows)]


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
