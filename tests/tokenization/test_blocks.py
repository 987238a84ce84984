"""Blocks of remote files: what is fetched, once for all, after kills, while others make room, and refused when torn."""

import multiprocessing
import os
import threading
import time

import numpy as np
import pytest

from tokenization.storage import blocks, copies
from tokenization.storage.blocks import Blocks
from tokenization.storage.copies import cache_folder, local_copy
from tokenization.storage.remote import Remote

CONTENT = np.random.default_rng(0).bytes(1000)
URL, SHA256 = "memory://a/b.bin", "ab" * 32


@pytest.fixture
def asked(tmp_path, monkeypatch):
    """The ranges that were asked for; the file is in memory, blocks have 64 bytes."""
    import fsspec

    monkeypatch.setenv("TOTO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(copies, "_unchecked", 0)
    monkeypatch.setattr(blocks, "BLOCK", 64)
    monkeypatch.setattr(blocks, "GAP", 0)
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pipe_file("/a/b.bin", CONTENT)
    read, asked = Remote.read_ranges, []
    monkeypatch.setattr(Remote, "read_ranges", lambda self, name, r: (asked.extend(r), read(self, name, r))[1])
    return asked


def opened(size=1000):
    return Blocks(URL, SHA256, size)


def test_only_blocks_that_are_read_are_fetched(asked):
    file = opened()
    assert file.read(130, 10) == CONTENT[130:140] and asked == [(128, 192)]
    assert file.read(120, 80) == CONTENT[120:200] and asked[1:] == [(64, 128), (192, 256)]
    assert file.read(990, 10) == CONTENT[990:] and asked[3:] == [(960, 1000)]
    assert file.read(995, 10) == CONTENT[995:] and file.read(2000, 10) == b""  # a manifest that is wrong
    file.fetch([(0, 1), (300, 100), (64, 8), (500, 1)])
    assert asked[4:] == [(0, 64), (256, 512)]
    assert opened().read(0, 512) == CONTENT[:512] and len(asked) == 6, "another process finds them"
    stat = next(cache_folder().rglob("blocks-*")).stat()
    assert stat.st_size == 1000 + 16


def test_a_small_gap_is_fetched_too(asked, monkeypatch):
    monkeypatch.setattr(blocks, "GAP", 1)
    file = opened()
    file.fetch([(0, 1), (128, 1), (320, 1)])
    assert asked == [(0, 192), (320, 384)]
    assert file.read(64, 64) == CONTENT[64:128] and len(asked) == 2


def test_many_are_asked_for_in_turns(asked, monkeypatch):
    monkeypatch.setattr(blocks, "AT_A_TIME", 3)
    file = opened()
    file.fetch([(start, 1) for start in range(0, 1000, 128)])
    assert asked == [(start, start + 64) for start in range(0, 1000, 128)]
    assert file.read(0, 64) + file.read(896, 64) == CONTENT[:64] + CONTENT[896:960] and len(asked) == 8


def test_several_threads_fetch_a_block_once(asked, monkeypatch):
    read = Remote.read_ranges
    monkeypatch.setattr(Remote, "read_ranges", lambda self, name, r: (time.sleep(0.1), read(self, name, r))[1])
    found = []
    threads = [threading.Thread(target=lambda: found.append(opened().read(0, 1000))) for _ in range(4)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert found == [CONTENT] * 4 and asked == [(0, 1000)]


def test_several_processes_fetch_a_block_once(asked, tmp_path, monkeypatch):
    log, read = tmp_path / "log", Remote.read_ranges

    def noted(self, name, ranges):
        with log.open("a") as file:
            file.write("".join(f"{start}\n" for start, _ in ranges))
        time.sleep(0.05)
        return read(self, name, ranges)

    monkeypatch.setattr(Remote, "read_ranges", noted)

    def work(first):
        file = opened()
        order = [*range(first, 1000, 64), *range(0, first, 64)]
        os._exit(any(file.read(place, 8) != CONTENT[place : place + 8] for place in order))

    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=work, args=(256 * number,)) for number in range(4)]
    [process.start() for process in processes], [process.join() for process in processes]
    assert [process.exitcode for process in processes] == [0] * 4
    assert sorted(map(int, log.read_text().split())) == list(range(0, 1000, 64))


@pytest.mark.parametrize("step", ["fsync", "_write"])
def test_a_kill_while_a_block_is_written_leaves_it_to_be_fetched(asked, monkeypatch, step):
    class Killed(BaseException):
        pass

    def torn(self, content, place):
        os.pwrite(self._file, content[: len(content) // 2], place)
        raise Killed

    def killed(*_args):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(*((os, "fsync", killed) if step == "fsync" else (Blocks, "_write", torn)))
        opened().read(64, 100)
    assert opened().read(64, 100) == CONTENT[64:164] and asked == [(64, 192)] * 2


def test_an_answer_that_is_cut_is_refused_and_not_kept(asked, monkeypatch):
    file, cut = opened(1100), r"^memory://a/b.bin cannot be read: the bytes from 960 to 1100 came as 40 bytes; check"
    for _ in range(2):
        with pytest.raises(OSError, match=cut):
            file.read(960, 130)
    with pytest.raises(FileNotFoundError, match=r"memory://a/none cannot be read"):
        Blocks("memory://a/none", "cd" * 32, 100).read(0, 10)

    class NoCredentials(Exception):
        pass

    def refuse(*_args, **_more):
        raise NoCredentials("Unable to locate credentials\nat line 3")

    import fsspec

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "cat_file", refuse)
    with pytest.raises(OSError, match=r"^memory://a/b.bin cannot be read: Unable to locate credentials; check the cr"):
        file.read(0, 10)


@pytest.fixture
def large(asked, monkeypatch):
    """A file of 1 MB of which a block of 4 KB is there, last used an hour ago; the limit of the cache is 30 KB."""
    import fsspec

    monkeypatch.setenv("TOTO_CACHE_GB", "30e-6")
    monkeypatch.setattr(blocks, "BLOCK", 4096)
    for name, content in {"large": bytes(range(256)) * 4096, "0": bytes(9_000), "1": bytes(9_000)}.items():
        fsspec.filesystem("memory").pipe_file(f"/a/{name}", content)
    large = Blocks("memory://a/large", "cd" * 32, 1 << 20)
    assert large.read(0, 4) == b"\0\1\2\3"
    aged(large.entry)
    asked.clear()
    return large


def aged(entry, seconds=3600):
    """Make it look old, and have the copies counted before anything is fetched."""
    then = time.time() - seconds
    os.utime(entry, (then, then))
    copies._unchecked = 0


def test_holes_take_no_room(large):
    copies._unchecked = 0
    local_copy("memory://a/0")
    assert large.entry.is_dir(), "4 of its 1,024 KB are there"


def test_the_oldest_go_and_who_has_them_open_goes_on(large, asked):
    large.fetch([(0, 12_000)])
    aged(large.entry)
    kept = local_copy("memory://a/0")
    aged(kept.parent, 3000)
    local_copy("memory://a/1")
    assert not large.entry.exists() and kept.exists()
    asked.clear()
    assert large.read(8192, 2) == b"\0\1" and large.read(20_480, 2) == b"\0\1" and asked == [(20_480, 24_576)]
    again = Blocks("memory://a/large", "cd" * 32, 1 << 20)
    assert again.read(8192, 2) == b"\0\1" and asked[1:] == [(8192, 12_288)]


@pytest.mark.parametrize("use", ["open", "fetch"])
def test_blocks_make_room_and_count_as_used(large, use):
    kept = local_copy("memory://a/0")
    aged(kept.parent, 3000)
    if use == "open":
        other = Blocks("memory://a/large", "ef" * 32, 1 << 20)
        Blocks("memory://a/large", "cd" * 32, 1 << 20)
    else:
        other = large
    copies._unchecked = 0
    other.fetch([(4096, 20_480)])
    assert not kept.exists() and large.entry.exists(), "this one was used last"
