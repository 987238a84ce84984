"""Labelled data for probes and fine-tuning: splits, groups that are kept on one side, label columns, class numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tokenization.sources.folders import VALIDATION
from tokenization.sources.open import ClipSource

CARVED = 0.2  # share of a split that is carved off for a split that the dataset lacks

# A split's name and its source.
Opened = tuple[str, ClipSource]


def open_splits(
    open_split: Callable[[str, str], ClipSource],
    dataset: str,
    train: str,
    validation: str | None = None,
    test: str | None = None,
) -> tuple[Opened, Opened | None, Opened | None]:
    """The train, validation and test splits of a dataset; None for one that has to be carved.

    A split that is not named is looked for under its usual names. Where only a validation split is found and none was
    named, it becomes the test split, and validation is carved from train, as in the literature on ImageNet.

    Args:
        open_split: opens a split, given its name and its role ("train", "validation" or "test").
        dataset: as in `open_source`. One file is one split, whatever its name.
        train, validation, test: names of splits; None looks for the usual ones.
    Raises:
        ValueError: a named split does not exist, or two roles name the same one.
    """
    named = [("--train_split", train), ("--validation_split", validation), ("--test_split", test)]
    flags: dict[str, str] = {}
    for flag, name in named:
        if name in flags:
            raise ValueError(
                f"{flags[name]} and {flag} both name the split {name!r} and would share every item; name another one "
                "or leave one of them out."
            )
        flags |= {name: flag} if name else {}
    is_file = Path(dataset).is_file()
    if is_file and (validation or test):
        raise ValueError(f"{dataset} is one file and therefore one split; omit --validation_split and --test_split.")

    opened: dict[str, Opened] = {}  # by the split's own name: a folder val is also the split validation

    def add(name: str, part: str) -> Opened | None:
        source = open_split(name, part)
        own = getattr(source, "split_name", None) or name
        if own in opened:
            return None
        opened[own] = own, source
        return opened[own]

    def find(usual: tuple[str, ...], part: str) -> Opened | None:
        for name in () if is_file else usual:
            if name not in flags:
                try:
                    if found := add(name, part):
                        return found
                except ValueError:
                    continue
        return None

    roles = {}
    for (flag, name), part in zip(named, ("train", "validation", "test"), strict=True):
        roles[part] = add(name, part) if name else None
        if name and roles[part] is None:
            raise ValueError(f"{flag} {name} is a split that another flag names too; name another one or leave it out.")
    found = roles["train"]
    found_validation = roles["validation"] or find(VALIDATION, "validation")
    found_test = roles["test"] or find(("test",), "test")
    if found_test is None and found_validation is not None and not validation:
        name = found_validation[0]
        found_validation, found_test = None, (name, open_split(name, "test"))
    return found, found_validation, found_test


def group_of(name: str, pattern: str | None) -> str:
    """The group of a clip or item: what `pattern` matches in its name.

    pattern: a regular expression, of which the first group is used if it has one. None: every name is a group.
    Raises:
        ValueError: the pattern does not match.
    """
    if pattern is None:
        return name
    found = re.search(pattern, name)
    if found is None:
        raise ValueError(f"--group_by {pattern!r} does not match the name {name!r}; give a pattern that matches all.")
    return found.group(found.re.groups and 1)


def carve(
    names: Sequence[str], split: str, seed: int, pattern: str | None, most: int | None = None, keep: int | None = None
) -> np.ndarray:
    """Mask, bool (N,), of the clips or items to carve off a split, for another split that the dataset lacks.

    About a fifth is carved off, in whole groups (`group_of`), so that the windows of one video, or the videos of one
    recording, are all on one side.

    Args:
        names: of the clips or items, (N,); windows of one video share one name.
        split: its name, for errors. seed: of the draw.
        most: approximate upper limit of the number carved off. keep: upper limit of the number that remains; all others
            are carved off.
    Raises:
        ValueError: there is only one group.
    """
    groups = [group_of(name, pattern) for name in names]
    counts = Counter(groups)
    order = sorted(counts)
    if len(order) < 2:
        what = "file or row" if pattern is None else f"group (--group_by {pattern!r})"
        raise ValueError(
            f"Split {split} has only one {what}, so no other split can be carved from it; name other splits."
        )
    np.random.default_rng(seed).shuffle(order)
    target = max(1, min(round(CARVED * len(groups)), len(groups) if most is None else most))
    target = target if keep is None else max(target, len(groups) - keep)
    chosen, size = set(), 0
    for name in order[:-1]:
        if size >= target:
            break
        chosen.add(name)
        size += counts[name]
    return np.array([group in chosen for group in groups])


def label_columns(source: ClipSource, asked: list[str] | None, dataset: str) -> list[str]:
    """The columns to use as labels: those asked for, else all with class names, else a single candidate.

    The candidates are a column called "label", then the only integer column, then the only column of text or booleans.

    Raises:
        ValueError: no such column, several candidates, or values that are not classes (fractions, lists).
    """
    named = [column for column, names in source.label_names.items() if names]
    numbers = [column for column, names in source.label_names.items() if not names]
    has = [*source.label_names, *source.text_labels]
    for column in asked or ():
        if column in source.no_labels:
            raise ValueError(f"{dataset}: the column {source.no_labels[column]}; name another --label_column.")
        if column not in has:
            listed = f"it has {', '.join(has)}" if has else "it has none"
            raise ValueError(f"{dataset} has no label column {column!r}; {listed}. Name one with --label_column.")
    if asked or named:
        return list(asked or named)
    for candidates in (["label"] if "label" in has else [], numbers, source.text_labels):
        if len(candidates) == 1:
            return list(candidates)
        if candidates:
            raise ValueError(f"{dataset} has several label columns; name one with --label_column: {', '.join(has)}.")
    if "label" in source.no_labels:
        raise ValueError(f"{dataset}: the column {source.no_labels['label']}; name another --label_column.")
    raise ValueError(
        f"{dataset} has no label column; put its files into class folders, or add a column that holds the classes."
    )


def check_first(source: ClipSource, split: str, columns: list[str], flag: str, dataset: str) -> None:
    """Raises ValueError if a split lacks a label column or its first label is hidden. Reads one item, decodes none."""
    for column in columns:
        if column not in source.label_names and column not in source.text_labels:
            raise ValueError(f"Split {split} of {dataset} has no label column {column!r}; name another {flag}.")
    if dataset.split(":")[0] == "toyworld":  # its labels are known once a clip is drawn
        return
    item = next(iter(source.list_items(0)), None)
    for column in columns if item is not None else ():
        if is_missing(item.labels.get(column)):
            raise ValueError(
                f"Split {split} of {dataset} has no {column!r} (missing or hidden) from its first item on; name "
                f"another {flag}."
            )


def is_missing(label: int | str | None) -> bool:
    """Whether a label is absent (None, empty text) or hidden (-1, as in the test splits of public benchmarks)."""
    return label is None or label == "" or (not isinstance(label, str) and label < 0)


def check_labels(labels: np.ndarray, names: list[str] | None, column: str, split: str, sources: list[str]) -> None:
    """Raises ValueError if a clip has no label, or a class number without a name.

    labels: (N,) numbers or text. names: of the classes; None or empty if they have none. split: its name, for errors.
    sources: of the clips.
    """
    missing = [k for k, label in enumerate(labels.tolist()) if is_missing(label)]
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(labels)} clips of {split} have no {column!r} (missing or hidden; "
            f"the first: {sources[missing[0]]}); use other splits."
        )
    if names and labels.max() >= len(names):
        raise ValueError(
            f"{sources[int(labels.argmax())]} of {split} has {column!r} {labels.max()}, but only {len(names)} "
            "classes have names; correct the dataset."
        )


def number_classes(
    column: str, labels: list[np.ndarray], names: list[list[str] | None]
) -> tuple[list[np.ndarray], list[str]]:
    """The labels of every split as class numbers in one common numbering, and the class names.

    A split whose folder lacks a class numbers the others differently, so classes are matched by name where names exist.
    Numbers without names (1 to 3, or 10, 20 and 40) and text become classes in sorted order, named after themselves.

    Args:
        column: its name, for errors.
        labels: of each split, (N,) numbers or text; the training split comes first.
        names: class names of each split; None or empty if the column has none.
    Raises:
        ValueError: the training clips have one class, or fewer than half of the classes, or no two clips share a label.
    """
    if all(names):
        classes = list(dict.fromkeys(name for of_split in names for name in of_split))
        number = {name: place for place, name in enumerate(classes)}
        numbered = [np.array([number[name] for name in own])[values] for own, values in zip(names, labels, strict=True)]
    else:
        values = np.unique(np.concatenate(labels))
        if len(values) == sum(map(len, labels)):
            raise ValueError(
                f"No two clips have the same {column!r}, so it does not name classes; name another --label_column."
            )
        numbered = [np.searchsorted(values, of_split) for of_split in labels]
        classes = [str(value) for value in values]
    seen = len(np.unique(numbered[0]))
    if seen < 2:
        raise ValueError(
            f"All training clips have the same {column!r}, and at least two classes are needed. If rows are sorted by "
            "class, raise --max_train; otherwise choose another --label_column."
        )
    if seen < len(classes) / 2:
        raise ValueError(
            f"The {len(numbered[0])} training clips hold {seen} of {len(classes)} classes of {column!r}. If rows are "
            "sorted by class, raise --max_train."
        )
    return numbered, classes


def describe_classes(column: str, classes: list[str], most: int = 12) -> str:
    """A line that reports how text labels were numbered."""
    listed = ", ".join(classes[:most]) + (", ..." if len(classes) > most else "")
    return f"{len(classes)} classes of {column!r}, numbered in the sorted order of their text: {listed}"
