"""Rows read one by one: the same as of parquet shards for any world, after conversion, a kill, and read ahead."""

import hashlib
import json
import shutil
import subprocess
import sys
import threading
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_dataset
from tiny_run import CONFIG

from modeling_toto import TotoConfig
from tokenization.files import sha256
from tokenization.shards import convert as converting
from tokenization.shards import files
from tokenization.shards.files import describe, is_held_out, read_column
from tokenization.tokenize_dataset import main, read_manifest, verify
from training.args import Source
from training.rows.frames import prefetch
from training.rows.mixture import RowStream, open_rows, stacked
from training.rows.shard_rows import ShardRows, read_codes, validation_rows

CONFIG = TotoConfig.from_preset("tiny", **CONFIG)


def as_parquet(shards, folder, name="train-{:05d}.parquet"):
    """The folder as an earlier version wrote it."""
    shutil.copytree(shards, folder)
    manifest = read_manifest(folder) | {"format": 1}
    for number, entry in enumerate(manifest["shards"]):
        table = pa.ipc.open_file(folder / entry["file"]).read_all().drop_columns("held_out")
        (folder / entry["file"]).unlink()
        file = folder / name.format(number)
        pq.write_table(table, file, row_group_size=1024)
        manifest["shards"][number] = {"file": file.name, "rows": entry["rows"], "sha256": sha256(file)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    card = folder / "README.md"
    card.write_text(card.read_text().replace("train-*.arrow", "train-*.parquet"))
    return folder


@pytest.fixture(scope="module")
def old(shards, tmp_path_factory):
    return as_parquet(shards, tmp_path_factory.mktemp("old") / "shards")


def streams(folders, world, at_end="repeat"):
    weights = [1] if len(folders) == 1 else [0.3, 0.7]
    settings = [
        Source(str(f), w, name=f"s{n}", at_end=at_end) for n, (f, w) in enumerate(zip(folders, weights, strict=True))
    ]
    return [
        RowStream([open_rows(setting, CONFIG, 7, 32, None) for setting in settings], 7, rank, world)
        for rank in range(world)
    ]


def in_order(each, count):
    """(source, row) of the next `count` rows of the run, from the streams of all ranks."""
    parts = [stream.take(count // len(each)) for stream in each]
    return [
        (source, tuple(row.tolist())) for g in range(count) for source, row in [parts[g % len(each)][g // len(each)]]
    ]


def direct(folder, seed, k):
    """Row k without any class of rows: what version 1 did, in a few lines."""
    import numpy as np

    manifest = read_manifest(folder)
    kept, codes = [], []
    for entry in manifest["shards"]:
        kept.append(np.flatnonzero([not is_held_out(name) for name in read_column(folder / entry["file"], "source")]))
        codes.append(read_column(folder / entry["file"], "codes"))
    epoch, index = divmod(k, sum(map(len, kept)))
    for number in np.random.default_rng([seed, epoch]).permutation(len(kept)):
        if index < len(kept[number]):
            rows = kept[number]
            if epoch:
                rows = np.random.default_rng([seed, epoch, number]).permutation(rows)
            return [1, *(codes[number][rows[index]].astype(int) + 64).tolist(), 2]
        index -= len(kept[number])


def test_rows_are_those_of_the_first_version(shards, old):
    for folder in (shards, old):
        rows = ShardRows(folder, CONFIG, seed=7)
        for k in (0, 1, 63, 64, 200):  # of the first, second and fifth epoch
            assert rows.row(k).tolist() == direct(folder, 7, k)
        assert torch.equal(validation_rows(folder, None, CONFIG), validation_rows(shards, None, CONFIG))
        assert (read_codes(folder, "train") == read_codes(shards, "train")).all()


@pytest.mark.parametrize("world", [1, 2, 64])
def test_any_world_reads_the_same_rows_of_both_formats(shards, old, world):
    expected = in_order(streams([old, old], 1), 256)
    rows = ShardRows(old, CONFIG, seed=7)
    for number in range(2):  # every source counts on by itself
        found = [row for source, row in expected if source == number]
        assert found == [tuple(rows.row(k).tolist()) for k in range(len(found))]
    assert in_order(streams([shards, shards], world), 256) == expected
    assert in_order(streams([old, shards], world), 256) == expected


@pytest.mark.parametrize("ahead", [False, True])
def test_a_stream_that_reads_ahead_resumes_in_the_middle(shards, ahead, monkeypatch):
    """The position is that of the rows that were taken, not of those that were read."""
    whole = in_order(streams([shards, shards], 1), 192)
    (stream,) = streams([shards, shards], 1)
    fill, read = ShardRows.fill, []
    monkeypatch.setattr(ShardRows, "fill", lambda self, k, ids: read.append(k) or fill(self, k, ids))
    with stream.reading_ahead(pin=False):
        assert in_order([stream], 64) == whole[:64]
        wait_for(lambda: len(read) > 64)  # the thread is ahead
        state = json.loads(json.dumps(stream.state_dict()))
        assert state["drawn"] == 64 and sum(fact["rows"] for fact in stream.shares().values()) == 64
        assert in_order([stream], 32) == whole[64:96]  # another number of rows restarts it
    assert in_order([stream], 32) == whole[96:128]
    for world in (1, 2, 3, 64):  # 64 rows were taken, which three processes do not divide
        resumed = streams([shards, shards], world)
        for each in resumed:
            each.load_state_dict(state)
        if ahead and world < 64:
            contexts = [each.reading_ahead(pin=False) for each in resumed]
            for context in contexts:
                context.__enter__()
        count = 128 // world * world
        assert in_order(resumed, count) == whole[64 : 64 + count]


def wait_for(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.02)


@pytest.fixture
def threads():
    """Function that gives the reading threads that were started since; earlier tests may have left some."""
    earlier = set(threading.enumerate())
    return lambda: [each for each in threading.enumerate() if each.name == "prefetch" and each not in earlier]


def test_the_thread_stops_at_the_end_and_its_errors_arrive(shards, tmp_path, threads):
    (stream,) = streams([shards], 1, at_end="stop")
    with stream.reading_ahead(pin=False):
        rows = 0
        while stream.take(8) is not None:
            rows += 8
        assert stream.take(8) is None
    assert rows == len(read_codes(shards, "train")) // 8 * 8
    wait_for(lambda: not threads())
    (stream,) = streams([shards], 1)
    with stream.reading_ahead(pin=False):
        stream.take(4)
        assert threads()
    wait_for(lambda: not threads())

    copy = shutil.copytree(shards, tmp_path / "copy")
    (stream,) = streams([copy], 1)
    for entry in read_manifest(copy)["shards"]:
        (copy / entry["file"]).write_bytes(b"ARROW1")
    with stream.reading_ahead(pin=False):
        for _ in range(2):
            with pytest.raises(ValueError, match="is damaged; check it with toto tokenize --verify"):
                stream.take(4)
    wait_for(lambda: not threads())


def test_a_dropped_or_closed_prefetch_ends_and_keeps_its_order(threads):
    numbers = prefetch(iter(range(10**9)), depth=2)
    assert [next(numbers) for _ in range(1000)] == list(range(1000)) and threads()
    numbers.close()
    wait_for(lambda: not threads())

    def fails():
        yield 1
        raise KeyError("here")

    numbers = prefetch(fails())
    assert next(numbers) == 1
    with pytest.raises(KeyError, match="here"):
        next(numbers)
    wait_for(lambda: not threads())


def test_a_process_that_reads_ahead_exits(shards):
    """Even without leaving the context, at an error for example."""
    script = f"""
import sys
sys.path[:0] = {[path for path in sys.path if path]!r}
from test_reading_rows import streams
(stream,) = streams([{str(shards)!r}], 1)
context = stream.reading_ahead(pin=False)
context.__enter__()
stream.take(4)
print("done")
raise SystemExit(3)
"""
    child = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200)
    assert child.returncode == 3 and child.stdout.strip() == "done", child.stderr[-2000:]


def test_rows_of_a_step_are_one_tensor(shards):
    (stream,) = streams([shards], 1)
    rows = [row for _, row in stream.take(8)]
    part = stacked(rows[2:6])
    assert part.data_ptr() == rows[2].data_ptr() and torch.equal(part, torch.stack(rows[2:6]))
    for odd in (rows[::2], rows[::-1], [*rows[:2], stream.take(1)[0][1]], [row.clone() for row in rows]):
        assert torch.equal(stacked(odd), torch.stack(odd)) and stacked(odd).data_ptr() != odd[0].data_ptr()


def test_start_up_opens_no_shard(shards, monkeypatch):
    opened = []
    monkeypatch.setattr(files, "_mapped", lambda file: opened.append(file))
    monkeypatch.setattr(files.Shard, "__init__", lambda *args: opened.append(args))
    monkeypatch.setattr(files.Shard, "__del__", lambda self: None)
    (stream,) = streams([shards], 1)
    assert 40 < stream.sources[0].rows_per_epoch < 48
    assert not opened and stream.fingerprints


@pytest.mark.parametrize("size", [0, 5, 300, -1])
def test_a_cut_shard_is_one_sentence(shards, tmp_path, size):
    copy = shutil.copytree(shards, tmp_path / "copy")
    file = copy / read_manifest(copy)["shards"][0]["file"]
    file.write_bytes(file.read_bytes()[:size])
    damaged = r"train-00000\.arrow is damaged; check it with toto tokenize --verify [^\n]*$"
    rows = ShardRows(copy, CONFIG, 0)
    with pytest.raises(ValueError, match=damaged):
        for k in range(48):
            rows.row(k)
    for read in (lambda: read_column(file, "codes"), lambda: describe(file), lambda: read_codes(copy, "train")):
        with pytest.raises(ValueError, match=damaged):
            read()
    with pytest.raises(ValueError, match="its sha256 differs"):
        verify(copy)


@pytest.mark.parametrize("change", [{"codes_at": 8}, {"held_out": 0}, {"held_out_at": 8}])
def test_a_wrong_manifest_is_found(shards, tmp_path, change):
    copy = shutil.copytree(shards, tmp_path / "copy")
    manifest = read_manifest(copy)
    manifest["shards"][0] |= change
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=f"has another {next(iter(change))} than its manifest lists"):
        verify(copy)


def content(folder):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.glob("train-*")}


def test_a_converted_folder_is_the_one_written_today(shards, old, tmp_path, capsys):
    folder = shutil.copytree(old, tmp_path / "copy")
    before, fingerprint = in_order(streams([folder], 1), 96), ShardRows(folder, CONFIG, 0).fingerprint
    main(["--convert", str(folder)])
    assert "converted 3 of 3 shards" in capsys.readouterr().out
    assert content(folder) == content(shards)
    assert read_manifest(folder)["shards"] == read_manifest(shards)["shards"]
    assert in_order(streams([folder], 1), 96) == before
    assert ShardRows(folder, CONFIG, 0).fingerprint == fingerprint, "a run that is resumed sees no other data"
    assert "checksums and code range are correct" in verify(folder)
    assert load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache")).num_rows == 48
    main(["--convert", str(folder)])
    assert "converted 0 of 3 shards" in capsys.readouterr().out and content(folder) == content(shards)


@pytest.mark.parametrize(
    ("step", "call"), [("write_shard", 2), ("describe", 2), ("write_whole", 2), ("_remove_old", 2), ("_remove_old", 3)]
)
def test_a_killed_conversion_goes_on(shards, old, tmp_path, monkeypatch, step, call):
    folder = shutil.copytree(old, tmp_path / "copy")
    before = in_order(streams([folder], 1), 96)
    monkeypatch.setattr(converting, "AT_A_TIME", 1)
    action, calls = getattr(converting, step), []

    def killed(*args):
        calls.append(args)
        if len(calls) == call:
            raise KeyboardInterrupt
        return action(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(converting, step, killed)
        converting.convert(folder)
    assert in_order(streams([folder], 1), 96) == before, "half converted, it is read as before"
    done = {file: file.stat().st_mtime_ns for file in folder.glob("*.arrow")}
    assert 0 < len(done) <= call
    assert len(done) + len(list(folder.glob("*.parquet"))) <= 4, "one shard at a time is there twice"
    (folder / f"train-00002.arrow.{7}.partial").write_bytes(b"half")
    converting.convert(folder)
    assert content(folder) == content(shards) and in_order(streams([folder], 1), 96) == before
    assert all(file.stat().st_mtime_ns == when for file, when in done.items()), "nothing is written twice"
    assert not list(folder.glob("*.partial"))


def test_a_damaged_parquet_shard_is_not_converted(old, tmp_path):
    folder = shutil.copytree(old, tmp_path / "copy")
    file = folder / "train-00001.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"train-00001\.parquet is damaged"):
        converting.convert(folder)
    assert len(list(folder.glob("*.parquet"))) == 3 and not (folder / "train-00001.arrow").exists()
    with pytest.raises(ValueError, match=r"train-00001\.parquet is damaged; check it with"):
        ShardRows(folder, CONFIG, 0)
    file.unlink()
    with pytest.raises(FileNotFoundError, match=r"train-00001\.parquet is missing"):
        converting.convert(folder)


def test_convert_takes_no_other_flag():
    with pytest.raises(ValueError, match="--crops would have no effect with --convert"):
        main(["--convert", "x", "--crops", "2"])


def test_hold_out_is_in_the_manifest_and_the_file(shards):
    for entry in read_manifest(shards)["shards"]:
        names = read_column(shards / entry["file"], "source")
        flags = read_column(shards / entry["file"], "held_out")
        assert flags.tolist() == [is_held_out(name) for name in names] and entry["held_out"] == flags.sum()
