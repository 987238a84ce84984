"""Which clips a probe trains, chooses and tests on: three disjoint splits, carved where a dataset lacks one."""

import math
import os
import tempfile
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from evaluation.backbones.extraction import ClipSet, Job, data_key, dataset_fingerprint, extract
from tokenization.sampling import Sampling
from tokenization.sources.labelled import carve, check_first, check_labels, label_columns, number_classes, open_splits
from tokenization.sources.open import open_source


def carve_clips(clips: ClipSet, folder: Path, **options) -> tuple[ClipSet, ClipSet]:
    """(rest, carved) of a split; see `labelled.carve` for the options. folder: for what does not fit in memory."""
    inside = carve(clips.sources, clips.split, **options)
    rest = clips.take(np.flatnonzero(~inside), clips.split, folder)
    carved = clips.take(np.flatnonzero(inside), f"carved from {clips.split} (seed {options['seed']})", folder)
    carved.skipped = []  # already in the list of the rest
    return rest, carved


def same_classes(splits: list[ClipSet]) -> dict[str, list[str]]:
    """Give all splits the same class numbers, in place; returns the class names of every column."""
    classes = {}
    for column in splits[0].labels:
        labels = [split.labels[column] for split in splits]
        numbered, classes[column] = number_classes(column, labels, [split.label_names.get(column) for split in splits])
        for split, values in zip(splits, numbered, strict=True):
            split.labels[column] = values
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
    too. `ClipSet.split` says which.
    """
    most = {"train": args.max_train, "validation": max(1, args.max_eval // 4), "test": args.max_eval}
    options = {"image_column": args.image_column, "shuffle_seed": 0}  # fixed: seeds are compared on the same clips
    sampling = Sampling(num_frames, args.stride, args.fps, resolution, detail=args.detail)
    samplings = dict.fromkeys(most, sampling)
    if args.views:  # where tested videos have several views, those that train and choose give their middle
        samplings = dict.fromkeys(most, replace(sampling, views=(1, 1)))
        samplings["test"] = replace(sampling, views=tuple(args.views))
    most["test"] *= math.prod(args.views or (1,))  # clips, of as many videos
    change = frame_order(args.frame_order, args.seed)
    fingerprint = dataset_fingerprint(args.dataset)
    if fingerprint is None and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise ValueError(f"The version of {args.dataset} is unknown without a network; probe with one process.")

    def open_part(split: str, part: str, extra: int = 0):
        return open_source(args.dataset, split, samplings[part], limit=most[part] + extra, **options)

    def collect(part: str, split: str, source) -> ClipSet:
        read = options | asdict(samplings[part]) | {"limit": source.limit, "order": args.frame_order}
        read |= {"order_seed": args.seed} if args.frame_order == "shuffled" else {}
        read |= {"text_labels": source.text_labels} if source.text_labels else {}
        key = fingerprint and data_key(fingerprint, split, read)
        with tempfile.TemporaryDirectory(dir=cache) as unkept:  # where the version of the data is unknown
            folder = cache / key if key else Path(unkept)
            found = extract(source, split, jobs, folder, change=change, batch_size=args.batch_size)
        found.labels = {column: found.labels[column] for column in columns}
        for column, labels in found.labels.items():
            check_labels(labels, found.label_names.get(column), column, f"split {found.split}", found.sources)
        return found

    asked = args.train_split, args.validation_split, args.test_split
    train, validation, test = open_splits(open_part, args.dataset, *asked)
    columns = label_columns(train[1], args.label_column, args.dataset)
    if test is None and samplings["test"] != samplings["train"]:
        raise ValueError("--views are of a test split of its own, and there is none; give --views 1 1.")
    if test is not None and test[1].kind == "image" and args.views and args.views[0] > 1:
        raise ValueError(
            f"Images have one window; give --views 1 {args.views[1]}, not {args.views[0]} {args.views[1]}."
        )
    extra = (0 if validation else most["validation"]) + (0 if test else most["test"])
    if extra:
        train = train[0], open_part(train[0], "train", extra)
    found = {"train": train, "validation": validation, "test": test}
    for part, (split, source) in ((part, each) for part, each in found.items() if each):
        check_first(source, split, columns, f"--{part}_split", args.dataset)

    how = {"seed": args.split_seed, "pattern": args.group_by, "folder": cache}
    train = collect("train", *train)
    if test:
        test = collect("test", *test)
    else:
        keep = most["train"] + (0 if validation else most["validation"])
        train, test = carve_clips(train, most=most["test"], keep=keep, **how)
    if validation:
        validation = collect("validation", *validation)
    else:
        train, validation = carve_clips(train, most=most["validation"], keep=most["train"], **how)
    return [train, validation, test]
