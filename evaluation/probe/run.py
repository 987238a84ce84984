"""A probe from its flags to its result: features of all clips, heads on them, scores of every label."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from huggingface_hub.constants import HF_HOME

from evaluation.backbones.extraction import ClipSet, Job
from evaluation.backbones.floors import FLOORS
from evaluation.backbones.load import load_backbone
from evaluation.backbones.toto import CodeRowBackbone
from evaluation.heads import TOKEN_HEADS
from evaluation.heads.streamed import StreamedData
from evaluation.probe.args import ProbeArgs, choose_layers
from evaluation.probe.fit import HeadSettings, LabelledFeatures, leave_groups_out, stream_heads, train_heads
from evaluation.probe.score import Tested, Trained, score_task, widest_margin
from evaluation.probe.splits import FrameOrder, Labelled, read_splits, same_classes
from evaluation.results import ProbeData, ProbeResult, Split, TaskResult
from tokenization.precision import bf16_is_fast
from tokenization.sampling import Sampling
from training.engine.device import EVALUATION_LIMIT, flush_denormals, require_together, versions
from training.find_model import resolve_model
from training.publish.media_seen import media_on_record
from training.publish.overlap import SEEN, require_unseen
from training.scores import grid_cells

MODEL = "model"  # the backbone itself among the jobs; the others are its baselines


def run_probe(args: ProbeArgs, command: str) -> ProbeResult:
    """The whole probe: features of all clips, heads on them, and their scores for every label."""
    flush_denormals()
    # processes wait for the first one while it merges features, which can take hours
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=EVALUATION_LIMIT)
    require_together(state.num_processes)
    if state.num_processes > 1 and args.feature_cache == "none":
        raise ValueError("Several processes share features through a folder; name one with --feature_cache.")
    media = media_on_record(args.model)
    jobs = open_backbones(args, state.device)
    backbone = jobs[MODEL].backbone
    with cache_folder(args.feature_cache) as cache:
        splits = collect(args, jobs, cache, media)
        tasks, tested = fit_and_score(args, jobs, splits)
    return ProbeResult(
        command=command,
        model=args.model,
        depth=backbone.depth,
        media=media,
        control=control(args),
        data=describe(args, splits, tested, backbone.resolution, args.num_frames or backbone.num_frames),
        versions=versions(backbone.device) | {"features": "bf16" if bf16_is_fast(backbone.device) else "fp32"},
        seeds={"heads": args.seed, "untrained": args.seed, "split": args.split_seed},
        label=widest_margin(tasks),
        n_train=len(splits[0]),
        n_validation=len(splits[1]),
        n_test=len(tested.items),
        tasks=tasks,
    )


def open_backbones(args: ProbeArgs, device: torch.device) -> dict[str, Job]:
    """The backbones that run on every clip: the model, then the baselines, by name.

    Raises:
        ValueError: a layer that the model does not have, or a baseline that does not exist for it.
    """
    backbone = load_backbone(resolve_model(args.model), device, args.rope_base, args.resolution)
    layers = choose_layers(args.layers, backbone.depth, args.model)
    wanted = ["pixels", "untrained"] if args.baselines is None else [n for n in args.baselines if n != "none"]
    if "histogram" in wanted and not isinstance(backbone, CodeRowBackbone):
        raise ValueError("--baselines histogram counts codes, and the model does not read codes; leave it out.")
    few = args.max_tokens if any(head in TOKEN_HEADS for head in args.heads) else None
    jobs = {MODEL: Job(backbone, layers, few)}
    for name in wanted:
        if name == "untrained":
            jobs[name] = Job(backbone.untrained(args.seed), layers, few)
        else:
            jobs[name] = Job(FLOORS[name](backbone, backbone.device), [0], few)
    return jobs


def control(args: ProbeArgs) -> str | None:
    """What makes the result a control, in words."""
    found = [f"RoPE base changed to {args.rope_base:g} without training"] if args.rope_base else []
    found += [SEEN] if args.allow_seen else []
    return "; ".join(found) or None


def collect(args: ProbeArgs, jobs: dict[str, Job], cache: Path, media: list[dict] | None) -> list[ClipSet]:
    """[train, validation, test] with the features of all jobs, in the order of the jobs.

    Raises:
        ValueError: `media`, on which the model was trained, are tested.
    """
    backbone = jobs[MODEL].backbone
    sampling = Sampling(
        num_frames=args.num_frames or backbone.num_frames,
        stride=args.stride,
        fps=args.fps,
        resolution=backbone.resolution,
        views=args.views and tuple(args.views),
        detail=args.detail,
        resize=args.resize,
    )
    labelled = Labelled(
        args.dataset,
        (args.train_split, args.validation_split, args.test_split),
        label_column=args.label_column,
        image_column=args.image_column,
        config_name=args.config_name,
        max_train=args.max_train,
        max_eval=args.max_eval,
        group_by=args.group_by,
        split_seed=args.split_seed,
    )
    order = FrameOrder(args.frame_order, args.seed)

    def check(split: str) -> None:
        if not args.allow_seen:
            require_unseen(args.model, media, args.dataset, split)

    return read_splits(labelled, sampling, order, list(jobs.values()), cache, args.batch_size, args.stream, check)


def fit_and_score(args: ProbeArgs, jobs: dict[str, Job], splits: list[ClipSet]) -> tuple[dict[str, TaskResult], Tested]:
    """(the result of every label, number of test items). Text labels of the splits become class numbers, in place."""
    from_text = [column for column, values in splits[0].labels.items() if values.dtype.kind == "U"]
    classes = same_classes(splits)
    labels = [torch.from_numpy(np.stack([split.labels[c] for c in classes], axis=1)) for split in splits]
    average = args.average_clips or args.views is not None
    has_grid = any(grid_cells(names) is not None for names in classes.values())
    tested = Tested.of_clips(splits[2].sources, labels[2], average, ranked=has_grid, pattern=args.group_by)
    counts = [len(names) for names in classes.values()]
    settings = HeadSettings(args.epochs, args.batch_norm, args.seed)
    trained = {}
    for index, (name, job) in enumerate(jobs.items()):
        features = [split.features[index] for split in splits]
        data = LabelledFeatures(features, labels, counts, tested.numbers, has_grid)
        state = Path(args.output).with_suffix(".partial") / name
        if args.stream:
            inputs = [each[0] for each in features]
            streamed = StreamedData(job, inputs, labels[:2], counts, tested.numbers, args.batch_size, has_grid)
            heads = stream_heads(streamed, args.heads, settings, state.with_name(f"{name}-streamed"))
        elif args.leave_one_group_out:
            heads = leave_groups_out(data, splits, args.group_by, args.heads, settings, state)
        else:
            heads = train_heads(data, args.heads, settings, state, progress=True)
        trained[name] = Trained(job.layers, heads)
    tasks = {}
    for index, (column, names) in enumerate(classes.items()):
        commonest = int(labels[0][:, index].bincount().argmax())
        found = score_task(trained, index, names, tested, commonest, args.seed)
        best = found.best.layer, found.best.head
        layers = [row for row in found.layers if args.layers != ["best"] or (row.layer, row.head) == best]
        tasks[column] = replace(
            found,
            layers=layers,
            class_names=names if column in from_text else None,
            predictions=found.predictions if args.predictions else None,
        )
    return tasks, tested


def describe(args: ProbeArgs, splits: list[ClipSet], tested: Tested, resolution: int, num_frames: int) -> ProbeData:
    """The part of the result that describes the data."""
    kind = splits[2].kind
    return ProbeData(
        dataset=args.dataset,
        kind=kind,
        num_frames=1 if kind == "image" else num_frames,
        stride=args.stride,
        fps=args.fps,
        resolution=resolution,
        detail=args.detail,
        frame_order=args.frame_order,
        views=args.views,
        leave_one_group_out=args.group_by if args.leave_one_group_out else None,
        splits={
            part: Split(split=split.split, clips=len(split), sources=len(set(split.sources)))
            for part, split in zip(("train", "validation", "test"), splits, strict=True)
        },
        skipped=[skip for split in splits for skip in split.skipped],
        groups=len(set(tested.groups)) if tested.groups != tested.items else None,
    )


@contextlib.contextmanager
def cache_folder(asked: str | None) -> Iterator[Path]:
    """The folder that keeps features: the requested one, the default one, or for "none" a temporary one."""
    if asked == "none":
        with tempfile.TemporaryDirectory(prefix="toto-features-") as folder:
            yield Path(folder)
        return
    folder = Path(asked or Path(HF_HOME) / "toto_features")
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
