"""Byte ranges of a remote file: only the blocks that are read are fetched, each once for all processes of a machine.

A file has a folder of the cache, as a copy has. The file in it has holes where nothing was fetched, and behind the last
byte of the remote file a byte for every block. That is written when the block is on the disk, so a kill at any time
costs a few blocks at most. Who fetches holds a lock on the file, which ends with the process; to read blocks that are
there needs none.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Iterator

from tokenization.storage.copies import cache_folder, key_of, known, make_room
from tokenization.storage.remote import Remote, version

# Eight rows of the dVAE, about what the processes of a machine read next to each other. With blocks of megabytes, a
# machine whose rows are 1 MB apart would fetch everything. An object store answers such a request in 20 to 50 ms, and
# many at a time.
BLOCK = 1 << 16
# Blocks between two that are wanted which are fetched with them, in one request in place of two.
GAP = 1
# Blocks at a time, which are in memory together.
AT_A_TIME = 256


class Blocks:
    """A remote file whose contents never change, open as long as the object lives. One object is for one thread.

    Args:
        key: its name in the cache, which changes with the contents, such as their SHA-256. That cannot be checked, as
            blocks come by themselves.
        size: in bytes.
    """

    def __init__(self, url: str, key: str, size: int):
        folder, _, self.name = url.rpartition("/")
        self.remote, self.size, self._file = Remote(folder), size, None
        self.entry = cache_folder() / "copies" / key[:2] / f"{key}.blocks"
        while self._file is None:
            with contextlib.suppress(FileNotFoundError):  # it was deleted, to make room, before it was open
                self.entry.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self.entry / f"blocks-{BLOCK}", os.O_RDWR | os.O_CREAT, 0o644)
        os.ftruncate(self._file, size + -(-size // BLOCK))
        self._touch()

    def __del__(self):
        if getattr(self, "_file", None) is not None:
            os.close(self._file)

    def _touch(self) -> None:
        with contextlib.suppress(FileNotFoundError):  # it was deleted, but is open here
            os.utime(self.entry)

    def read(self, start: int, count: int) -> bytes:
        """The bytes from `start`, fewer at the end of the file. Raises OSError if they cannot be fetched."""
        self.fetch([(start, count)])
        return os.pread(self._file, max(0, min(count, self.size - start)), start)

    def fetch(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Fetch the blocks of these ranges (start, count) that are not there.

        Raises:
            OSError: they cannot be fetched, or the disk is full.
        """
        wanted = {
            block
            for start, count in ranges
            for block in range(start // BLOCK, -(-min(start + count, self.size) // BLOCK))
        }
        if not self._missing(wanted):
            return
        with self._locked():
            missing = self._missing(wanted)  # less what another process fetched meanwhile
            for first in range(0, len(missing), AT_A_TIME):
                self._fetch(missing[first : first + AT_A_TIME])

    def _missing(self, blocks: Iterable[int]) -> list[int]:
        there = os.pread(self._file, -(-self.size // BLOCK), self.size)
        return sorted(block for block in blocks if not there[block])

    def _fetch(self, blocks: list[int]) -> None:
        runs: list[list[int]] = []  # of blocks that follow one another: [first, end]
        for block in blocks:
            if runs and block - runs[-1][1] <= GAP:
                runs[-1][1] = block + 1
            else:
                runs.append([block, block + 1])
        ranges = [(first * BLOCK, min(end * BLOCK, self.size)) for first, end in runs]
        self._touch()
        make_room(sum(end - start for start, end in ranges))
        for (start, _), content in zip(ranges, self.remote.read_ranges(self.name, ranges), strict=True):
            self._write(content, start)
        os.fsync(self._file)  # first, for the case that the machine fails
        for first, end in runs:
            self._write(b"\1" * (end - first), self.size + first)

    def _write(self, content: bytes, place: int) -> None:
        done = 0
        while done < len(content):
            done += os.pwrite(self._file, memoryview(content)[done:], place + done)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        import fcntl

        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)


class BlockFile(io.RawIOBase):
    """A remote file as it is now, open for reading; what is read of it is fetched in blocks.

    Raises:
        FileNotFoundError: there is none. OSError: it cannot be read, now or later.
    """

    def __init__(self, url: str):
        super().__init__()
        info = known(url)
        self._blocks, self._at = Blocks(url, key_of(f"{url} {version(info)}"), info["size"]), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        self._at = place + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._blocks.size}[whence]
        return self._at

    def read(self, count: int | None = -1) -> bytes:
        if count is None or count < 0:
            count = max(0, self._blocks.size - self._at)
        found = self._blocks.read(self._at, count)
        self._at += len(found)
        return found

    def readall(self) -> bytes:
        return self.read()
