"""Samples of local webdataset tar files: files of one name are a sample, and their suffixes are its columns."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Iterator
from itertools import islice

from tokenization.sources.kinds import MAY_MOVE, PICTURES, VIDEOS, is_animated, suffix_of

NUMBERS = frozenset({"cls", "cls2", "id", "index", "inx"})
TEXTS = frozenset({"text", "transcript", "txt"})
JSONS = frozenset({"json", "jsn"})
# Samples from whose values the types of the columns follow.
FIRST = 20


def columns_of(row: dict) -> dict:
    """A row, or its features, with the entries of its JSON as columns of their own; the row's own columns win."""
    jsons = [name for name, value in row.items() if isinstance(value, dict) and name.split(".")[-1].lower() in JSONS]
    inner = {key: value for name in jsons for key, value in row[name].items()}
    return inner | {name: value for name, value in row.items() if name not in jsons}


def read_tar(file: str, wanted: list[str] | None = None) -> Iterator[dict]:
    """The samples of a tar file: media as bytes, numbers, text, and the entries of JSON.

    wanted: media columns to read; None reads all.
    Raises:
        ValueError: the file is damaged or not a tar file.
    """
    row: dict = {}
    damaged = f"{file} is damaged, or is not an uncompressed tar file"
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                found = re.fullmatch(r"((?:.*/|)[^./]+)\.([^/]*)", member.name)
                if not member.isfile() or found is None:
                    continue
                key, column = found.groups()
                if row and row["__key__"] != key:
                    yield columns_of(row)
                    row = {}
                row["__key__"] = key
                value = _value(tar, member, column, wanted)
                if value is not None:
                    row[column] = value
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{damaged}: {error}.") from error
    if os.path.getsize(file) % tarfile.BLOCKSIZE:  # tarfile takes half a header for the end
        raise ValueError(f"{damaged}: it ends inside a block.")
    if row:
        yield columns_of(row)


def _value(tar: tarfile.TarFile, member: tarfile.TarInfo, column: str, wanted: list[str] | None):
    """The value of a column; None for what is not read."""
    suffix = column.rpartition(".")[2].lower()
    if f".{suffix}" in VIDEOS | PICTURES:
        return tar.extractfile(member).read() if wanted is None or column in wanted else None
    if suffix not in NUMBERS | TEXTS | JSONS:
        return None
    content = tar.extractfile(member).read()
    try:
        text = content.decode()
        return int(text) if suffix in NUMBERS else json.loads(text) if suffix in JSONS else text
    except ValueError:  # not what its suffix promises, and so no label
        return None


def features_of(file: str) -> dict:
    """Column -> its `datasets` feature, from the first samples of a tar file."""
    from datasets import Image, List, Value, Video

    values: dict[str, list] = {}
    for row in islice(read_tar(file), FIRST):
        for column, value in row.items():
            values.setdefault(column, []).append(value)
    features = {}
    for column, found in values.items():
        known = [value for value in found if value is not None]
        kinds = {type(value) for value in known}
        if kinds == {bytes}:
            suffix = suffix_of(f"x.{column}")
            is_video = suffix in VIDEOS or (suffix in MAY_MOVE and is_animated(io.BytesIO(known[0])))
            features[column] = Video() if is_video else Image()
        elif kinds and kinds <= {int, float, str, bool}:
            kind = next(iter(kinds)) if len(kinds) == 1 else float if kinds == {int, float} else None
            names = {int: "int64", float: "float64", str: "string", bool: "bool"}
            if kind is not None:
                features[column] = Value(names[kind])
        elif kinds == {list} and all(isinstance(each, int) for value in known for each in value):
            features[column] = List(Value("int64"))
    return features
