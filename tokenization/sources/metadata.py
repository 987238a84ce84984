"""What a data set says about itself: metadata files beside media, and the configurations in a README."""

from __future__ import annotations

import glob
import os
import posixpath
import re
from pathlib import Path

from tokenization.sources.folders import Tree
from tokenization.sources.remote import readme_of
from tokenization.storage.remote import is_remote

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def read_metadata(tree: Tree) -> tuple[dict, list[dict], list[str]]:
    """The metadata of a folder of media, as `datasets` defines them: (features, rows, files read).

    The column `file_name` (or `NAME_file_name`) holds paths, from the metadata file's own folder; `file_names` holds
    lists of images, the frames of clips. A row has them under "file_name" as a path inside the tree, or a list of such.
    A file without such a column is not a metadata file.

    Raises:
        ValueError: a file is damaged, or a path leaves the folder.
    """
    features: dict = {}
    rows: list[dict] = []
    files = []
    for name in tree.files:
        folder, _, base = name.rpartition("/")
        if base not in METADATA:
            continue
        table = _table(tree.path(name))
        columns = [each for each in table.column_names if each.endswith(("file_name", "file_names"))]
        if not columns:
            continue
        column = next((each for each in columns if each in ("file_name", "file_names")), columns[0])
        from datasets import Features

        files.append(name)
        features = {**Features.from_arrow_schema(table.drop_columns([column]).schema), **features}
        for row in table.to_pylist():
            given = row.pop(column)
            paths = [_inside(folder, each, name) for each in (given if isinstance(given, list) else [given]) if each]
            rows.append(row | {"file_name": paths if isinstance(given, list) else (paths or [""])[0]})
    return features, rows, files


def _table(path: str):
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.json
    import pyarrow.parquet as pq

    try:
        if path.endswith(".csv"):
            return pyarrow.csv.read_csv(path)
        return pq.read_table(path) if path.endswith(".parquet") else pyarrow.json.read_json(path)
    except pa.ArrowException as error:
        raise ValueError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error


def _inside(folder: str, given: str, file: str) -> str:
    """A path inside the tree, from one that a metadata file in `folder` gives."""
    path = posixpath.normpath(posixpath.join(folder, given.replace("\\", "/")))
    if path.startswith("../") or posixpath.isabs(path):
        raise ValueError(f"{file} names {given}, which is outside the folder; paths start at the metadata file.")
    return path


def read_config(folder: str, config_name: str | None) -> dict:
    """The configuration of a folder that its README.md declares, of this name or the default one.

    Returns:
        `data_files`, `data_dir` and other entries of the configuration, "features" where the README has them; empty if
        there is no README with configurations.
    Raises:
        ValueError: no such configuration, or several and none is named.
    """
    readme = readme_of(folder) if is_remote(folder) else Path(folder) / "README.md"
    configs, infos = {}, {}
    if readme is not None and readme.is_file():
        import yaml
        from datasets import DatasetInfo
        from huggingface_hub import DatasetCard

        try:
            data = DatasetCard.load(readme, ignore_metadata_errors=True).data.to_dict()
        except (ValueError, yaml.YAMLError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"The block at the start of {readme} is not valid YAML ({reason}); correct it.") from error
        listed = data.get("dataset_info") or []
        for info in listed if isinstance(listed, list) else [listed]:
            infos[info.get("config_name", "default")] = DatasetInfo._from_yaml_dict(info).features
        for config in data.get("configs") or []:
            configs[config.get("config_name", "default")] = config
    name = choose_config(list(configs), config_name, folder, [n for n, c in configs.items() if c.get("default")])
    config = dict(configs.get(name, {}))
    features = infos.get(name) if name is not None else next(iter(infos.values()), None)
    return config | ({"features": features} if features else {})


def choose_config(names: list[str], asked: str | None, dataset: str, default: list[str] = ()) -> str | None:
    """The name of a configuration; raises ValueError if it is not there, or if one has to be named."""
    if asked is not None and asked not in names:
        has = f"it has {', '.join(names)}" if names else "it has none; leave config_name out"
        raise ValueError(f"{dataset} has no configuration {asked!r}; {has}.")
    defaults = [*default, *(name for name in names if name == "default")] or (names if len(names) == 1 else [])
    if asked is None and names and not defaults:
        raise ValueError(f"{dataset} has several configurations; name one with --config_name: {', '.join(names)}.")
    return asked if asked is not None else next(iter(defaults), None)


def config_files(tree: Tree, data_files) -> dict[str, list[str]]:
    """Split -> the files of the tree that the patterns of `data_files` match."""
    if isinstance(data_files, str) or not any(isinstance(entry, dict) for entry in data_files):
        data_files = [{"split": "train", "path": data_files}]
    known, splits = set(tree.files), {}
    for entry in data_files:
        patterns = entry["path"] if isinstance(entry["path"], list) else [entry["path"]]
        found = set()
        for pattern in patterns:
            pattern = pattern.replace("/**.", "/**/*.")
            if is_remote(tree.root):
                from fsspec.utils import glob_translate

                found |= set(filter(re.compile(glob_translate(pattern)).match, tree.files))
                continue
            matched = glob.iglob(pattern, root_dir=tree.root, recursive=True)
            found |= {posixpath.normpath(path.replace(os.sep, "/")) for path in matched} & known
        splits[str(entry["split"])] = sorted(found)
    return splits
