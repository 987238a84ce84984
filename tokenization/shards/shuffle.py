"""All rows of the finished parts in one seeded order, as shards, by reading everything twice and nothing row by row.

The rows of a shard come from everywhere in the source. So they are first dealt: a stretch of the source that fits into
memory is read in order and sorted by bucket, the shards that its rows will be in, and written as one file with a record
batch per bucket. Then a bucket is read, one batch of each of these files, put in order in memory, and written as its
shards. With N bytes of rows and buckets of M, that is (N / M)^2 batches of M^2 / N bytes, not a small read per row:
for HowTo100M and 1 GiB 1.4 million of 1 MB in place of 150 million of 8 KB.

Stretches and buckets are the units of the work. Each is finished when its file exists, and is made of the data and the
seed alone, so any number of tasks may share them, at different times, and two that make the same one do no harm.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tokenization.files import write_whole
from tokenization.shards.code_parts import open_arrow, read_rows
from tokenization.shards.files import SUFFIX, describe, write_shard
from tokenization.shards.working_folder import BUCKETS, DEALT

# Codes of a bucket, in bytes. About three times as much is in memory, and 8 bytes for every row of the data set.
BUCKET_BYTES = 2**30


def write_shards(
    parts_folder: Path,
    folder: Path,
    parts: list[tuple[str, int]],
    split: str,
    rows_per_shard: int,
    seed: int,
    width: int,
    rank: int = 0,
    world: int = 1,
    bucket_bytes: int | None = None,
    also: str | None = None,
) -> list[dict]:
    """Write the shards, all rows of the parts in one random order, which depends on their number and the seed alone.

    A rank makes its own share and then what the others have not finished, so all shards exist when any rank returns.
    The files of the parts are deleted once their rows are dealt.

    Args:
        parts: [(name, rows)] in the order of the source, as `code_parts.plan` returns them; the same on every rank.
        width: codes of a row. bucket_bytes: codes that are put in order at a time, at least a shard (default:
            BUCKET_BYTES). also: see `files.write_shard`.
    Returns:
        `files.describe` of all shards. Shards that exist are not written again.
    """
    size = bucket_bytes or BUCKET_BYTES
    shuffle = _Shuffle(parts_folder, folder, parts, split, rows_per_shard, seed, width, size, also)
    for name in (DEALT, BUCKETS):
        (folder / name).mkdir(exist_ok=True)
    _share(shuffle.units, shuffle.dealt, shuffle.deal, rank, world)
    for name, _ in parts:
        (parts_folder / f"{name}.arrow").unlink(missing_ok=True)
    _share(shuffle.units, shuffle.bucket, shuffle.fill, rank, world)
    return [entry for unit in range(shuffle.units) for entry in json.loads(shuffle.bucket(unit).read_text())]


def _share(units: int, file_of: Callable[[int], Path], make: Callable[[int], None], rank: int, world: int) -> None:
    """Make the units that do not exist: those of this rank first, then the others' in an order of its own."""
    import numpy as np

    others = np.random.default_rng(rank).permutation(units).tolist()
    for unit in [*range(rank, units, world), *(unit for unit in others if unit % world != rank)]:
        if not file_of(unit).is_file():
            try:
                make(unit)
            except OSError:  # another task may have finished it meanwhile, and deleted what it is made of
                if not file_of(unit).is_file():
                    raise


class _Shuffle:
    """Arguments as in `write_shards`. units: number of stretches, and of buckets."""

    def __init__(
        self, parts_folder, folder, parts, split, rows_per_shard: int, seed: int, width: int, bucket_bytes, also
    ):
        import numpy as np

        self.also = also
        self.parts_folder, self.folder, self.parts = parts_folder, folder, parts
        self.split, self.rows_per_shard = split, rows_per_shard
        self.size = rows_per_shard * max(1, bucket_bytes // (2 * width * rows_per_shard))  # rows
        rows = sum(taken for _, taken in parts)
        self.units = -(-rows // self.size)
        self.order = np.arange(rows, dtype=np.uint32 if rows < 2**32 else np.int64)
        np.random.default_rng(seed).shuffle(self.order)
        self.bucket_of = np.empty(rows, np.uint32)  # of every row of the source
        for unit in range(self.units):
            self.bucket_of[self._of(unit)] = unit

    def _of(self, unit: int):
        """The rows of the source that a bucket holds, in the order of the shards."""
        return self.order[unit * self.size : (unit + 1) * self.size]

    def dealt(self, unit: int) -> Path:
        return self.folder / DEALT / f"{unit:06d}.arrow"

    def bucket(self, unit: int) -> Path:
        return self.folder / BUCKETS / f"{unit:06d}.json"

    def deal(self, unit: int) -> None:
        """Read a stretch of the source in order, and write its rows as a record batch per bucket."""
        import numpy as np
        import pyarrow as pa

        start = unit * self.size
        to = self.bucket_of[start : start + self.size]
        batch = read_rows(self.parts_folder, self.parts, start, start + len(to))
        batch = batch.take(pa.array(np.argsort(to, kind="stable")))
        counts = np.bincount(to, minlength=self.units)

        def write(path: Path) -> None:
            with pa.ipc.new_file(str(path), batch.schema) as writer:
                for first, count in zip(np.cumsum(counts) - counts, counts, strict=True):
                    writer.write_batch(batch.slice(int(first), int(count)))

        write_whole(self.dealt(unit), write)

    def fill(self, unit: int) -> None:
        """Read a bucket's rows, which come in the order of the source, and write its shards, then their entries."""
        import numpy as np
        import pyarrow as pa

        pieces = []
        for number in range(self.units):
            with open_arrow(self.dealt(number)) as file:
                pieces.append(pa.ipc.open_file(file).get_batch(unit))
        table = pa.Table.from_batches(pieces).combine_chunks()
        del pieces
        rows = self._of(unit)
        places = np.empty(len(rows), np.int64)  # where in the table each row of the bucket is
        places[np.argsort(rows)] = np.arange(len(rows))
        entries = []
        for start in range(0, len(rows), self.rows_per_shard):
            number = (unit * self.size + start) // self.rows_per_shard
            file = self.folder / f"{self.split}-{number:05d}{SUFFIX}"
            if not file.is_file():
                write_shard(file, table.take(pa.array(places[start : start + self.rows_per_shard])), self.also)
            entries.append(describe(file))
        write_whole(self.bucket(unit), lambda path: path.write_text(json.dumps(entries)))
