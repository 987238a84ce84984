"""Rows of a folder: its files are sorted into those that a split reads and those that are left, all of them counted."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial

from tokenization.sources import tables, tars
from tokenization.sources.dataset_rows import Rows, media_columns
from tokenization.sources.folders import (
    SPLITS,
    Tree,
    choose_split,
    classes_of,
    numbered_splits,
    split_folders,
    wrapper_of,
)
from tokenization.sources.kinds import (
    ARCHIVES,
    PICTURES,
    SAMPLE,
    TABLES,
    TARS,
    VIDEOS,
    by_suffix,
    counted,
    is_code,
    is_media,
    main_kind,
    of_kind,
    suffix_of,
)
from tokenization.sources.metadata import METADATA, config_files, read_metadata
from tokenization.storage.copies import local_copy
from tokenization.storage.remote import READ_ONLY, Remote, is_remote

# Classes that are named in the report.
MOST_TOLD = 6
# Names of folders that a reader may take for splits. They are not, since a class may have any name.
ALIKE = (*SPLITS, "training", "testing", "eval", "evaluation")
# Tables whose columns are looked at; of more, the first one stands for all.
MOST_SCHEMAS = 256
# Pictures under a URL that are fetched to see whether most of them move.
REMOTE_SAMPLE = 16


def table_rows(files: list[str], split: str, features: dict | None = None) -> Rows:
    """The rows of parquet or arrow files, paths or URLs. features: of columns whose type the files do not have."""
    return Rows(
        dict(tables.features_of(at_hand(files[0]))) | (features or {}),
        lambda shard, wanted: tables.read_rows(at_hand(files[shard]), wanted),
        split,
        num_shards=len(files),
        tables=[] if is_remote(files[0]) else files,  # drawing random rows of URLs would fetch most row groups
    )


def at_hand(file: str) -> str:
    """A file that `tables` and `tars` can read: its path, or that of a copy of what is under this URL.

    A parquet file stays where it is, unless a web server has it, which may not know ranges of bytes.
    """
    if not is_remote(file) or (suffix_of(file) == ".parquet" and Remote(file).protocol not in READ_ONLY):
        return file
    return str(local_copy(file))


def choose(dataset: str, splits: list[str], asked: str | None, others: list[str] = ()) -> str:
    """The split that `asked` means; raises ValueError with the names that there are."""
    try:
        found = choose_split(splits, asked)
    except ValueError as error:
        raise ValueError(f"{dataset}: {error}") from error
    if found is None:
        listed = ", ".join([*others[:5], *(["..."] if len(others) > 5 else [])])
        more = f" Other folders that can be named as a split: {listed}." if others else ""
        raise ValueError(f"{dataset} has no split {asked!r}; it has {', '.join(splits)}.{more}")
    return found


class Folder:
    """A folder whose files are sorted into those of a split and those left; arguments as in `open_source`.

    read, metadata: names of the files that are read. what: what they are, in words. left: reason -> names of the
    others. told: remarks on what is read.
    """

    def __init__(self, dataset: str, tree: Tree, config: dict, split, kind, image_column):
        self.dataset, self.tree, self.config, self.asked = dataset, tree, config, split
        self.kind, self.image_column = kind, image_column
        # Names of items start at the folder that was given, even if a configuration is a folder inside it.
        if is_remote(dataset):
            inside = tree.root[len(dataset.rstrip("/")) :].strip("/") or "."
        else:
            inside = os.path.relpath(tree.root, os.path.abspath(dataset)).replace(os.sep, "/")
        self.prefix = "" if inside == "." else f"{inside}/"
        self.read, self.metadata, self.left, self.told = [], [], {}, []
        self.what = "file"
        self.files, self.declared = tree.files, None
        if config.get("data_files"):
            self.declared = config_files(tree, config["data_files"])
            self.files = sorted({name for names in self.declared.values() for name in names})
        self.media = [n for n in self.files if is_media(n) and not (suffix_of(n) == ".ts" and is_code(tree.path(n)))]

    def rows(self) -> Rows:
        """The rows of the split that was asked for."""
        own_tables = self._tables_of_media()
        own_tars = [name for name in self.files if suffix_of(name) in TARS]
        if own_tables:
            rows = self._file_rows(own_tables)
        elif own_tars and len(own_tars) >= len(self.media):
            rows = self._file_rows(own_tars)
        elif self.media:
            rows = self._media_rows()
        else:
            raise ValueError(self._nothing())
        left = self._all_left()
        rows.found, rows.left = self._report(rows.split, left), {why: by_suffix(names) for why, names in left.items()}
        return rows

    def _tables_of_media(self) -> list[str]:
        """The parquet and arrow files that have a column of media; others, such as lists of files, are not data."""
        found = [name for name in self.files if suffix_of(name) in TABLES]
        if is_remote(self.tree.root):  # looking at a table fetches some of it
            found = [name for name in found if name.rpartition("/")[2] not in METADATA]
        looked_at = found if len(found) <= MOST_SCHEMAS and not is_remote(self.tree.root) else found[:1]
        usable = []
        for name in looked_at:
            features = {**tables.features_of(at_hand(self.tree.where(name))), **(self.config.get("features") or {})}
            if self.image_column in features or media_columns(features):
                usable.append(name)
        return found if usable and looked_at != found else usable

    def _nothing(self) -> str:
        if self.declared is not None:
            where = f"{self.tree.root} matches a pattern of its README.md"
            return f"No media file in {where}; correct the data_files there."
        names = [*self.tree.files, *self.tree.hidden]
        archives = [name for name in names if suffix_of(name) in ARCHIVES]
        if archives:
            return f"{self.dataset} holds archives ({archives[0]}), which are not read; unpack them into the folder."
        return (
            f"There are no videos and no images in {self.dataset}, nor tables or tar files of them "
            f"(found {counted(by_suffix(names))})."
            + (" Name a column of bytes with --image_column." if any(suffix_of(n) in TABLES for n in names) else "")
        )

    def _choose(self, names: list[str], has_classes: bool) -> tuple[str, dict[str, list[str]], dict[str, str]]:
        """(the split to read, every split -> its files, every split -> its folder); what is in no split is left."""
        wrapper = ""
        if self.declared is not None:
            known = set(names)
            splits = {split: [n for n in files if n in known] for split, files in self.declared.items()}
            bases = {split: _common_folder(files) for split, files in splits.items()}
        elif splits := split_folders(names, self.asked, has_classes):
            bases = {split: f"{split}/" for split in splits}
        elif wrapper := wrapper_of(names, self.asked, has_classes):
            inside = split_folders([name[len(wrapper) :] for name in names], self.asked, has_classes)
            splits = {split: [wrapper + name for name in files] for split, files in inside.items()}
            bases = {split: f"{wrapper}{split}/" for split in splits}
            self.told.append(f"splits are the folders of {wrapper[:-1]}")
        else:
            splits = ({} if has_classes else numbered_splits(names, self.asked)) or {"train": names}
            bases = dict.fromkeys(splits, "")
            alike = sorted({top for n in names if "/" in n and (top := n.split("/")[0]).lower() in ALIKE})
            if has_classes and len(alike) > 1:
                self.told.append(
                    f"{' and '.join(alike[:2])} are not splits by their names, but --split {alike[0]} reads one of them"
                )
            deeper = {"/".join(n.split("/")[:2]) for n in names if n.count("/") > 1 and n.split("/")[1] in SPLITS}
            if has_classes and len(deeper) > 1:
                self.told.append(f"{' and '.join(sorted(deeper)[:2])} are not splits, which are direct subfolders")
        tops = {n[len(wrapper) :].split("/")[0] for n in names if "/" in n[len(wrapper) :]}
        others = sorted(tops - set(splits)) if has_classes else []
        chosen = choose(self.dataset, list(splits), self.asked, others)
        self.read = splits[chosen]
        seen = set(self.read)
        for split, files in splits.items():
            if rest := [name for name in files if name not in seen]:
                self.left[f"in split {split}"] = rest
                seen |= set(rest)
        if outside := [name for name in names if name not in seen]:
            self.left["in no split"] = outside
        return chosen, splits, bases

    def _file_rows(self, names: list[str]) -> Rows:
        """Rows of tables or tar files."""
        chosen, _, _ = self._choose(names, has_classes=False)
        if not self.read:
            raise ValueError(f"The split {chosen} of {self.dataset} holds no files.")
        paths = [self.tree.where(name) for name in self.read]
        if suffix_of(paths[0]) in TABLES:
            return table_rows(paths, chosen, self.config.get("features"))
        features = tars.features_of(at_hand(paths[0]))
        first = next(tars.read_tar(at_hand(paths[0]), []), {})
        if "/" in first.get("__key__", "") and features.keys() == {"__key__", *media_columns(features)}:
            self.told.append("no labels: folders inside tar files are no classes; unpack them")
        return Rows(
            features, lambda shard, wanted: tars.read_tar(at_hand(paths[shard]), wanted), chosen, num_shards=len(paths)
        )

    def _media_rows(self) -> Rows:
        """Rows of videos or images, with the labels of their metadata or of their class folders."""
        from datasets import ClassLabel, Image, Video

        few = REMOTE_SAMPLE if is_remote(self.tree.root) else SAMPLE
        kind = self.kind or main_kind(self.media, self.tree.path, few)
        columns, described, files = read_metadata(self.tree)
        if any(isinstance(row["file_name"], list) for row in described):
            return self._listed_clips(columns, described, files)
        names, self.what = of_kind(self.media, kind, self.tree.path), kind
        if not names:
            has = counted(by_suffix(self.media))
            raise ValueError(f"There are no {kind}s in {self.dataset} (found {has}).")
        other = "image" if kind == "video" else "video"
        if rest := sorted(set(self.media) - set(names)):
            self.left[f"{other}s beside {kind}s (--kind {other} reads them)"] = rest
        chosen, splits, bases = self._choose(names, has_classes=True)
        features = {kind: Video() if kind == "video" else Image()}
        if rows := self._described(described, kind, bases[chosen]):
            self.metadata = files
            self.told.append(f"with metadata of {len(rows):,} rows")
            read = partial(self._described_rows, rows, kind)
            return Rows(features | columns, read, chosen, lists_paths=True, count=len(rows))
        if labels := self._labels(splits, bases, chosen):
            features["label"] = ClassLabel(names=labels)
        read = partial(self._labelled_rows, self.read, kind, {name: k for k, name in enumerate(labels)})
        return Rows(features, read, chosen, lists_paths=True, count=len(self.read))

    def _labels(self, splits: dict[str, list[str]], bases: dict[str, str], chosen: str) -> list[str]:
        """Sorted names of the classes of all splits; empty if the files of the split are not in class folders."""
        found = {split: classes_of(names, bases[split]) for split, names in splits.items()}
        names = sorted(set().union(*found.values()))
        if found[chosen] and len(names) > 1 and not self.config.get("drop_labels"):
            few = sorted(found[chosen])[:MOST_TOLD]
            more = ", ..." if len(found[chosen]) > MOST_TOLD else ""
            self.told.append(f"{len(found[chosen]):,} classes: {', '.join(few)}{more}")
            return names
        is_nested = any("/" in name[len(bases[chosen]) :] for name in splits[chosen])
        self.told.append("no labels" if found[chosen] or not is_nested else "no labels: files lie at unequal depths")
        return []

    def _media_row(self, name: str, kind: str) -> dict:
        return {kind: self.tree.medium(name), "__key__": self.prefix + name}

    def _labelled_rows(self, names: list[str], kind: str, number: dict[str, int], _shard, _wanted) -> Iterator[dict]:
        for name in names:
            yield self._media_row(name, kind) | ({"label": number[name.split("/")[-2]]} if number else {})

    def _described(self, described: list[dict], kind: str, base: str) -> list[dict]:
        """The rows of the metadata on files of the split, or on missing ones, sorted by path."""
        wanted, known, suffixes = set(self.read), set(self.tree.files), VIDEOS if kind == "video" else PICTURES
        rows = [row for row in described if row["file_name"] in wanted]
        if not rows:  # the split has no metadata
            return []
        has = {row["file_name"] for row in rows}
        rows += [
            row
            for row in described
            if (name := row["file_name"]) not in known and name.startswith(base) and suffix_of(name) in suffixes
        ]
        if unlisted := [name for name in self.read if name not in has]:
            self.left["not in the metadata"] = unlisted
            self.read = [name for name in self.read if name in has]
        return sorted(rows, key=lambda row: row["file_name"])

    def _described_rows(self, rows: list[dict], kind: str, _shard, _wanted) -> Iterator[dict]:
        for row in rows:
            yield row | self._media_row(row["file_name"], kind)

    def _listed_clips(self, columns: dict, described: list[dict], files: list[str]) -> Rows:
        """Clips whose frames are listed in the metadata; a split is the folder of their first frames."""
        from datasets import Image, List

        described = sorted((row for row in described if row["file_name"]), key=lambda row: row["file_name"])
        chosen, splits, _ = self._choose(sorted({row["file_name"][0] for row in described}), has_classes=False)
        first = set(splits[chosen])
        rows = [row for row in described if row["file_name"][0] in first]
        frames = {name for row in rows for name in row["file_name"]}
        used = {name for row in described for name in row["file_name"]}
        self.read, self.metadata = [name for name in self.media if name in frames], files
        self.left = {
            "in other splits": [name for name in self.media if name in used - frames],
            "not in the metadata": [name for name in self.media if name not in used],
        }
        self.told.append(f"{len(rows):,} clips of listed frames")

        def read(_shard, _wanted) -> Iterator[dict]:
            for row in rows:
                frames = [self.tree.medium(name) for name in row["file_name"]]
                yield row | {"frames": frames, "__key__": self.prefix + row["file_name"][0]}

        return Rows({"frames": List(Image())} | columns, read, chosen, lists_paths=True, count=len(rows))

    def _all_left(self) -> dict[str, list[str]]:
        """Reason -> names of all files that are not read."""
        seen = {*self.read, *self.metadata, *(name for names in self.left.values() for name in names)}
        rest = [name for name in self.tree.files if name not in seen]
        left = dict(self.left)
        left["archives (unpack them)"] = [name for name in rest if suffix_of(name) in ARCHIVES]
        left["no media"] = [name for name in rest if suffix_of(name) not in ARCHIVES]
        left["hidden"] = self.tree.hidden
        left["links to nothing"] = self.tree.broken
        left["links to a folder that they are in"] = self.tree.loops
        return {why: names for why, names in left.items() if names}

    def _report(self, split: str, left: dict[str, list[str]]) -> list[str]:
        found = [*self.tree.files, *self.tree.hidden, *self.tree.broken, *self.tree.loops]
        remarks = "".join(f"; {remark}" for remark in self.told)
        lines = [
            f"found {_many(len(found), 'file')} in {self.dataset}: {counted(by_suffix(found))}",
            f"read {_many(len(self.read), self.what)} of split {split} ({counted(by_suffix(self.read))}{remarks})",
        ]
        if self.metadata:
            lines.append(f"read {_many(len(self.metadata), 'file')} of metadata ({', '.join(self.metadata)})")
        if left:
            listed = "; ".join(f"{why}: {counted(by_suffix(names))}" for why, names in left.items())
            lines.append(f"left {sum(map(len, left.values())):,} ({listed})")
        return lines


def _many(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _common_folder(names: list[str]) -> str:
    """The deepest folder that holds all files, with a slash at its end; empty for the root."""
    folders = {name.rpartition("/")[0] for name in names}
    common = "" if not folders or "" in folders else os.path.commonpath(folders).replace(os.sep, "/")
    return f"{common}/" if common else ""
