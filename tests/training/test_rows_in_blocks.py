"""Shards under a URL of which a machine fetches what is around its rows: the same rows, and bytes that are counted."""

import importlib.util
import json
import os
import threading
from pathlib import Path

import pytest
from tiny_run import CONFIG

from modeling_toto import TotoConfig
from tokenization.storage import blocks
from tokenization.storage.remote import Remote
from training.args import Source
from training.rows import shard_rows
from training.rows.mixture import RowStream, open_rows

CONFIG = TotoConfig.from_preset("tiny", **CONFIG)
URL = "memory://bucket/shards"
HAS_SERVER = all(importlib.util.find_spec(name) for name in ("moto", "flask", "flask_cors", "s3fs"))


def put(fs, shards, place):
    for path in Path(shards).rglob("*"):
        if path.is_file():
            fs.pipe_file(f"{place}/{path.relative_to(shards).as_posix()}", path.read_bytes())


@pytest.fixture
def remote(shards, tmp_path, monkeypatch):
    """What was fetched since: (name, first byte, end) of parts, (name, 0, None) of whole files. Two rows to a block."""
    import fsspec

    monkeypatch.setenv("TOTO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(blocks, "BLOCK", 256)
    monkeypatch.setattr(blocks, "GAP", 0)
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    put(fs, shards, "/bucket/shards")
    fetched, ranges, whole = [], Remote.read_ranges, Remote.fetch

    def noted(self, name, wanted):
        fetched.extend((name, *each) for each in wanted)
        return ranges(self, name, wanted)

    monkeypatch.setattr(Remote, "read_ranges", noted)
    note = lambda self, name, file: (fetched.append((name, 0, None)), whole(self, name, file))  # noqa: E731
    monkeypatch.setattr(Remote, "fetch", note)
    return fetched


def streams(data, world, at_once=1):
    """Of the processes of one machine, which are the last `at_once` of `world`."""
    os.environ["LOCAL_WORLD_SIZE"] = str(at_once)
    try:
        sources = [open_rows(Source(data, name="s"), CONFIG, 7, 32, None) for _ in range(at_once)]
        return [RowStream([source], 7, rank, world) for rank, source in enumerate(sources, world - at_once)]
    finally:
        del os.environ["LOCAL_WORLD_SIZE"]


def rows_of(streams, count):
    return [[tuple(row.tolist()) for _, row in stream.take(count)] for stream in streams]


def arrows(fetched):
    return [each for each in fetched if each[0].endswith(".arrow")]


@pytest.mark.parametrize(("world", "at_once"), [(1, 1), (6, 2), (16, 2), (16, 1), (64, 8)])
@pytest.mark.parametrize("start", [0, 44, 90])
def test_rows_are_those_of_the_folder(shards, remote, monkeypatch, world, at_once, start):
    """In the first epoch, in the second, and over a border; fetched as they are read."""
    monkeypatch.setattr(RowStream, "_drawn", lambda self, begin, turn: self._drawing.draw(begin, turn))
    state = {"drawn": start, "sources": {"s": {"count": start, "left": False, "position": None}}}
    ours, local = streams(URL, world, at_once), streams(str(shards), world, at_once)
    for stream in (*ours, *local):
        stream.load_state_dict(json.loads(json.dumps(state)))
    count = max(1, 32 // world)
    assert rows_of(ours, count) == rows_of(local, count)
    is_whole = world // at_once < shard_rows.FEWEST_MACHINES
    assert {end is None for *_, end in arrows(remote)} == {is_whole}
    if not is_whole:
        assert len(arrows(remote)) == len(set(arrows(remote))), "no block twice, for all processes of the machine"


def test_bytes_of_a_machine_are_those_around_its_rows(shards, remote, monkeypatch):
    """Of 16 machines each reads 3 of 48 rows: three blocks, and in each shard the one of what is held out."""
    monkeypatch.setattr(RowStream, "_drawn", lambda self, begin, turn: self._drawing.draw(begin, turn))
    (stream,) = streams(URL, 16)
    rows_of([stream], 3)
    fetched = sum(end - first for _, first, end in arrows(remote))
    opened = {name for name, *_ in arrows(remote)}
    assert fetched <= 256 * (3 + 3 + len(opened)), "a row may lie in two blocks"
    assert fetched < sum((shards / name).stat().st_size for name in opened) / 3


def test_rows_of_the_coming_steps_are_fetched_ahead(shards, remote, monkeypatch):
    started = []
    monkeypatch.setattr(shard_rows, "Thread", lambda target, args, daemon: started.append((target, args)) or Nothing())
    (stream,), (local,) = streams(URL, 16), streams(str(shards), 16)
    (found,) = rows_of([stream], 1)
    ((fetch, (numbers,)),) = started
    assert numbers == list(range(15, 16 * len(numbers), 16)) and len(numbers) >= 256, "its own rows, of all its draws"
    fetch(numbers[:6])
    remote.clear()
    found += rows_of([stream], 5)[0]
    assert found == rows_of([local], 6)[0] and not arrows(remote), "everything was there"


class Nothing:
    def start(self):
        pass


def test_the_thread_fetches_what_is_read(shards, remote):
    before = set(threading.enumerate())
    ours, local = streams(URL, 64, 8), streams(str(shards), 64, 8)
    found = []
    for _ in range(6):
        found.append(rows_of(ours, 4) == rows_of(local, 4))
    for thread in set(threading.enumerate()) - before:
        thread.join(60)
    assert all(found) and len(arrows(remote)) == len(set(arrows(remote)))


def test_a_storage_that_fails_is_one_sentence(remote, monkeypatch):
    def lost(self, name, ranges):
        raise OSError(f"{self.url}/{name} cannot be read: the connection was lost; check the address.")

    (stream,) = streams(URL, 16)
    monkeypatch.setattr(Remote, "read_ranges", lost)
    with pytest.raises(OSError, match=r"^memory://bucket/shards/train-\d+.arrow cannot be read: the connection was lo"):
        stream.take(2)


def test_a_shard_that_was_replaced_is_refused_at_the_start(shards, remote):
    import fsspec

    name = json.loads((shards / "manifest.json").read_text())["shards"][1]["file"]
    fsspec.filesystem("memory").pipe_file(f"/bucket/shards/{name}", (shards / name).read_bytes() + b"x")
    with pytest.raises(ValueError, match=rf"{URL}/{name} is damaged; check it with toto tokenize --verify {URL}\.$"):
        streams(URL, 16)


@pytest.mark.parametrize(
    ("url", "in_blocks"), [("s3://b/s", True), ("hf://datasets/u/s", False), ("https://h/s", False)]
)
def test_only_object_stores_are_asked_for_parts(shards, url, in_blocks, monkeypatch):
    (stream,) = streams(str(shards), 16)
    rows = stream.sources[0]
    monkeypatch.setattr(shard_rows, "Remote", lambda url: type("R", (), {"protocol": url.partition(":")[0]}))
    rows.folder, rows._sizes = url, {entry["file"]: entry["bytes"] for entry in rows._shards}
    rows.read_in_blocks(16)
    assert rows.in_blocks == in_blocks


@pytest.mark.skipif(not HAS_SERVER, reason="the S3 server of moto is not installed")
def test_from_an_s3_server(shards, tmp_path, monkeypatch):
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        for name, value in {
            "TOTO_CACHE": str(tmp_path), "AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port()),
            "AWS_ACCESS_KEY_ID": "toto", "AWS_SECRET_ACCESS_KEY": "toto", "AWS_DEFAULT_REGION": "us-east-1",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        kind = fsspec.get_filesystem_class("s3")
        kind.clear_instance_cache()
        fs = kind()
        fs.mkdir("bucket")
        put(fs, shards, "bucket/shards")
        monkeypatch.setattr(blocks, "BLOCK", 256)
        ours = streams("s3://bucket/shards", 16, 2)
        assert rows_of(ours, 6) == rows_of(streams(str(shards), 16, 2), 6)
        assert ours[0].sources[0].in_blocks and not list(tmp_path.rglob("*.arrow"))
    finally:
        server.stop()
        fsspec.get_filesystem_class("s3").clear_instance_cache()
