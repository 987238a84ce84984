"""Which clips a probe trains, chooses and tests on: three disjoint splits, carved where a dataset lacks one."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from tokenization.sources import open_source

VALIDATION_NAMES = ("validation", "val", "valid")
CARVED = 0.2  # share of the sources of a split that a carved-off one gets


@dataclass
class ClipSet:
    """Clips of one split, already in the form that the backbones read.

    split: where they come from, in words. labels: column -> class numbers (N,). inputs: one tensor (N, ...) per
    backbone. sources: file or row of each clip.
    """

    split: str
    label_names: dict[str, list[str]]
    labels: dict[str, torch.Tensor]
    inputs: list[torch.Tensor]
    sources: list[str]
    skipped: list[dict] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.sources)

    def take(self, rows: np.ndarray, split: str) -> "ClipSet":
        rows = torch.as_tensor(rows)
        return ClipSet(
            split,
            self.label_names,
            {column: values[rows] for column, values in self.labels.items()},
            [inputs[rows] for inputs in self.inputs],
            [self.sources[row] for row in rows.tolist()],
            self.skipped,
        )


def collect(source, split: str, columns: list[str], backbones: list, batch_size: int = 16) -> ClipSet:
    """Read a `ClipSource` once and prepare each clip for every backbone.

    Raises ValueError when there is nothing to read, or a clip's label is missing or hidden.
    """
    inputs, labels, names, frames = [[] for _ in backbones], [], [], []

    def prepare() -> None:
        for kept, backbone in zip(inputs, backbones, strict=True):
            kept.append(backbone.prepare(np.stack(frames), image=source.kind == "image"))
        frames.clear()

    for clip in tqdm(source, total=source.expected or source.limit, desc=f"reading {split}", unit="clip"):
        values = [clip.labels.get(column, -1) for column in columns]
        if min(values) < 0:
            column = columns[values.index(min(values))]
            raise ValueError(f"{clip.source} in split {split} has no {column!r} (missing or hidden); use other splits.")
        labels.append(values)
        names.append(clip.source)
        frames.append(clip.frames)
        if len(frames) == batch_size:
            prepare()
    if frames:
        prepare()
    if not names:
        why = f" ({len(source.skipped)} skipped; the first: {source.skipped[0]['why']})" if source.skipped else ""
        raise ValueError(f"split {split} gave no clips{why}; check --dataset, --num_frames, --stride and --fps.")
    numbers = torch.tensor(labels)
    return ClipSet(
        split,
        dict(source.label_names),
        {column: numbers[:, index] for index, column in enumerate(columns)},
        [torch.cat(batches) for batches in inputs],
        names,
        list(source.skipped),
    )


def carve(clips: ClipSet, most: int, keep: int, seed: int) -> tuple[ClipSet, ClipSet]:
    """Split off about a fifth of the clips, at most `most`, and all that the rest has beyond `keep`: (rest, carved).

    Whole sources move, so that two windows of one video are never on both sides.
    """
    sources = sorted(set(clips.sources))
    if len(sources) < 2:
        raise ValueError(f"split {clips.split} has one source only, so no validation clips can be taken from it.")
    np.random.default_rng(seed).shuffle(sources)
    target = max(1, min(most, round(CARVED * len(clips))), len(clips) - keep)
    counts = {source: clips.sources.count(source) for source in sources} if len(sources) < len(clips) else None
    chosen, size = set(), 0
    for source in sources[:-1]:
        if size >= target:
            break
        chosen.add(source)
        size += counts[source] if counts else 1
    inside = np.array([source in chosen for source in clips.sources])
    rest = clips.take(np.flatnonzero(~inside), clips.split)
    carved = clips.take(np.flatnonzero(inside), f"carved from {clips.split} (seed {seed})")
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


def read_splits(args, backbones: list, resolution: int, num_frames: int) -> list[ClipSet]:
    """[train, validation, test] for `probe.ProbeArgs`, each clip decoded and tokenised once.

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
    }

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

    train = named(args.train_split, most["train"])
    columns = label_columns(train[1], args.label_column, args.dataset)
    validation = (
        named(args.validation_split, most["validation"])
        if args.validation_split
        else find(VALIDATION_NAMES, most["validation"])
    )
    test = named(args.test_split, most["test"]) if args.test_split else find(("test",), most["test"])
    if test is None and validation is not None and not args.validation_split:
        test, validation = named(validation[0], most["test"]), None

    extra = (0 if validation else most["validation"]) + (0 if test else most["test"])
    if extra:
        train = named(args.train_split, most["train"] + extra)
    train = collect(train[1], train[0], columns, backbones)
    if test:
        test = collect(test[1], test[0], columns, backbones)
    else:
        train, test = carve(train, most["test"], most["train"] + (0 if validation else most["validation"]), args.seed)
    if validation:
        validation = collect(validation[1], validation[0], columns, backbones)
    else:
        train, validation = carve(train, most["validation"], most["train"], args.seed)
    return [train, validation, test]


def label_columns(source, asked: list[str] | None, dataset: str) -> list[str]:
    """The label columns to probe; by default those with class names, or else all columns of integers."""
    has = list(source.label_names)
    if not has:
        raise ValueError(f"{dataset} has no label column, so there is nothing to probe for.")
    for column in asked or []:
        if column not in has:
            raise ValueError(f"{dataset} has no label column {column!r}; it has {', '.join(has)}.")
    return list(asked or [column for column in has if source.label_names[column]] or has)
