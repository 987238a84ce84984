"""Shards for a URL: made in a folder of this machine, then uploaded file by file, the manifest last.

A reader never finds half a set, since a folder without a manifest is none. After a kill at any time, the same command
goes on: encoding continues after the finished parts, uploading after the finished files.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

from tokenization.files import write_json
from tokenization.storage.copies import work_folder
from tokenization.storage.remote import Remote, is_remote

# A file of this name says that the place was empty when the work began, so that what is there now is ours.
FLAGS = "flags.json"
DATASET = re.compile(r"hf://datasets/([^/]+/[^/]+)")


def tokenize_to_url(args, tokenize: Callable, idle: set[str]) -> dict:
    """Tokenize to `args.output`, a URL; returns the manifest. Every process of a launch calls it.

    Args:
        args: `TokenizeArgs`. tokenize: writes a local folder. idle: names of flags that do not change the shards.
    Raises:
        OSError, ValueError: as `tokenize`; or, before anything is encoded, the place cannot be written, is not empty,
            or the work for it was begun with other flags.
    """
    from accelerate import PartialState

    url = args.output.rstrip("/")
    work = work_folder(url)
    folder = work / url.rsplit("/", 1)[1]
    repository = DATASET.fullmatch(url)
    if repository and args.push_to_hub not in (None, repository[1]):
        raise ValueError(f"--output {url} and --push_to_hub {args.push_to_hub} name two repositories; keep one.")
    remote = None if repository else Remote(url)
    begin(remote, work, {name: value for name, value in asdict(args).items() if name not in idle - {"tokenizer"}})
    is_main = os.environ.get("RANK", "0") == "0"
    try:
        if (folder / "manifest.json").is_file():  # the last run was killed while it uploaded
            if repository:
                from tokenization.shards.card import push_shards

                push_shards(folder, repository[1], args.private)
        else:
            push_to = repository[1] if repository else args.push_to_hub
            tokenize(replace(args, output=str(folder), push_to_hub=push_to))
    except BaseException:
        if is_main and not folder.exists() and not folder.with_name(f"{folder.name}.partial").exists():
            shutil.rmtree(work, ignore_errors=True)  # nothing that a rerun could use
        raise
    manifest = json.loads((folder / "manifest.json").read_text())
    state = PartialState()
    if remote is not None:
        count = send(remote, folder, state.process_index, state.num_processes)
        state.wait_for_everyone()
        if state.is_main_process:
            remote.write("manifest.json", (folder / "manifest.json").read_bytes())
            print(f"uploaded {count + 1} files to {url}")
    state.wait_for_everyone()
    if state.is_main_process:
        shutil.rmtree(work)
    return manifest


def begin(remote: Remote | None, work: Path, flags: dict) -> None:
    """Check that the shards can be written, and that earlier work for this place has the same flags.

    Args:
        remote: None for a repository of the Hub, where a push replaces what is there.
    Raises:
        OSError, ValueError: see `tokenize_to_url`.
    """
    flags = json.loads(json.dumps(flags))
    if remote is not None:
        remote.require_writable()
    if (work / FLAGS).is_file():
        before = json.loads((work / FLAGS).read_text())
        unlike = [name for name in flags if before.get(name) != flags[name]]
        if unlike:
            changes = ", ".join(f"{name} {before.get(name)} instead of {flags[name]}" for name in unlike)
            raise ValueError(
                f"The work in {work} was started with other flags ({changes}); pass the same flags, or delete it."
            )
        return
    if remote is not None and (there := remote.files()):
        raise ValueError(
            f"--output {remote.url} is not empty ({next(iter(there))}); name a new folder, or delete this one."
        )
    write_json(work / FLAGS, flags)


def send(remote: Remote, folder: Path, rank: int, world: int) -> int:
    """Upload this process's share of the files that are not there yet, without the manifest; returns their number."""
    there = {name: info["size"] for name, info in remote.files().items()}
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / "manifest.json")
    todo = []
    for path in files[rank::world]:
        name = path.relative_to(folder).as_posix()
        if there.get(name) != path.stat().st_size:
            todo.append((name, path))
    for name, path in todo:
        remote.write(name, path)
    return len(todo)


def refuse_url(name: str | None, flag: str, instead: str) -> None:
    """Raises ValueError if a flag that needs a local folder was given a URL."""
    if is_remote(name):
        raise ValueError(f"--{flag} {name} is a URL, but --{flag} needs a local folder; {instead}.")
