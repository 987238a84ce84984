"""`toto finetune`: all weights of a pre-trained Toto on labelled images or clips (paper App. A.3, A.4, Table 12)."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import asdict, replace
from pathlib import Path

from .args import Source, absolute, idle, parse, refuse_idle, require, resumed_run
from .finetune_args import (
    RETIRED,
    AugmentArgs,
    FinetuneModelArgs,
    FinetuneOptimArgs,
    FinetuneRunArgs,
    LabelledArgs,
    refuse_idle_flags,
)

DESCRIPTION = (
    "Fine-tune a pre-trained Toto on labelled images or clips, with causal, prefix or full attention (paper App. A.3, "
    "A.4). What was best on validation is scored on the test split once, at the end: RUN/results.json. A killed run "
    "continues exactly: toto finetune --resume RUN."
)
TYPES = (FinetuneModelArgs, LabelledArgs, AugmentArgs, FinetuneRunArgs, FinetuneOptimArgs)
# Frames that are to be cropped are kept larger than the model's, so that a small crop is not all blur.
KEPT_LARGER = 1.25


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    facts = {"command": shlex.join(["toto", "finetune", *argv])}
    resumed = resumed_run(argv)
    if resumed is not None:  # the run's own recipe gives every default
        argv = ["--recipe", str(resumed / "recipe.yaml"), *argv]
    model_args, data, augment_args, args, optim = parse(TYPES, argv, "toto finetune", DESCRIPTION, RETIRED)
    data = refuse_idle_flags(argv, data, augment_args)
    require(model_args.model is not None, "Name the pre-trained model: --model, a folder, a run, or a Hub id.")
    require(data.dataset is not None, "Name the labelled data: --dataset, a folder, a .parquet file, or a Hub id.")
    require(
        not (args.compile and model_args.drop_path), "--compile does not go with --drop_path; leave one of them out."
    )

    from accelerate.utils import set_seed

    from . import checkpoints
    from .augment import Augment
    from .begin import end_run, go_on, refuse_fp16, run_folder, start_processes, write_run_files
    from .classifier import check_rows, load_classifier, model_and_tokenizer, name_classes
    from .classify import Classify
    from .drop_path import DropPath
    from .final_score import report
    from .labelled_rows import LabelledRows
    from .loop import micro_batches, train
    from .media import media_on_record
    from .mixture import RowStream
    from .optim import layer_factors, make_optimizer
    from .resume import changed_settings, read_recipe

    run = run_folder(args, resumed, "finetune")
    data = data.absolute()
    model_args = replace(model_args, model=absolute(model_args.model), tokenizer=absolute(model_args.tokenizer))
    # Everything that can be wrong is looked at before there is a process group or a model.
    goes_on = resumed is not None and bool(checkpoints.steps(run))  # else it stopped before its first checkpoint
    facts["media"] = media_on_record(model_args.model)
    start = checkpoints.resolve_model(str(checkpoints.latest(run) if goes_on else model_args.model))
    refuse_fp16()
    world = int(os.environ.get("WORLD_SIZE", 1))
    micro, accumulation = micro_batches(data.batch_size, data.per_device_batch_size, world, "--batch_size")
    config, processor = model_and_tokenizer(model_args, start, goes_on)
    if config.attention_mode != "prefix":
        refuse_idle(argv, ("prefix_length",), f"under {config.attention_mode} attention")
    if config.next_token_loss is None:
        refuse_idle(argv, ("next_token_loss_weight",), "without --next_token_loss")
    media, column, kind = labelled_media(data, config, args.seed)
    check_rows(config, kind)
    (train_clips, validation, test), classes = read_clips(media, column, processor, data, augment_args)
    skipped = train_clips.skipped + validation.skipped + test.skipped
    if data.epochs is not None:
        args = replace(args, max_steps=max(1, round(data.epochs * len(train_clips) / data.batch_size)))
        data = replace(data, epochs=None)  # the run's recipe has the steps
    changes = []
    if goes_on:
        changes = changed_settings(read_recipe(run), model_args, data, augment_args, args, optim)
        had = [config.id2label[number] for number in range(config.num_labels)]
        require(classes == had, f"The data now have the classes {classes[:8]}, and the run began with {had[:8]}.")
    name_classes(config, classes)

    accelerator, run = start_processes(args, run)
    augment = None
    if augment_args.augment != "none":
        operations = augment_args.rand_operations if augment_args.augment == "rand" else 0
        how = (augment_args.smallest_crop, augment_args.horizontal_flip, operations, augment_args.rand_magnitude)
        augment = Augment(processor.resolution, *how)
    rows = LabelledRows(train_clips, len(classes), augment_args, augment, args.seed, data.workers)
    stream = RowStream([(Source(data.dataset, name="train"), rows)], args.seed, accelerator.process_index, world)
    max_steps = None
    if resumed and not goes_on and accelerator.is_main_process:
        print(f"{run} has no checkpoint yet, so it begins anew.")
    if goes_on:
        start, max_steps = go_on(accelerator, run, args, changes, stream)
    set_seed(args.seed)
    model = load_classifier(start, config, kind)
    processor.to(accelerator.device)
    drop_path = None
    depth = config.num_hidden_layers if config.next_token_loss is not None else model.feature_layer
    if model_args.drop_path:
        drop_path = DropPath(model.model.layers[:depth], model_args.drop_path, args.seed)
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if args.compile:
        for layer in model.model.layers:
            layer.compile(dynamic=False)
    if accelerator.is_main_process:
        write_run_files(run, accelerator.device, model_args, data, augment_args, args, optim)
        print(
            f"{run}: {model.num_parameters() / 1e6:.1f} M parameters, {config.attention_mode} attention, layer "
            f"{model.feature_layer}; {max_steps or args.max_steps} steps of {data.batch_size} {kind}s on {world} x "
            f"{accelerator.device.type} (mixed precision: {accelerator.mixed_precision}); {len(train_clips)} training "
            f"clips of {len(classes)} classes, {len(validation)} for validation ({validation.name}), {len(test)} for "
            f"the test ({test.name})"
            + (f"; {len(skipped)} skipped, the first: {skipped[0]['source']}: {skipped[0]['why']}" if skipped else ""),
            flush=True,
        )
        if kind == "image" and (ignored := idle(argv, "stride", "fps", "num_frames")):
            print(f"{ignored}: no effect on images, each of which is one frame")
    if args.report_to:
        accelerator.init_trackers("toto", config={**asdict(model_args), **asdict(data), **asdict(optim)})
    optimizer = make_optimizer(model, optim, layer_factors(model, depth, optim.layer_decay))
    model, optimizer = accelerator.prepare(model, optimizer)
    objective = Classify(
        accelerator.unwrap_model(model),
        processor,
        validation,
        micro,
        accumulation,
        data.batch_size,
        augment_args,
        drop_path,
        optim.ema_decay,
    )
    resume_from = Path(start) if goes_on else None
    parts = (accelerator, model, optimizer, processor, stream, objective)
    best = None
    try:
        last, preempted = train(*parts, run, args, optim, resume_from, max_steps)
        if not preempted:
            splits = {"train": train_clips, "validation": validation, "test": test}
            told = (classes, column, model_args, data, args.seed)
            best = report(accelerator, run, objective.best, splits, *told, micro, facts)
    finally:
        # What holds the process group goes first; see pretrain.py.
        del objective, parts
        model, optimizer = accelerator.free_memory(model, optimizer)
        accelerator.end_training()
    end_run(accelerator, "finetune", run, last, best, args)


def labelled_media(data: LabelledArgs, config, seed: int):
    """(the `LabelledMedia` of the data set, its label column, "image" or "video").

    Raises:
        ValueError, FileNotFoundError: no such data, or no such column.
    """
    from .splits import LabelledMedia, label_column

    media = LabelledMedia(data, config.num_frames, seed)
    opened = media.open(data.train_split, 64, "train")
    return media, label_column(opened, data.label_column, data.dataset), opened.kind


def read_clips(media, column: str, processor, data: LabelledArgs, augment: AugmentArgs):
    """([train, validation, test] as `Clips`, names of the classes). Training clips are codes where nothing varies them,
    and else pixels, larger than the model's where they are to be cropped.

    Raises:
        ValueError: nothing to read, one class, or labels out of range.
    """
    from .labelled import Clips, same_classes
    from .splits import Split

    side = processor.resolution
    found = media.splits(side)
    first = found[0]
    if augment.augment == "none":
        clips = [Clips(first, column, processor)]
    else:
        larger = media.open(data.train_split, round(KEPT_LARGER * side), "train")
        clips = [Clips(Split(first.name, larger, first.items), column, is_kept=data.decode == "once")]
    clips += [Clips(split, column, processor) for split in found[1:]]
    return clips, same_classes(clips, column)


if __name__ == "__main__":
    from toto_cli import run

    run(main)
