"""Which clips a probe trains, chooses and tests on: three disjoint splits, carved where a dataset lacks one."""

import math
import os
import re
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from evaluation.extraction import ClipSet, Job, data_key, dataset_fingerprint, extract
from tokenization.sources import open_source
from training.splits import CARVED, VALIDATION_NAMES, other_splits


def group_of(source: str, pattern: str | None) -> str:
    """What a clip belongs to and may not be parted from: what `pattern` finds in its name, or the file itself.

    Raises:
        ValueError: the pattern finds nothing.
    """
    if pattern is None:
        return source
    found = re.search(pattern, source)
    if found is None:
        raise ValueError(f"--group_by {pattern!r} finds nothing in the name {source!r}.")
    return found.group(found.re.groups and 1)


def carve(
    clips: ClipSet, most: int, keep: int, seed: int, pattern: str | None, folder: Path
) -> tuple[ClipSet, ClipSet]:
    """Split off about a fifth of the clips, at most `most`, and all that the rest has beyond `keep`: (rest, carved).

    Whole sources (or groups of them) move, so that two windows of one video are never on both sides.
    """
    groups = [group_of(source, pattern) for source in clips.sources]
    counts = Counter(groups)
    names = sorted(counts)
    if len(names) < 2:
        raise ValueError(f"split {clips.split} has one source only, so no validation clips can be taken from it.")
    np.random.default_rng(seed).shuffle(names)
    target = max(1, min(most, round(CARVED * len(clips))), len(clips) - keep)
    chosen, size = set(), 0
    for name in names[:-1]:
        if size >= target:
            break
        chosen.add(name)
        size += counts[name]
    inside = np.array([group in chosen for group in groups])
    rest = clips.take(np.flatnonzero(~inside), clips.split, folder)
    carved = clips.take(np.flatnonzero(inside), f"carved from {clips.split} (seed {seed})", folder)
    carved.skipped = []  # already in the list of the rest
    return rest, carved


def same_classes(splits: list[ClipSet]) -> dict[str, list[str]]:
    """Give all splits the same class numbers, in place; returns the class names of every column.

    A folder without one class numbers the others differently, so classes are matched by name where they have names.
    Numbers without names are their own names, whatever they are: 1 to 3, or 10, 20 and 40.
    """
    classes = {}
    for column in splits[0].labels:
        if all(split.label_names.get(column) for split in splits):
            names = list(dict.fromkeys(name for split in splits for name in split.label_names[column]))
            numbers = {name: number for number, name in enumerate(names)}
            for split in splits:
                table = torch.tensor([numbers[name] for name in split.label_names[column]])
                split.labels[column] = table[split.labels[column]]
        else:
            values = torch.cat([split.labels[column] for split in splits]).unique()
            if len(values) == sum(map(len, splits)):
                raise ValueError(
                    f"no two clips have the same {column!r}, so it numbers them; name another --label_column."
                )
            for split in splits:
                split.labels[column] = torch.searchsorted(values, split.labels[column])
            names = [str(value) for value in values.tolist()]
        seen = len(splits[0].labels[column].unique())
        if seen < 2:
            raise ValueError(
                f"all training clips have the same {column!r}; a probe needs two classes. Rows may be sorted by class: "
                "raise --max_train, or choose another --label_column."
            )
        if seen < len(names) / 2:
            raise ValueError(
                f"the {len(splits[0])} training clips hold {seen} of {len(names)} classes of {column!r}: rows may be "
                "sorted by class; raise --max_train."
            )
        classes[column] = names
    return classes


def frame_order(name: str, seed: int):
    """The change of a clip's frames (T, R, R, 3) that a control asks for; None for "ordered".

    "middle" is the frame in the middle alone, "shuffled" one order for each clip, drawn from `seed` and its name.
    """
    if name == "ordered":
        return None

    def change(frames: np.ndarray, source: str) -> np.ndarray:
        if name == "middle":
            return frames[len(frames) // 2 : len(frames) // 2 + 1]
        if name == "reversed":
            return frames[::-1].copy()
        return frames[np.random.default_rng([seed, *source.encode()]).permutation(len(frames))]

    return change


def read_splits(args, jobs: list[Job], resolution: int, num_frames: int, cache: Path) -> list[ClipSet]:
    """[train, validation, test] for `ProbeArgs`, each clip decoded, tokenised and run through all backbones once.

    A missing validation split is carved from train; a missing test split is replaced by the validation split, or carved
    too. What stands in for what is in `ClipSet.split`.
    """
    most = {"train": args.max_train, "validation": max(1, args.max_eval // 4), "test": args.max_eval}
    options = {
        "num_frames": num_frames,
        "stride": args.stride,
        "fps": args.fps,
        "resolution": resolution,
        "image_column": args.image_column,
        "detail": args.detail,
        "shuffle_seed": 0,  # not --seed: several seeds are to be compared on the same clips
    }
    # Where tested videos have several views, those that train and choose give their middle.
    views = {part: {"views": tuple(args.views) if part == "test" else (1, 1)} if args.views else {} for part in most}
    most["test"] *= math.prod(args.views or (1,))  # clips, of as many videos
    change = frame_order(args.frame_order, args.seed)
    fingerprint = dataset_fingerprint(args.dataset)
    if fingerprint is None and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError(f"the version of {args.dataset} cannot be told without a network: probe with one process.")
    is_file = Path(args.dataset).is_file()  # one file is one split, whatever it is called
    if is_file and (args.validation_split or args.test_split):
        raise ValueError(f"{args.dataset} is one file and so one split: leave --validation_split and --test_split out.")

    def opened(split: str, part: str, extra: int = 0):
        """(split, its source), read as this part."""
        return split, open_source(args.dataset, split, limit=most[part] + extra, **options, **views[part])

    def find(asked: str | None, names: tuple[str, ...], part: str):
        """The split asked for, or the first of these that exists, or None."""
        if asked:
            return opened(asked, part)
        for name in () if is_file else names:
            try:
                return opened(name, part)
            except ValueError:
                continue
        return None

    def collect(part: str, split: str, source) -> ClipSet:
        read = options | views[part] | {"limit": source.limit, "order": args.frame_order}
        read |= {"order_seed": args.seed} if args.frame_order == "shuffled" else {}
        key = fingerprint and data_key(fingerprint, split, read)
        with tempfile.TemporaryDirectory(dir=cache) as unkept:  # where it cannot be told what the data are
            folder = cache / key if key else Path(unkept)
            found = extract(source, split, jobs, folder, change=change, batch_size=args.batch_size)
        found.labels = {column: found.labels[column] for column in columns}
        check_labels(found)
        return found

    asked = args.train_split, args.validation_split, args.test_split
    validation_names, test_names = (other_splits(names, *asked) for names in (VALIDATION_NAMES, ("test",)))
    train = opened(args.train_split, "train")
    columns = label_columns(train[1], args.label_column, args.dataset)
    validation = find(args.validation_split, validation_names, "validation")
    test = find(args.test_split, test_names, "test")
    if test is None and validation is not None and not args.validation_split:
        test, validation = opened(validation[0], "test"), None
    if test is None and views["test"] != views["train"]:
        raise ValueError("--views are of a test split of its own, and there is none: take --views 1 1.")
    if test is not None and test[1].kind == "image" and args.views and args.views[0] > 1:
        raise ValueError(f"images have one window: --views 1 {args.views[1]}, not {args.views[0]} {args.views[1]}.")
    extra = (0 if validation else most["validation"]) + (0 if test else most["test"])
    if extra:
        train = opened(args.train_split, "train", extra)
    found = {"train": train, "validation": validation, "test": test}
    for part, (split, source) in ((part, each) for part, each in found.items() if each):
        check_first(source, split, columns, f"--{part}_split", args.dataset)

    train = collect("train", *train)
    if test:
        test = collect("test", *test)
    else:
        keep = most["train"] + (0 if validation else most["validation"])
        train, test = carve(train, most["test"], keep, args.seed, args.group_by, cache)
    if validation:
        validation = collect("validation", *validation)
    else:
        train, validation = carve(train, most["validation"], most["train"], args.seed, args.group_by, cache)
    return [train, validation, test]


def check_first(source, split: str, columns: list[str], flag: str, dataset: str) -> None:
    """Raises ValueError where a split lacks a column or hides its labels: by one item, before features are made."""
    for column in columns:
        if column not in source.label_names:
            raise ValueError(f"split {split} of {dataset} has no label column {column!r}.")
    is_drawn = dataset.split(":")[0] == "toyworld"  # whose labels are known once a clip is drawn
    item = None if is_drawn else next(iter(source.list_items(0)), None)
    for column in columns if item is not None else ():
        if item.labels.get(column, -1) < 0:
            raise ValueError(
                f"split {split} of {dataset} has no {column!r} (missing or hidden) from its first item on; name "
                f"another {flag}."
            )


def check_labels(clips: ClipSet) -> None:
    """Raises ValueError where a clip has no label, or one that its column has no name for."""
    for column, values in clips.labels.items():
        missing = int((values < 0).sum())
        if missing:
            name = clips.sources[int((values < 0).int().argmax())]
            raise ValueError(
                f"{missing} of the {len(clips)} clips of split {clips.split} have no {column!r} (missing or hidden; "
                f"the first: {name}); use other splits."
            )
        names = clips.label_names.get(column)
        if names and int(values.max()) >= len(names):
            name = clips.sources[int(values.argmax())]
            raise ValueError(
                f"{name} in split {clips.split} has the {column!r} {int(values.max())}, but only {len(names)} classes "
                "are named; mend the data set."
            )


def label_columns(source, asked: list[str] | None, dataset: str) -> list[str]:
    """The label columns to probe; by default those with class names, or else the only column of integers."""
    has = list(source.label_names)
    for column in asked or ["label"]:
        if column in source.no_labels and (asked or not has):
            raise ValueError(f"the column {source.no_labels[column]} ({dataset}).")
    if not has:
        raise ValueError(f"{dataset} has no label column, so there is nothing to probe for.")
    for column in asked or []:
        if column not in has:
            raise ValueError(f"{dataset} has no label column {column!r}; it has {', '.join(has)}.")
    named = [column for column in has if source.label_names[column]]
    if not asked and not named and len(has) > 1:
        raise ValueError(
            f"{dataset} has several columns of whole numbers; name one with --label_column: {', '.join(has)}."
        )
    return list(asked or named or has)
