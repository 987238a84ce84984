"""Rows of a local folder or file: media, tables or tar files, listed by us, so that every file is read or counted."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tokenization.sources import tars
from tokenization.sources.dataset_rows import Rows
from tokenization.sources.folder_rows import Folder, choose, table_rows
from tokenization.sources.folders import walk
from tokenization.sources.kinds import ARCHIVES, TABLES, TARS, is_media, kind_of, suffix_of
from tokenization.sources.metadata import read_config
from tokenization.sources.remote import RemoteTree
from tokenization.sources.remote import is_file as is_remote_file
from tokenization.storage.copies import local_copy
from tokenization.storage.remote import is_remote, join


def open_local(
    dataset: str,
    split: str | None,
    kind: str | None = None,
    image_column: str | None = None,
    config_name: str | None = None,
) -> Rows:
    """The rows of a split of a folder or file, here or under a URL; arguments as in `open.open_source`.

    Raises:
        FileNotFoundError: the folder is empty. ValueError: nothing in it can be read, or there is no such split.
    """
    if is_remote(dataset):
        if is_remote_file(dataset):
            return open_local(str(local_copy(dataset)), split, kind, image_column, config_name)
    elif os.path.isfile(dataset):
        if config_name is not None:
            raise ValueError(f"{dataset} is one file and has no configurations; leave config_name out.")
        return _one_file(dataset, split or "train")
    if not is_remote(dataset) and (saved := _saved_splits(dataset)):
        if config_name is not None:
            raise ValueError(f"{dataset} was saved by datasets and has no configurations; leave config_name out.")
        chosen = choose(dataset, list(saved), split)
        return table_rows(saved[chosen], chosen)
    config = read_config(dataset, config_name)
    inside = os.path.normpath(config.get("data_dir") or ".")
    if os.path.isabs(inside) or inside.split(os.sep)[0] == "..":
        raise ValueError(
            f"The README.md of {dataset} has the data_dir {inside}, which is outside the folder; correct it."
        )
    if is_remote(dataset):
        tree = RemoteTree(dataset if inside == "." else join(dataset, inside.replace(os.sep, "/")))
    else:
        tree = walk(os.path.join(dataset, inside))
    if not tree.files:
        raise FileNotFoundError(f"The folder {dataset} is empty; put videos, images, parquet or tar files into it.")
    return Folder(dataset, tree, config, split, kind, image_column).rows()


def _one_file(file: str, split: str) -> Rows:
    from datasets import Image, Video

    path, suffix = os.path.abspath(file), suffix_of(file)
    if suffix in TABLES:
        return table_rows([path], split)
    if suffix in TARS:
        return Rows(tars.features_of(path), lambda _shard, wanted: tars.read_tar(path, wanted), split)
    if suffix in ARCHIVES:
        raise ValueError(f"{file} is an archive, which is not read; unpack it and pass the folder.")
    if not is_media(file):
        raise ValueError(f"{file} is neither a video, an image, a .parquet, .arrow nor a .tar file.")
    kind = kind_of(path)
    row = {kind: {"path": path, "bytes": None}, "__key__": os.path.basename(path)}
    features = {kind: Video() if kind == "video" else Image()}
    return Rows(features, lambda _shard, _wanted: iter([dict(row)]), split, lists_paths=True, count=1)


def _saved_splits(folder: str) -> dict[str, list[str]]:
    """Split -> arrow files of a folder that `datasets.save_to_disk` wrote; empty for any other folder."""
    splits = Path(folder, "dataset_dict.json")
    if splits.is_file():
        names = json.loads(splits.read_text())["splits"]
        return {name: files for name in names for files in _saved_splits(os.path.join(folder, name)).values()}
    state = Path(folder, "state.json")
    if not (state.is_file() and Path(folder, "dataset_info.json").is_file()):
        return {}
    facts = json.loads(state.read_text())
    if "_data_files" not in facts:
        return {}
    name = facts.get("_split") or "train"
    files = [os.path.abspath(os.path.join(folder, each["filename"])) for each in facts["_data_files"]]
    return {name if name.replace("_", "").isalnum() else "train": files}  # not such a slice as train[:10%]
