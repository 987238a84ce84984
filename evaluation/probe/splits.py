"""The clips that a probe trains, chooses and tests on: three disjoint splits, carved where a dataset lacks one."""

import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from evaluation.backbones.extraction import ClipSet, Job, data_key, dataset_fingerprint, extract
from evaluation.backbones.inputs import InputJob, input_jobs, with_inputs
from evaluation.probe.plan import check_disk
from tokenization.sampling import Sampling
from tokenization.sources.labelled import (
    Opened,
    carve,
    check_first,
    check_labels,
    label_columns,
    number_classes,
    open_splits,
)
from tokenization.sources.open import ClipSource, open_source

CARVED_FROM = "carved from "  # begins the name of a carved split


def is_carved(split: str) -> bool:
    """Whether `ClipSet.split` is of clips carved from another split."""
    return split.startswith(CARVED_FROM)


def carve_clips(clips: ClipSet, folder: Path, **options) -> tuple[ClipSet, ClipSet]:
    """(rest, carved) of a split; see `labelled.carve` for the options. folder: for what does not fit in memory."""
    inside = carve(clips.sources, clips.split, **options)
    rest = clips.take(np.flatnonzero(~inside), clips.split, folder)
    carved = clips.take(np.flatnonzero(inside), f"{CARVED_FROM}{clips.split} (seed {options['seed']})", folder)
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


@dataclass(frozen=True)
class FrameOrder:
    """The order of a clip's frames: a control of what order contributes.

    name: "ordered", "reversed", "shuffled" (one order for each clip, drawn from `seed` and its name), or "middle" (the
    frame in the middle alone).
    """

    name: str = "ordered"
    seed: int = 0

    def __call__(self, frames: np.ndarray, source: str) -> np.ndarray:
        """frames: (T, R, R, 3). source: the clip's name."""
        if self.name == "middle":
            return frames[len(frames) // 2 : len(frames) // 2 + 1]
        if self.name == "reversed":
            return frames[::-1].copy()
        if self.name == "shuffled":
            return frames[np.random.default_rng([self.seed, *source.encode()]).permutation(len(frames))]
        return frames

    def facts(self) -> dict:
        """The settings that the features depend on."""
        return {"order": self.name} | ({"order_seed": self.seed} if self.name == "shuffled" else {})


@dataclass(frozen=True)
class Labelled:
    """The clips of a dataset to read, and which of their labels.

    Fields:
        dataset, image_column, config_name: as in `open_source`.
        splits: names of the train, validation and test split; None looks for the usual ones.
        label_column: columns; None takes those that have class names, or the only one.
        max_train, max_eval: maximum number of clips to train on, and of clips or (with views) videos to test on;
            validation gets a quarter of the latter.
        group_by: pattern of the groups that no carved split divides. split_seed: of carved splits.
    """

    dataset: str
    splits: tuple[str, str | None, str | None]
    label_column: list[str] | None
    image_column: str | None
    config_name: str | None
    max_train: int
    max_eval: int
    group_by: str | None
    split_seed: int


class _Reader:
    """Opens the parts of a dataset and runs their clips through the backbones.

    most: maximum number of clips of each part. samplings: of each part. stream: keep inputs in place of features.
    Raises:
        ValueError: several processes, and a dataset whose version is not known.
    """

    def __init__(
        self, labelled: Labelled, sampling: Sampling, order: FrameOrder, jobs: list[Job], cache: Path, stream: bool
    ):
        self.labelled, self.order, self.jobs, self.cache, self.stream = labelled, order, jobs, cache, stream
        views = sampling.views or (1,)
        most = labelled.max_eval
        self.most = {"train": labelled.max_train, "validation": max(1, most // 4), "test": most * math.prod(views)}
        # Where test videos have several views, those that train and choose give their middle.
        others = replace(sampling, views=(1, 1)) if sampling.views else sampling
        self.samplings = {"train": others, "validation": others, "test": sampling}
        # Fixed, so that seeds are compared on the same clips.
        self.options = {"image_column": labelled.image_column, "shuffle_seed": 0}
        self.options |= {} if labelled.config_name is None else {"config_name": labelled.config_name}
        self.fingerprint = dataset_fingerprint(labelled.dataset)
        if self.fingerprint is None and int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ValueError(f"The version of {labelled.dataset} is unknown without a network; probe with one process.")

    def open(self, split: str, part: str, extra: int = 0) -> ClipSource:
        """A split, as the part train, validation or test. extra: clips beyond the maximum, to be carved off."""
        limit = self.most[part] + extra
        return open_source(self.labelled.dataset, split, self.samplings[part], limit=limit, **self.options)

    def open_parts(self) -> tuple[dict[str, Opened | None], list[str]]:
        """(train, validation and test, None where one has to be carved from train; the label columns)."""
        labelled = self.labelled
        train, validation, test = open_splits(self.open, labelled.dataset, *labelled.splits)
        columns = label_columns(train[1], labelled.label_column, labelled.dataset)
        views = self.samplings["test"].views
        if test is None and self.samplings["test"] != self.samplings["train"]:
            raise ValueError("--views needs a separate test split, and there is none; give --views 1 1.")
        if test is not None and test[1].kind == "image" and views and views[0] > 1:
            raise ValueError(f"Images have one window; give --views 1 {views[1]}, not {views[0]} {views[1]}.")
        extra = (0 if validation else self.most["validation"]) + (0 if test else self.most["test"])
        if extra:
            train = train[0], self.open(train[0], "train", extra)
        found = {"train": train, "validation": validation, "test": test}
        for part, (split, source) in ((part, each) for part, each in found.items() if each):
            check_first(source, split, columns, f"--{part}_split", labelled.dataset)
        return found, columns

    def jobs_for(self, source: ClipSource) -> list[Job] | list[InputJob]:
        """What is kept of a source for each backbone."""
        return input_jobs([job.backbone for job in self.jobs], source) if self.stream else self.jobs

    def folder(self, part: str, opened: Opened) -> Path | None:
        """Where what is kept of an opened split goes; None if the version of the data is unknown."""
        split, source = opened
        sampled = asdict(self.samplings[part])
        if sampled["resize"] == Sampling.resize:
            del sampled["resize"]  # features of earlier versions, which had no choice, keep their key
        read = self.options | sampled | {"limit": source.limit} | self.order.facts()
        read |= {"text_labels": source.text_labels} if source.text_labels else {}
        return self.cache / data_key(self.fingerprint, split, read) if self.fingerprint else None

    def check_disk(self, opened: dict[str, Opened | None]) -> None:
        """As `plan.check_disk`, for these splits."""
        parts = {part: (each[1], self.folder(part, each)) for part, each in opened.items() if each}
        sampling = self.samplings["train"]
        sampling = replace(sampling, num_frames=1) if self.order.name == "middle" else sampling
        check_disk(self.jobs, parts, sampling, self.cache, self.stream)

    def collect(self, part: str, opened: Opened, columns: list[str], batch_size: int) -> ClipSet:
        """The clips of an opened split with their features, and with checked labels of these columns."""
        split, source = opened
        change = None if self.order.name == "ordered" else self.order
        jobs = self.jobs_for(source)
        with tempfile.TemporaryDirectory(dir=self.cache) as unkept:  # where the version of the data is unknown
            folder = self.folder(part, opened) or Path(unkept)
            found = extract(source, split, jobs, folder, change=change, batch_size=batch_size)
        if self.stream:
            with_inputs(found, jobs, source, change)
        found.labels = {column: np.array(found.labels[column].tolist()) for column in columns}
        for column, labels in found.labels.items():
            check_labels(labels, found.label_names.get(column), column, f"split {found.split}", found.sources)
        return found


def read_splits(
    labelled: Labelled,
    sampling: Sampling,
    order: FrameOrder,
    jobs: list[Job],
    cache: Path,
    batch_size: int = 8,
    stream: bool = False,
    check: Callable[[str], None] | None = None,
) -> list[ClipSet]:
    """[train, validation, test], each clip decoded, tokenised and run through all backbones once.

    A missing validation split is carved from train; a missing test split is replaced by the validation split, or carved
    too. `ClipSet.split` says which.

    Args:
        sampling: of the clips; its views are those of test clips. jobs: the backbones. cache: folder of the features.
        batch_size: clips in one forward pass. stream: keep the `Inputs` of each backbone in the place of its features.
        check: called with the name of the split that test items come from, before anything is computed.
    Raises:
        ValueError: the disk is too small for what would be kept.
    """
    reader = _Reader(labelled, sampling, order, jobs, cache, stream)
    opened, columns = reader.open_parts()
    if check is not None:
        check((opened["test"] or opened["train"])[0])
    reader.check_disk(opened)
    found = {part: reader.collect(part, each, columns, batch_size) for part, each in opened.items() if each}
    train, most = found["train"], reader.most
    how = {"seed": labelled.split_seed, "pattern": labelled.group_by, "folder": cache}
    if "test" not in found:
        keep = most["train"] + (0 if "validation" in found else most["validation"])
        train, found["test"] = carve_clips(train, most=most["test"], keep=keep, **how)
    if "validation" not in found:
        train, found["validation"] = carve_clips(train, most=most["validation"], keep=most["train"], **how)
    return [train, found["validation"], found["test"]]
