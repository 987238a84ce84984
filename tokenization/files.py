"""Files that are whole or not there, and their checksums."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path


def write_whole(file: Path, write: Callable[[Path], object]) -> None:
    """`write(path)` a temporary file, then rename it: `file` is whole or not there."""
    temporary = file.with_name(f"{file.name}.{os.getpid()}.partial")
    write(temporary)
    with temporary.open("rb") as stream:
        os.fsync(stream.fileno())
    temporary.replace(file)


def write_json(file: str | Path, content: dict) -> None:
    """Write JSON with `write_whole`, one space per level, creating the file's folder."""
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, lambda path: path.write_text(json.dumps(content, indent=1) + "\n"))


def sha256(file: Path) -> str:
    """The SHA-256 of a file's bytes, 64 hex digits."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
