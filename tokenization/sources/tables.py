"""Rows of parquet and arrow files, in order or at random, of chosen columns only.

A parquet file may be a URL; of it, only what is read is fetched: the footer, and the chosen columns of a row group when
its turn comes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from tokenization.storage.blocks import BlockFile
from tokenization.storage.remote import is_remote

# Rows of a parquet file that are in memory at a time; each may hold a video.
BATCH = 16


def is_arrow(file: str) -> bool:
    """Whether it is an arrow file, of `datasets.save_to_disk` or of its cache; else it is a parquet file."""
    return file.lower().endswith(".arrow")


@contextmanager
def _arrow(file: str):
    """The batches and schema of an arrow file, which is a stream (as `datasets` writes it) or has a footer."""
    import pyarrow as pa

    with pa.memory_map(file) as stream:
        is_footed = stream.read(6) == b"ARROW1"
        stream.seek(0)
        if is_footed:
            reader = pa.ipc.open_file(stream)
            yield (reader.get_batch(k) for k in range(reader.num_record_batches)), reader.schema
        else:
            reader = pa.ipc.open_stream(stream)
            yield reader, reader.schema


@contextmanager
def _parquet(file: str):
    """A parquet file, a path or a URL."""
    import pyarrow.parquet as pq

    if not is_remote(file):
        with pq.ParquetFile(file) as parquet:
            yield parquet
        return
    with BlockFile(file) as source, pq.ParquetFile(source, pre_buffer=True) as parquet:
        yield parquet


def features_of(file: str):
    """The `datasets.Features` of a file.

    Raises:
        ValueError: the file is damaged.
    """
    import pyarrow as pa
    from datasets import Features

    try:
        if is_arrow(file):
            with _arrow(file) as (_, schema):
                return Features.from_arrow_schema(schema)
        with _parquet(file) as parquet:
            return Features.from_arrow_schema(parquet.schema_arrow)
    except pa.ArrowException as error:
        raise ValueError(f"{file} is damaged, or is not a parquet or arrow file: {_first_line(error)}") from error


def count_rows(file: str) -> int:
    """The number of rows of a file."""
    import pyarrow.parquet as pq

    if is_arrow(file):
        with _arrow(file) as (batches, _):
            return sum(batch.num_rows for batch in batches)
    return pq.read_metadata(file).num_rows


def read_rows(file: str, columns: list[str]) -> Iterator[dict]:
    """The rows of a file in order; a column that it lacks is left out.

    Raises:
        ValueError: the file is damaged.
    """
    import pyarrow as pa

    try:
        if is_arrow(file):
            with _arrow(file) as (batches, schema):
                has = [name for name in columns if name in schema.names]
                for batch in batches:
                    for start in range(0, batch.num_rows, BATCH):
                        yield from batch.slice(start, BATCH).select(has).to_pylist()
            return
        with _parquet(file) as parquet:
            for group in range(parquet.num_row_groups):
                for batch in parquet.iter_batches(BATCH, row_groups=[group], columns=columns):
                    yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise ValueError(f"{file} is damaged: {_first_line(error)}") from error


def random_rows(files: list[str], columns: list[str], seed: int, at_a_time: int) -> Iterator[tuple[int, int, dict]]:
    """Every row of the files once, in random order, as (file number, row number in the file, row).

    The order is a seeded permutation of the rows of all files, sorted within each `at_a_time` rows of it. A row group
    (100 or 1,000 rows in files of pictures that `datasets` wrote) is then read once for all of its rows among them.
    Pass the number of rows that will be taken; 1 makes the order fully random and reads a row group for every row.
    """
    ends = np.cumsum([count_rows(file) for file in files])
    order = np.random.default_rng(seed).permutation(ends[-1])
    for start in range(0, len(order), at_a_time):
        drawn = np.sort(order[start : start + at_a_time])
        for number, of_file in enumerate(np.split(drawn, np.searchsorted(drawn, ends[:-1]))):
            first = ends[number - 1] if number else 0
            for row, content in _take(files[number], columns, of_file - first):
                yield number, row, content


def _take(file: str, columns: list[str], rows: np.ndarray) -> Iterator[tuple[int, dict]]:
    """Rows of one file by their sorted numbers: (number, row)."""
    import pyarrow.parquet as pq

    if not len(rows):
        return
    if is_arrow(file):
        with _arrow(file) as (batches, schema):
            has, first = [name for name in columns if name in schema.names], 0
            for batch in batches:
                inside = rows[(rows >= first) & (rows < first + batch.num_rows)]
                for row in inside.tolist():
                    yield row, batch.slice(row - first, 1).select(has).to_pylist()[0]
                first += batch.num_rows
        return
    with pq.ParquetFile(file) as parquet:
        counts = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        ends = np.cumsum(counts)
        for group, inside in enumerate(np.split(rows, np.searchsorted(rows, ends[:-1]))):
            if len(inside):
                table = parquet.read_row_group(group, columns=columns).take(inside - (ends[group] - counts[group]))
                yield from zip(inside.tolist(), table.to_pylist(), strict=True)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
