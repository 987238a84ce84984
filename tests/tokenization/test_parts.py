"""Parts follow from the data and the flags alone, whoever makes them, and making and shuffling them takes no memory."""

import contextlib
import io
import json
import threading
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from tqdm import tqdm

from tokenization.sampling import Sampling
from tokenization.shards.code_parts import PartWriter, plan
from tokenization.shards.encode import AHEAD, Encoder, PartEncoder, encode_parts
from tokenization.shards.files import describe
from tokenization.shards.parts import FinishedParts, steps
from tokenization.shards.shuffle import write_shards
from tokenization.sources.open import open_source
from tokenization.video import Clip


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """17 pictures in three parquet files, two crops of each; pictures 3, 9 and 16 cannot be read."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    contents = []
    for index in range(17):
        file = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (16, 24, 3), dtype=np.uint8)).save(file, "png")
        contents.append(b"noise" if index in (3, 9, 16) else file.getvalue())
    for number, rows in enumerate((range(7), range(7, 8), range(8, 17))):
        column = [{"bytes": contents[row], "path": None} for row in rows]
        Dataset.from_dict({"image": column}, features=Features({"image": ImageFeature()})).to_parquet(
            folder / f"train-{number}.parquet"
        )
    return open_source(str(folder), sampling=Sampling(resolution=16, crops=2))


class RedProcessor:
    """A tokenizer that costs nothing: a code is the red of every fourth pixel."""

    grid, resolution, visual_tokenizer = (4, 4), 16, SimpleNamespace(device=torch.device("cpu"))

    def encode_batch(self, frames, exact):
        return frames[:, ::4, ::4, 0].long()


@pytest.fixture(scope="module")
def encoder():
    return Encoder(RedProcessor(), batch_frames=4, exact=True)


def make_parts(source, encoder, folder, limit=None, ranks=(0,)):
    """Parts of at most three pictures, rank by rank; the counts and the rows that the shards would have."""
    folder.mkdir(exist_ok=True)
    for rank in ranks:
        sizes = {"num_frames": 1, "items_per_part": 3, "limit": limit, "threads": 2}
        encode_parts(source, encoder, folder, tqdm(disable=True), **sizes, rank=rank, world=len(ranks))
    parts, counts = plan(folder, source.num_shards, limit)
    (folder / "out").mkdir(exist_ok=True)
    (shard,) = write_shards(folder, folder / "out", parts, "train", 100, seed=0, width=16)
    return counts, pa.ipc.open_file(folder / "out" / shard["file"]).read_all()


def test_parts_hold_the_rows_of_the_source_in_its_order(source, encoder, tmp_path):
    counts, table = make_parts(source, encoder, tmp_path / "parts")
    clips = list(source)
    assert source.num_shards == 3 and not source.lists_paths
    assert counts == {"rows": 28, "items": 17, "kept": 14, "skipped": source.skipped}
    assert [entry["source"] for entry in source.skipped] == ["train[0:3]", "train[2:1]", "train[2:8]"]
    frames = torch.from_numpy(np.concatenate([clip.frames for clip in clips]))
    codes = encoder.processor.encode_batch(frames, True).flatten(1).tolist()
    order = np.random.default_rng(0).permutation(28)
    assert table["source"].to_pylist() == [clips[row].source for row in order]
    assert table["codes"].to_pylist() == [codes[row] for row in order]
    files = ["000000-000000", "000000-000001", "000000-000002", "000001-000000"]
    files += ["000002-000000", "000002-000001", "000002-000002"]
    assert sorted(FinishedParts(tmp_path / "parts")) == files, "no part lies in two files"


@pytest.mark.parametrize("ranks", [[0, 1], [3, 2, 1, 0]])  # fewer than the files, and more
def test_who_makes_them_does_not_matter(source, encoder, tmp_path, ranks):
    for limit in (None, 1, 8, 9, 12, 13, 15, 28, 100):
        counts, table = make_parts(source, encoder, tmp_path / f"one {limit}", limit)
        assert counts["rows"] == min(limit or 28, 28)
        same = make_parts(source, encoder, tmp_path / f"shared {limit}", limit, ranks)
        assert same[0] == counts and same[1].equals(table)


class Killed(BaseException):
    """Nothing in the project catches it."""


def test_a_kill_at_any_rename_leaves_no_json_without_its_file(source, encoder, tmp_path, monkeypatch):
    """A JSON says that a part, or the shards of a bucket, are finished, so it is renamed after them."""
    expected = make_parts(source, encoder, tmp_path / "whole")
    rename, renames = Path.replace, []

    def killed(self, target):
        if len(renames) == last:
            raise Killed
        renames.append(Path(target).name)
        return rename(self, target)

    last, done = 0, False
    while not done:
        folder = tmp_path / f"killed at {last}"
        renames.clear()
        with monkeypatch.context() as patch, contextlib.suppress(Killed):
            patch.setattr(Path, "replace", killed)
            make_parts(source, encoder, folder)
            done = True
        if not (folder / "out" / "buckets").is_dir():  # the files of the parts go when their rows are dealt
            for name, info in FinishedParts(folder).items():
                assert pa.ipc.open_file(folder / f"{name}.arrow").read_all().num_rows == info["rows"], renames
        for bucket in (folder / "out").glob("buckets/*.json"):
            for entry in json.loads(bucket.read_text()):
                assert describe(folder / "out" / entry["file"]) == entry, renames
        counts, table = make_parts(source, encoder, folder)
        assert counts == expected[0] and table.equals(expected[1]), renames
        last += 1
    assert len(renames) == 2 * 7 + 3  # parts, the stretch that is dealt, a shard, its bucket


def test_a_limit_encodes_no_more_than_it_needs(source, encoder, tmp_path):
    make_parts(source, encoder, tmp_path / "parts", limit=7)
    assert sum(info["rows"] for info in FinishedParts(tmp_path / "parts").values()) == 7


def test_ranks_share_the_items_and_read_only_their_files(source, monkeypatch):
    opened = []
    list_items = source.list_items
    monkeypatch.setattr(source, "list_items", lambda shard, wanted: opened.append(shard) or list_items(shard, wanted))

    def share(rank, world, finished):
        return [(step.part, step.index) for step in steps(source, 3, rank, world, finished)]

    assert [len(share(rank, 3, {})) for rank in range(3)] == [7, 1, 9]
    assert opened == [0, 1, 2], "a rank opens its own file"
    everything = share(0, 1, {})
    assert sorted(entry for rank in range(5) for entry in share(rank, 5, {})) == everything
    opened.clear()
    done = {"000000-000000": {"shard_ends": False}, "000001-000000": {"shard_ends": True}}
    assert share(0, 1, done) == [entry for entry in everything if entry[0] not in done] and opened == [0, 2]


def peak_memory(folder, rows, width=1024):
    """Bytes that `rows` rows of codes take at most on their way into parts and on into shards of 500."""
    (folder / "parts").mkdir(parents=True)
    usual = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(usual)
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        writer = PartWriter(folder / "parts", "000000-000000", width, [])
        for start in range(rows):
            writer.add(start, Clip(None, "video", start), np.full(width, start, np.uint16))
        writer.close(rows, shard_ends=True)
        parts, _ = plan(folder / "parts", 1, None)
        write_shards(folder / "parts", folder, parts, "train", 500, seed=0, width=width, bucket_bytes=2**21)
        return tracemalloc.get_traced_memory()[1] + pool.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(usual)


def test_memory_does_not_grow_with_the_rows(tmp_path):
    few, many = peak_memory(tmp_path / "few", 1500), peak_memory(tmp_path / "many", 9000)
    assert many < 1.2 * few and many < 9000 * 2048
    starts = []
    for file in sorted((tmp_path / "many").glob("*.arrow")):
        table = pa.ipc.open_file(file).read_all()
        assert np.array_equal(table["codes"].combine_chunks().flatten()[::1024], table["start"])
        starts += table["start"].to_pylist()
    assert sorted(starts) == list(range(9000)) and abs(np.corrcoef(starts, np.arange(9000))[0, 1]) < 0.1


def test_batches_are_filled_while_others_are_encoded(tmp_path):
    class Slow(RedProcessor):
        may_go = threading.Event()

        def encode_batch(self, frames, exact):
            assert self.may_go.wait(60), "the caller waits for this batch, and not for the next one to be filled"
            return super().encode_batch(frames, exact)

    encoder = Encoder(Slow(), batch_frames=4, exact=True)
    part = PartEncoder(encoder, tmp_path, "000000-000000", [], num_frames=1)
    frames = np.arange(4 * AHEAD + 7, dtype=np.uint8)[:, None, None, None, None] + np.zeros((1, 16, 16, 3), np.uint8)
    for number in range(4 * AHEAD + 3):
        part.add(number, Clip(frames[number], str(number)))
    assert encoder.frames == 0 and len(part.at_work) == AHEAD and part.filled == 3
    Slow.may_go.set()
    for number in range(4 * AHEAD + 3, len(frames)):
        part.add(number, Clip(frames[number], str(number)))
    part.close(len(frames), shard_ends=True)
    codes = pa.ipc.open_file(tmp_path / "000000-000000.arrow").read_all()["codes"].to_pylist()
    assert codes == [[number] * 16 for number in range(len(frames))]
    assert encoder.frames == len(frames) and 0 < encoder.seconds <= encoder.wall_seconds
    encoder.close()


def test_an_encoder_that_fails_ends_the_run(source, tmp_path):
    class Broken(RedProcessor):
        def encode_batch(self, frames, exact):
            raise RuntimeError("out of memory")

    encoder = Encoder(Broken(), batch_frames=4, exact=True)
    with pytest.raises(RuntimeError, match="out of memory"):
        make_parts(source, encoder, tmp_path / "parts")
    assert not list((tmp_path / "parts").iterdir())
