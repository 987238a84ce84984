"""The files of a folder of shards: writing one, reading single rows of it, and whole columns.

A shard is an Arrow IPC file without compression, one record batch, whose codes lie in one piece at a byte that the
manifest names: a row is read without reading or decoding its neighbours. `datasets` and pyarrow read or map the same
files, with the columns of `code_parts.columns` and `held_out`. A plain .npy of codes would need a second file for the
sources, starts and labels, and `datasets` does not load it. Shards of earlier versions are parquet files, which can
only be decoded whole; `convert.py` rewrites them.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tokenization.files import sha256, write_whole
from tokenization.storage.remote import join

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

SUFFIX, OLD_SUFFIX = ".arrow", ".parquet"
# Without separate validation data, one item in HELD_OUT of a source is used for validation: whole items, so that all
# windows of a video are on the same side.
HELD_OUT = 20
# Items of which chance may hold out none: one in 20 of 200 leaves all in with a probability of 0.00004.
FEW = 200


def is_held_out(source: str) -> bool:
    """Whether an item is used for validation, in a dataset without separate validation data."""
    return zlib.crc32(source.encode()) % HELD_OUT == 0


def held_out_of_few(sources: Iterable[str]) -> str | None:
    """The item that is held out of so few that chance holds out none; None if one is, or if there is only one."""
    names = set(sources)
    if len(names) < 2 or any(map(is_held_out, names)):
        return None
    return min(names, key=lambda name: (zlib.crc32(name.encode()), name))


def write_shard(file: Path, table: pa.Table, also: str | None = None) -> None:
    """Write a shard, complete whenever it exists.

    Args:
        table: the columns of `code_parts.columns`; `held_out` (bool, from the sources) is added as the last one.
        also: an item that is held out too, see `held_out_of_few`.
    """
    import pyarrow as pa

    held_out = pa.array([is_held_out(source) or source == also for source in table["source"].to_pylist()], pa.bool_())
    (batch,) = table.append_column("held_out", held_out).combine_chunks().to_batches()

    def write(path: Path) -> None:
        with pa.ipc.new_file(str(path), batch.schema) as writer:
            writer.write_batch(batch)

    write_whole(file, write)


def describe(file: Path) -> dict:
    """The manifest's entry of a shard.

    Returns:
        {"file", "rows", "held_out" (their number), "bytes" (size of the file), "codes_at", "held_out_at" (places of the
        first code and of the bits of the column held_out, in bytes), "sha256"}.
    Raises:
        ValueError: not a complete shard.
    """
    import pyarrow as pa

    try:
        whole, batch = _mapped(file)
    except pa.ArrowException as error:
        raise damaged(file) from error
    held_out = batch["held_out"]
    places = [array.buffers()[1].address - whole.address for array in (batch["codes"].values, held_out)]
    return {
        "file": file.name,
        "rows": batch.num_rows,
        "held_out": held_out.true_count,
        "bytes": whole.size,
        "codes_at": places[0],
        "held_out_at": places[1],
        "sha256": sha256(file),
    }


def read_column(file: Path, column: str) -> np.ndarray:
    """A column of a shard of either format: codes as uint16 (N, codes of a row), others (N,).

    Raises:
        FileNotFoundError: no such shard. ValueError: it is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq  # what datasets reads parquet with; its load_dataset asks the Hub for every file

    if not file.is_file():
        raise missing(file)
    try:
        if file.suffix == OLD_SUFFIX:
            values = pq.read_table(file, columns=[column])[column].combine_chunks()
        else:
            values = _mapped(file)[1][column]
    except pa.ArrowException as error:
        raise damaged(file) from error
    if column != "codes":
        return values.to_numpy(zero_copy_only=False)
    return values.flatten().to_numpy().reshape(len(values), -1)


def _mapped(file: Path) -> tuple[pa.Buffer, pa.RecordBatch]:
    """(the whole file, its record batch), mapped into memory as long as either lives."""
    import pyarrow as pa

    with pa.memory_map(str(file)) as stream:
        whole = stream.read_buffer()
    return whole, pa.ipc.open_file(whole).get_batch(0)


class Shard:
    """Single rows of a shard, each read by itself. The file is open as long as the object lives.

    Rows are read with `pread`, not through a memory map: a page fault would hold Python's lock while the disk works,
    reads 128 KB around a row of 8, and kills the process if the file was cut meanwhile.

    Args:
        entry: of the manifest, as `describe` makes it. width: codes of a row.
    Raises:
        FileNotFoundError: no such shard. ValueError: its size is not the manifest's.
    """

    def __init__(self, folder: Path, entry: dict, width: int):
        self._place(os.path.join(folder, entry["file"]), entry, width)
        try:
            self._file = os.open(self.name, os.O_RDONLY)
        except FileNotFoundError as error:
            raise missing(self.name) from error
        if os.fstat(self._file).st_size != entry["bytes"]:
            raise damaged(self.name)

    def _place(self, name: str, entry: dict, width: int) -> None:
        self.name, self.rows, self._file = name, entry["rows"], None
        self._row, self._codes_at, self._held_out_at = 2 * width, entry["codes_at"], entry["held_out_at"]

    def __del__(self):
        if self._file is not None:
            os.close(self._file)

    def codes(self, row: int) -> np.ndarray:
        """The codes of a row, uint16 (width,). Raises ValueError if the file ends before."""
        import numpy as np

        return np.frombuffer(self._bytes(self._row, self._codes_at + row * self._row), np.uint16)

    def kept(self) -> np.ndarray:
        """The numbers of the rows that are not held out, ascending."""
        import numpy as np

        bits = np.frombuffer(self._bytes(-(-self.rows // 8), self._held_out_at), np.uint8)
        return np.unpackbits(~bits, count=self.rows, bitorder="little").view(np.bool_).nonzero()[0]

    def _bytes(self, count: int, place: int) -> bytes:
        found = os.pread(self._file, count, place)
        if len(found) != count:
            raise damaged(self.name)
        return found


class RemoteShard(Shard):
    """Single rows of a shard under a URL, of which only the blocks around them are fetched; see `Shard`."""

    def __init__(self, folder: str, entry: dict, width: int):
        from tokenization.storage.blocks import Blocks

        self._place(join(folder, entry["file"]), entry, width)
        self._blocks = Blocks(self.name, entry["sha256"], entry["bytes"])

    def fetch(self, rows: Iterable[int]) -> None:
        """Fetch these rows together. Raises OSError if that fails."""
        self._blocks.fetch([(self._codes_at + row * self._row, self._row) for row in rows])

    def _bytes(self, count: int, place: int) -> bytes:
        found = self._blocks.read(place, count)
        if len(found) != count:
            raise damaged(self.name)
        return found


class OldShard:
    """The rows of a parquet shard, which is decoded whole; see `Shard`."""

    def __init__(self, folder: Path, entry: dict, width: int):
        self.name = folder / entry["file"]
        self._codes = read_column(self.name, "codes")
        if self._codes.shape != (entry["rows"], width):
            raise damaged(self.name)

    def codes(self, row: int) -> np.ndarray:
        return self._codes[row]


def is_old(entry: dict) -> bool:
    """Whether the manifest's entry is of a parquet shard, which has no places and no hold-out in it."""
    return entry["file"].endswith(OLD_SUFFIX)


def missing(file: str | Path) -> FileNotFoundError:
    return FileNotFoundError(f"The shard {file} named by the manifest is missing; run toto tokenize again.")


def damaged(file: str | Path) -> ValueError:
    return ValueError(f"{file} is damaged; check it with toto tokenize --verify {os.path.dirname(file) or '.'}.")
