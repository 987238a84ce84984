"""Which clips a probe trains, chooses and tests on: three disjoint splits, carved where a dataset lacks one."""

import os
import re
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from evaluation.extraction import ClipSet, Job, data_key, dataset_fingerprint, extract
from tokenization.sources import open_source

VALIDATION_NAMES = ("validation", "val", "valid")
CARVED = 0.2  # share of the sources of a split that a carved-off one gets


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
            names = [str(n) for n in range(int(max(split.labels[column].max() for split in splits)) + 1)]
        seen = len(splits[0].labels[column].unique())
        if seen < 2:
            raise ValueError(
                f"all training clips have the same {column!r}; a probe needs two classes. Rows may be sorted by class: "
                "raise --max_train, or choose another --label_column."
            )
        if seen < len(names) / 2:
            raise ValueError(
                f"the {len(splits[0])} training clips hold {seen} of {len(names)} classes of {column!r}, so rows seem "
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
    change = frame_order(args.frame_order, args.seed)
    fingerprint = dataset_fingerprint(args.dataset)
    if fingerprint is None and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError(f"the version of {args.dataset} cannot be told without a network: probe with one process.")

    def collect(split: str, source) -> ClipSet:
        for column in columns:
            if column not in source.label_names:
                raise ValueError(f"split {split} of {args.dataset} has no label column {column!r}.")
        read = options | {"limit": source.limit, "order": args.frame_order}
        read |= {"order_seed": args.seed} if args.frame_order == "shuffled" else {}
        key = fingerprint and data_key(fingerprint, split, read)
        with tempfile.TemporaryDirectory(dir=cache) as unkept:  # where it cannot be told what the data are
            folder = cache / key if key else Path(unkept)
            found = extract(source, split, jobs, folder, change=change, batch_size=args.batch_size)
        found.labels = {column: found.labels[column] for column in columns}
        check_labels(found)
        return found

    def find(names: tuple[str, ...], limit: int):
        """The first of these splits that exists: (name, source), or None."""
        if Path(args.dataset).is_file():  # one file is one split, whatever it is called
            return None
        for name in names:
            try:
                return name, open_source(args.dataset, name, limit=limit, **options)
            except ValueError:
                continue
        return None

    def named(name: str, limit: int):
        return name, open_source(args.dataset, name, limit=limit, **options)

    if Path(args.dataset).is_file() and (args.validation_split or args.test_split):
        raise ValueError(f"{args.dataset} is one file and so one split: leave --validation_split and --test_split out.")
    train = named(args.train_split, most["train"])
    columns = label_columns(train[1], args.label_column, args.dataset)
    validation = (
        named(args.validation_split, most["validation"])
        if args.validation_split
        else find(tuple(name for name in VALIDATION_NAMES if name != args.test_split), most["validation"])
    )
    test = named(args.test_split, most["test"]) if args.test_split else find(("test",), most["test"])
    if test is None and validation is not None and not args.validation_split:
        test, validation = named(validation[0], most["test"]), None

    extra = (0 if validation else most["validation"]) + (0 if test else most["test"])
    if extra:
        train = named(args.train_split, most["train"] + extra)
    train = collect(*train)
    if test:
        test = collect(*test)
    else:
        keep = most["train"] + (0 if validation else most["validation"])
        train, test = carve(train, most["test"], keep, args.seed, args.group_by, cache)
    if validation:
        validation = collect(*validation)
    else:
        train, validation = carve(train, most["validation"], most["train"], args.seed, args.group_by, cache)
    return [train, validation, test]


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
    """The label columns to probe; by default those with class names, or else all columns of integers."""
    has = list(source.label_names)
    if not has:
        raise ValueError(f"{dataset} has no label column, so there is nothing to probe for.")
    for column in asked or []:
        if column not in has:
            raise ValueError(f"{dataset} has no label column {column!r}; it has {', '.join(has)}.")
    return list(asked or [column for column in has if source.label_names[column]] or has)
