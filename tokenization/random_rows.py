"""Rows of local parquet files in random order: row numbers are drawn first, then only their row groups are read."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np


def larger_parquet(files: list[str], items: int) -> list[str]:
    """The files, if they are local parquet with more than so many rows, so that there is a choice; else none."""
    import pyarrow.parquet as pq

    local = all(file.endswith(".parquet") and Path(file).is_file() for file in files)
    return files if local and sum(pq.read_metadata(file).num_rows for file in files) > items else []


def random_rows(files: list[str], seed: int, at_a_time: int) -> Iterator[tuple[int, int, dict]]:
    """Every row of the files once, as (file number, row number in it, row).

    The order is a seeded permutation of the rows of all files, sorted within each `at_a_time` of them, so that a row
    group (100 or 1,000 rows as datasets writes pictures) is read once for all that is wanted of it. Pass the number of
    rows that will be taken; 1 makes the order fully random, at one row group read for each row.
    """
    import pyarrow.parquet as pq

    ends = np.cumsum([pq.read_metadata(file).num_rows for file in files])
    order = np.random.default_rng(seed).permutation(ends[-1])
    for start in range(0, len(order), at_a_time):
        drawn = np.sort(order[start : start + at_a_time])
        for number, of_file in enumerate(np.split(drawn, np.searchsorted(drawn, ends[:-1]))):
            first = ends[number - 1] if number else 0
            for row, content in _read(files[number], of_file - first):
                yield number, row, content


def _read(file: str, rows: np.ndarray) -> Iterator[tuple[int, dict]]:
    """Rows of one file by their sorted numbers: (number, row)."""
    import pyarrow.parquet as pq

    if not len(rows):
        return
    with pq.ParquetFile(file) as parquet:
        counts = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
        ends = np.cumsum(counts)
        for group, inside in enumerate(np.split(rows, np.searchsorted(rows, ends[:-1]))):
            if len(inside):
                table = parquet.read_row_group(group).take(inside - (ends[group] - counts[group]))
                yield from zip(inside.tolist(), table.to_pylist(), strict=True)
