"""Rows of a folder or file under a URL: listed by fsspec, and each file copied to this machine when its turn comes."""

from __future__ import annotations

from pathlib import Path

from tokenization.sources.folders import Tree
from tokenization.sources.kinds import suffix_of
from tokenization.storage.copies import local_copy
from tokenization.storage.remote import READ_ONLY, Remote, Unreachable, join


class RemoteTree(Tree):
    """The files under a URL; names begin with a dot where they are hidden, as in a local folder.

    Raises:
        OSError: it cannot be listed.
    """

    def __init__(self, url: str):
        names = list(Remote(url).files())
        hidden = [name for name in names if any(part.startswith(".") for part in name.split("/"))]
        super().__init__(url.rstrip("/"), sorted(set(names) - set(hidden)), hidden)

    def path(self, name: str) -> str:
        """The path of a copy of a file, which is made now."""
        return str(local_copy(join(self.root, name)))

    def where(self, name: str) -> str:
        """The URL of a file."""
        return join(self.root, name)

    def medium(self, name: str) -> dict:
        return {"path": None, "bytes": None, "url": self.where(name)}


def is_file(url: str) -> bool:
    """Whether a URL is that of one file. One that ends with a slash is a folder, and a page without a suffix."""
    remote = Remote(url)
    if url.endswith("/") or (remote.protocol in READ_ONLY and not suffix_of(url)):
        return False
    return remote.info() is not None


def fetched(url: str) -> str:
    """The path of a copy of a medium.

    Raises:
        FileNotFoundError: there is no such file any more. Unreachable: it cannot be read.
    """
    try:
        return str(local_copy(url))
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise Unreachable(str(error)) from error


def readme_of(folder: str) -> Path | None:
    """A copy of the README.md of a remote folder; None if it has none."""
    return local_copy(join(folder, "README.md")) if Remote(folder).info("README.md") else None
