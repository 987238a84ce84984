"""Rows reach the shards in two passes that read in order; their order follows from the seed and their number alone."""

import io
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tokenization.shards import code_parts, shuffle
from tokenization.shards.code_parts import BATCH_ROWS, PartWriter, plan
from tokenization.shards.shuffle import write_shards
from tokenization.video import Clip

WIDTH, ROWS = 512, (300, 0, 2 * BATCH_ROWS, 1, 400)
ROW_BYTES = 2 * WIDTH


@pytest.fixture(scope="module")
def parts_folder(tmp_path_factory) -> Path:
    """Parts with these numbers of rows; every code of a row is its number."""
    folder, number = tmp_path_factory.mktemp("parts"), 0
    for chunk, rows in enumerate(ROWS):
        writer = PartWriter(folder, f"000000-{chunk:06d}", WIDTH, [])
        for _ in range(rows):
            writer.add(number, Clip(None, "video", number), np.full(WIDTH, number, np.uint16))
            number += 1
        writer.close(rows, shard_ends=chunk == len(ROWS) - 1)
    return folder


def copied(source: Path, folder: Path) -> list[tuple[str, int]]:
    """Copy the parts to folder/parts; returns the plan."""
    shutil.copytree(source, folder / "parts")
    return plan(folder / "parts", 1, None)[0]


def shards_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.arrow"))}


def made(source: Path, folder: Path, bucket_rows: int, ranks=(0,), seed=0) -> dict[str, bytes]:
    """The shards of 100 rows that these ranks write, one after the other."""
    parts = copied(source, folder)
    for rank in ranks:
        order = ("train", 100, seed, WIDTH)
        entries = write_shards(folder / "parts", folder, parts, *order, rank, len(ranks), bucket_rows * ROW_BYTES)
    assert [entry["file"] for entry in entries] == sorted(file.name for file in folder.glob("*.arrow"))
    return shards_of(folder)


def test_the_order_is_that_of_the_seed_however_the_work_is_divided(parts_folder, tmp_path):
    whole = made(parts_folder, tmp_path / "whole", 10**6)
    assert made(parts_folder, tmp_path / "buckets", 200) == whole
    assert made(parts_folder, tmp_path / "a shard at least", 1) == whole
    assert made(parts_folder, tmp_path / "ranks", 200, ranks=(4, 0, 2, 1, 3)) == whole
    tables = [pa.ipc.open_file(content).read_all() for content in whole.values()]
    order = np.random.default_rng(0).permutation(sum(ROWS))
    assert np.array_equal(np.concatenate([table["start"] for table in tables]), order)
    codes = np.concatenate([table["codes"].combine_chunks().flatten() for table in tables]).reshape(-1, WIDTH)
    assert (codes == order[:, None]).all()
    assert made(parts_folder, tmp_path / "seed", 200, seed=1) != whole


class Recorder(io.FileIO):
    """A file that notes what is read of it: (place, bytes)."""

    def __init__(self, path):
        super().__init__(path)
        self.reads = []

    def read(self, size=-1):
        place, content = self.tell(), super().read(size)
        self.reads.append((place, len(content)))
        return content


def test_every_row_is_read_twice_and_in_order(parts_folder, tmp_path, monkeypatch):
    opened: list[tuple[Path, Recorder]] = []

    def recorded(path):
        opened.append((path, Recorder(path)))
        return pa.PythonFile(opened[-1][1])

    monkeypatch.setattr(code_parts, "open_arrow", recorded)
    monkeypatch.setattr(shuffle, "open_arrow", recorded)
    made(parts_folder, tmp_path, 200)
    rows, units = sum(ROWS), -(-sum(ROWS) // 200)
    passes = {"parts": 0, shuffle.DEALT: 0}  # bytes
    bodies = dict.fromkeys(passes, 0)  # reads of rows
    for path, file in opened:
        places = [place for place, size in file.reads if size >= ROW_BYTES]
        assert places == sorted(places), "no going back"
        name = path.parent.name
        bodies[name] += len(places)
        passes[name] += sum(size for _, size in file.reads)
    # A stretch begins and ends inside a batch of a part, which is then read for both.
    assert rows * ROW_BYTES < passes["parts"] < (rows + units * BATCH_ROWS) * ROW_BYTES * 1.1
    assert rows * ROW_BYTES < passes[shuffle.DEALT] < rows * ROW_BYTES * 1.2
    assert bodies["parts"] <= sum(-(-count // BATCH_ROWS) for count in ROWS) + units
    assert bodies[shuffle.DEALT] <= units**2 < rows / 20, "a piece of every stretch for every bucket"


def test_a_task_whose_input_another_has_used_up_goes_on_with_its_output(parts_folder, tmp_path, monkeypatch):
    whole, folder = made(parts_folder, tmp_path / "whole", 200), tmp_path / "out"
    parts = copied(parts_folder, folder)
    args = (folder / "parts", folder, parts, "train", 100, 0, WIDTH)
    read_rows, calls = shuffle.read_rows, []

    def overtaken(*where):
        calls.append(where)
        if len(calls) == 2:  # while the first task reads its second stretch, another one does all
            write_shards(*args, rank=1, world=2, bucket_bytes=200 * ROW_BYTES)
        return read_rows(*where)

    monkeypatch.setattr(shuffle, "read_rows", overtaken)
    entries = write_shards(*args, rank=0, world=2, bucket_bytes=200 * ROW_BYTES)
    assert shards_of(folder) == whole and len(entries) == len(whole)
    (folder / shuffle.BUCKETS / "000002.json").unlink()
    (folder / shuffle.DEALT / "000005.arrow").unlink()
    with pytest.raises(OSError, match=r"parts/000000-00000.\.arrow"):  # but what nobody has made is missed
        write_shards(*args, bucket_bytes=200 * ROW_BYTES)
