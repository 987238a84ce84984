"""Parts of `toto tokenize`: the file that holds a part's codes, and access to the rows of all parts in any order."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from tokenization.files import temporary, write_whole
from tokenization.shards.parts import FinishedParts, first_missing, part_name

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

    from tokenization.video import Clip

# Rows of a record batch in a part: what a writer keeps in memory, and what a reader maps at a time.
BATCH_ROWS = 256


def columns(num_codes: int, labels: list[str]) -> list[tuple[str, pa.DataType]]:
    """Names and types of a shard's columns: codes of a row, its origin, and one int64 per label (-1: unknown)."""
    import pyarrow as pa

    kinds = [("codes", pa.list_(pa.uint16(), num_codes)), ("source", pa.string()), ("start", pa.int64())]
    return [*kinds, ("fps", pa.float32()), *((label, pa.int64()) for label in labels)]


class PartWriter:
    """Writes the rows of a part to an uncompressed Arrow file, and the counts to `name.json` next to it.

    It keeps BATCH_ROWS rows in memory.
    """

    def __init__(self, folder: Path, name: str, num_codes: int, labels: list[str]):
        import pyarrow as pa

        self.file, self.labels = folder / f"{name}.arrow", labels
        self.schema = pa.schema([*columns(num_codes, labels), ("item", pa.int32())])
        self.info: dict = {"rows": 0, "kept": 0, "items": 0, "skipped": []}
        self._rows: list[tuple] = []
        self._last_item = -1
        self._temporary = temporary(self.file)
        self._writer = pa.ipc.new_file(str(self._temporary), self.schema)

    def add(self, item: int, clip: Clip, codes: np.ndarray) -> None:
        """Add a row. codes: flat, uint16. item: index of the clip's item in the part; it never decreases."""
        labels = [clip.labels.get(label, -1) for label in self.labels]
        self._rows.append((codes, clip.source, clip.start, clip.fps, *labels, item))
        self.info["rows"] += 1
        self.info["kept"] += item != self._last_item
        self._last_item = item
        if len(self._rows) == BATCH_ROWS:
            self._flush()

    def skip(self, item: int, source: str, why: str) -> None:
        self.info["skipped"].append({"item": item, "source": source, "why": why})

    def close(self, items: int, shard_ends: bool, **more) -> dict:
        """Finish the part, which is valid from then on, and return its JSON.

        items: number of items in the part. more: further entries of the JSON.
        """
        if self._rows:
            self._flush()
        self._writer.close()
        with self._temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        self._temporary.replace(self.file)
        info = self.info | {"items": items, "shard_ends": shard_ends, **more}
        write_whole(self.file.with_suffix(".json"), lambda path: path.write_text(json.dumps(info)))
        return info

    def abandon(self) -> None:
        """Delete what was written so far."""
        self._writer = None  # closes the file; finishing it could fail again where the disk is full
        self._temporary.unlink(missing_ok=True)

    def _flush(self) -> None:
        import numpy as np
        import pyarrow as pa

        values = list(zip(*self._rows, strict=True))
        arrays = [pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(values[0])), type=self.schema[0].type)]
        arrays += [
            pa.array(column, field.type) for column, field in zip(values[1:], list(self.schema)[1:], strict=True)
        ]
        self._writer.write_batch(pa.record_batch(arrays, schema=self.schema))
        self._rows = []


class Unfinished(ValueError):
    """A part of the source is not finished yet. part: its name."""

    def __init__(self, folder: Path, part: str):
        super().__init__(f"{folder} lacks the part {part}; run the same command again.")
        self.part = part


def plan(folder: Path, num_shards: int, limit: int | None) -> tuple[list[tuple[str, int]], dict]:
    """The rows that the shards will hold, as [(part, rows from its start)], and counts for the manifest.

    These are the first `limit` rows in the order of the source, even if more were encoded. The counts include the items
    up to that of the last row.

    Raises:
        Unfinished: a part is missing. Without a limit, this is found by one JSON of every shard of the source.
    """
    finished = FinishedParts(folder)
    if limit is None and (lacks := next(filter(None, (first_missing(k, finished) for k in range(num_shards))), None)):
        raise Unfinished(folder, lacks)
    parts: list[tuple[str, int]] = []
    counts: dict = {"rows": 0, "items": 0, "kept": 0, "skipped": []}
    for shard in range(num_shards):
        chunk = 0
        while True:
            name = part_name(shard, chunk)
            if name not in finished:
                raise Unfinished(folder, name)
            info = finished[name]
            if limit is not None and counts["rows"] + info["rows"] >= limit:
                info = _cut(folder, name, info, limit - counts["rows"])
            parts.append((name, info["rows"]))
            for count in ("rows", "items", "kept"):
                counts[count] += info[count]
            counts["skipped"] += [{"source": entry["source"], "why": entry["why"]} for entry in info["skipped"]]
            if limit is not None and counts["rows"] == limit:
                return parts, counts
            if info["shard_ends"]:
                break
            chunk += 1
    return parts, counts


def _cut(folder: Path, name: str, info: dict, rows: int) -> dict:
    """The JSON of a part as if it had been closed after `rows` rows."""
    import pyarrow as pa

    items: list[int] = []
    with pa.memory_map(str(folder / f"{name}.arrow")) as file:
        reader = pa.ipc.open_file(file)
        for batch in range(-(-rows // BATCH_ROWS)):
            items += reader.get_batch(batch)["item"].to_pylist()
    items = items[:rows]
    skipped = [entry for entry in info["skipped"] if entry["item"] < items[-1]]
    return info | {"rows": rows, "items": items[-1] + 1, "kept": len(set(items)), "skipped": skipped}


def read_rows(folder: Path, parts: list[tuple[str, int]], start: int, stop: int) -> pa.RecordBatch:
    """The rows from `start` to `stop`, counted over all `parts`, in their order, with the columns of a shard.

    Files are read in order and each stretch once: record batches that the range cuts are read whole.
    """
    import pyarrow as pa

    pieces, first = [], 0
    for name, taken in parts:
        begin, end = max(start - first, 0), min(stop - first, taken)
        first += taken
        if begin >= end:
            continue
        with open_arrow(folder / f"{name}.arrow") as file:
            reader = pa.ipc.open_file(file)
            for number in range(begin // BATCH_ROWS, -(-end // BATCH_ROWS)):
                batch, at = reader.get_batch(number), number * BATCH_ROWS
                pieces.append(batch.slice(max(begin - at, 0), end - max(begin, at)).drop_columns("item"))
    (batch,) = pa.Table.from_batches(pieces).combine_chunks().to_batches()
    return batch


def sources_of(folder: Path, parts: list[tuple[str, int]]) -> set[str]:
    """The names of the items that the rows of the parts are of; their codes are not read."""
    import pyarrow as pa

    found: set[str] = set()
    for name, taken in parts:
        with pa.memory_map(str(folder / f"{name}.arrow")) as file:
            reader = pa.ipc.open_file(file)
            for number in range(-(-taken // BATCH_ROWS)):
                batch = reader.get_batch(number)["source"]
                found.update(batch.slice(0, taken - number * BATCH_ROWS).to_pylist())
    return found


def open_arrow(file: Path) -> pa.NativeFile:
    """A file for reading in order: not mapped, since a page at a time is slow from a network disk."""
    import pyarrow as pa

    return pa.OSFile(str(file))
