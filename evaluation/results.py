"""Writing result files: the command line that they record, and an atomic write."""

import json
import os
import shlex
import sys
import tempfile
from pathlib import Path


def command_line(verb: str, argv: list[str] | None) -> str:
    """The command as a user would type it."""
    return shlex.join(["toto", verb, *(sys.argv[1:] if argv is None else argv)])


def write_json(path: str | Path, content: dict) -> None:
    """Write a result file atomically, creating its folder: a crash leaves the old file or the new one."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        json.dump(content, file, indent=1)
        file.write("\n")
    os.chmod(file.name, 0o644)  # temporary files are private by default
    os.replace(file.name, path)
