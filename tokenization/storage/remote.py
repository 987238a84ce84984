"""A folder or file under a URL: s3://, gs://, hf://, https:// (read only), memory:// or another protocol of fsspec.

Every failure is one sentence with the URL in it, as a FileNotFoundError, PermissionError or another OSError: the
packages of the protocols raise classes of their own.
"""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import quote, unquote

# Two letters at least, so that C:// on Windows is none.
PROTOCOL = re.compile(r"([a-z][a-z0-9+.-]+)://")
READ_ONLY = ("http", "https")
# Says that nothing at all can be there, unlike an error about a file.
NO_BUCKET = re.compile(r"bucket (does not|doesn't) exist|no ?such ?bucket", re.IGNORECASE)
# Objects of this name are written and deleted to see whether a place can be written, and are never data.
PROBE = ".toto-write-test-"
# What file systems say about the version of a file; the first that is there decides.
VERSIONS = ("ETag", "etag", "blob_id", "xet_hash", "generation", "md5Hash", "LastModified", "last_modified", "mtime")
VERSIONS += ("updated", "created")


def is_remote(name: str | Path | None) -> bool:
    """Whether a name is a URL and no local path."""
    return isinstance(name, str) and PROTOCOL.match(name) is not None


def join(folder: str | Path, *names: str) -> str | Path:
    """A file inside a folder: a URL if the folder is one, else a path."""
    return "/".join([folder.rstrip("/"), *names]) if is_remote(folder) else Path(folder, *names)


class Unreachable(Exception):
    """A remote file cannot be read now. It is no property of the item, which is therefore not skipped as damaged."""


class Remote:
    """What is under a URL. Names of files are relative to it, with "/".

    Raises:
        ValueError: an unknown protocol, or a package that is missing; nothing is contacted yet.
    """

    def __init__(self, url: str):
        import fsspec

        self.url = url.rstrip("/")
        self.protocol = PROTOCOL.match(url)[1]
        if self.protocol in ("file", "local"):
            raise ValueError(f"{url} is a local path; write it without {self.protocol}://.")
        try:
            kind = fsspec.get_filesystem_class(self.protocol)
        except ImportError as error:
            packages = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs"}
            package = packages.get(self.protocol)
            install = f"pip install {package}, or 'modeling-toto[remote]'" if package else str(error)
            raise ValueError(f"{url} needs a package that is not installed: {install}.") from error
        except ValueError as error:
            raise ValueError(f"{url} has an unknown protocol; use s3://, gs://, hf:// or https://.") from error
        with told(url, "opened"):
            self.fs = kind()
        self._is_web = self.protocol in READ_ONLY  # whose paths are quoted
        url = quote(self.url, safe="%:/?#[]@!$&'()*+,;=") if self._is_web else self.url
        self.path = self.fs._strip_protocol(url)

    def at(self, name: str) -> str:
        """The path of a file, as fsspec wants it."""
        name = quote(name) if self._is_web else name
        return f"{self.path}/{name}" if name else self.path

    def files(self, inside: str = "") -> dict[str, dict]:
        """Name -> what is known of it ("size", ...), of all files below this folder, sorted; empty if there is none.

        inside: a folder in it; names then start there.
        """
        place = self.at(inside)
        with told(f"{self.url}/{inside}".rstrip("/"), "listed"):
            self.fs.invalidate_cache()
            try:
                found = self.fs.find(place, detail=True)
            except FileNotFoundError as error:
                if NO_BUCKET.search(str(error)):
                    raise
                found = {}
        start = len(place.rstrip("/")) + 1
        names = {unquote(path[start:]) if self._is_web else path[start:]: info for path, info in found.items()}
        return {name: names[name] for name in sorted(names) if name and PROBE not in name and name[-1] != "/"}

    def info(self, name: str = "") -> dict | None:
        """What is known of a file; None if there is no such file."""
        with told(f"{self.url}/{name}".rstrip("/"), "read"):
            try:
                self.fs.invalidate_cache()
                info = self.fs.info(self.at(name))
            except FileNotFoundError as error:
                if NO_BUCKET.search(str(error)):
                    raise
                return None
        return info if info["type"] == "file" else None

    def read(self, name: str) -> bytes:
        with told(f"{self.url}/{name}", "read"):
            return self.fs.cat_file(self.at(name))

    def read_ranges(self, name: str, ranges: list[tuple[int, int]]) -> list[bytes]:
        """Parts of a file, from a byte to before another, several at a time. Raises OSError if one is incomplete."""
        with told(f"{self.url}/{name}", "read"):
            starts, ends = (list(each) for each in zip(*ranges, strict=True))
            found = self.fs.cat_ranges([self.at(name)] * len(ranges), starts, ends)
            for (start, end), content in zip(ranges, found, strict=True):
                if isinstance(content, Exception):
                    raise content
                if len(content) != end - start:
                    raise OSError(f"the bytes from {start} to {end} came as {len(content)} bytes")
        return found

    def fetch(self, name: str, file: Path) -> None:
        """Copy a file to this machine; `file` may be incomplete after an error."""
        with told(f"{self.url}/{name}".rstrip("/"), "read"):
            self.fs.get_file(self.at(name), str(file))

    def write(self, name: str, content: bytes | Path) -> None:
        """Write a file, which is there whole or not at all; a path is uploaded."""
        with told(f"{self.url}/{name}", "written"):
            if isinstance(content, Path):
                self.fs.put_file(str(content), self.at(name))
            else:
                self.fs.pipe_file(self.at(name), content)

    def delete(self, names: Iterable[str]) -> None:
        """Delete files, those that are there."""
        with told(self.url, "written"):
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    self.fs.rm_file(self.at(name))

    def require_writable(self) -> None:
        """Write an object of a few bytes and delete it.

        Raises:
            OSError: that failed, or the protocol can only be read.
        """
        if self.protocol in READ_ONLY:
            raise OSError(f"{self.url} can only be read; write to s3://, gs:// or a local folder.")
        if self.protocol == "hf" and not self.path.startswith("buckets/"):
            raise OSError(
                f"{self.url} is a repository, in which every file would be a commit; write to hf://buckets/USER/NAME, "
                "or tokenize to hf://datasets/USER/NAME."
            )
        name = f"{PROBE}{uuid.uuid4().hex}"
        self.write(name, b"toto")
        self.delete([name])


def version(info: dict) -> str:
    """A text that changes with the file, from what `files` or `info` know of it."""
    known = next((str(info[key]) for key in VERSIONS if info.get(key)), "")
    return f"{info.get('size')} {known}"


@contextlib.contextmanager
def told(url: str, done: str) -> Iterator[None]:
    """Errors of a file system as one sentence: "URL cannot be `done`: why; what to do"."""
    try:
        yield
    except FileNotFoundError as error:
        why = str(error).splitlines()[0].rstrip(".") if " " in str(error) else "there is no such file"
        raise FileNotFoundError(f"{url} cannot be {done}: {why}; check the address.") from error
    except PermissionError as error:
        raise PermissionError(f"{url} cannot be {done}: {_why(error)}; check the credentials and rights.") from error
    except OSError as error:
        if error.errno == 28:  # this machine's disk is full
            raise
        raise OSError(f"{url} cannot be {done}: {_why(error)}; check the address and the credentials.") from error
    except Exception as error:  # of a package's own, such as botocore's NoCredentialsError
        raise OSError(f"{url} cannot be {done}: {_why(error)}; check the credentials and the connection.") from error


def _why(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0].rstrip(".")
