"""`toto finetune`: trains all weights of a Toto on labelled images or clips (paper App. A.3, A.4, Table 12)."""

from __future__ import annotations

import os
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tokenization.terminal.next_command import after_result
from training.args import Source
from training.finetune_args import (
    RETIRED,
    AugmentArgs,
    FinetuneModelArgs,
    FinetuneOptimArgs,
    FinetuneRunArgs,
    LabelledArgs,
    refuse_idle_flags,
)
from training.flags import absolute, idle, parse, read_recipe, refuse_idle, require, resumed_run

if TYPE_CHECKING:
    from modeling_toto import TotoConfig
    from tokenization import TotoProcessor
    from training.engine.run import Beginning, Run
    from training.results import FinetuneData
    from training.rows.clips import Clips
    from training.rows.mixture import RowStream

DESCRIPTION = (
    "Fine-tune a pre-trained Toto on labelled images or clips, with causal, prefix or full attention (paper App. A.3, "
    "A.4). The checkpoint that is best on validation is scored once on the test split, at the end (RUN/results.json). "
    "toto finetune --resume RUN continues a killed run exactly."
)
TYPES = (FinetuneModelArgs, LabelledArgs, AugmentArgs, FinetuneRunArgs, FinetuneOptimArgs)
# Frames to be cropped are kept larger than the model's, so that a small crop is not blurred.
KEPT_LARGER = 1.25


def main(argv: list[str] | None = None) -> None:
    command = shlex.join(["toto", "finetune", *(sys.argv[1:] if argv is None else argv)])
    argv, resumed = resumed_run(argv)
    settings = Settings(*parse(TYPES, argv, "toto finetune", DESCRIPTION, RETIRED)).checked(argv)

    from training.engine.run import begin, end_run, publish, running
    from training.publish.media_seen import media_on_record

    # Everything that can be wrong is checked before there is a process group or a model.
    beginning = begin("finetune", settings.run, resumed)
    facts = {"command": command, "media": media_on_record(settings.model.model)}
    inputs, settings = open_inputs(beginning, settings, argv, facts["media"])
    if inputs.kind == "image" and (ignored := idle(argv, "stride", "fps", "resize", "num_frames")):
        print(f"{ignored}: no effect on images, each of which is one frame")
    if not any(clips.is_carved for clips in inputs.splits.values()) and (ignored := idle(argv, "group_by")):
        print(f"{ignored}: no effect, since no split was carved")
    changes = beginning.changes(*settings.all, weights_flag="--model")
    if beginning.checkpoint is not None:
        had = [inputs.config.id2label[number] for number in range(inputs.config.num_labels)]
        require(
            inputs.classes == had,
            f"The data have the classes {inputs.classes[:8]}, but the run started with {had[:8]}; resume it with the "
            "same data.",
        )
    args = settings.run
    push_to = args.hub_model_id if args.push_to_hub else None
    with running(beginning, args, changes, report_to=args.report_to, push_to=push_to) as run:
        last, best = finetune(run, inputs, settings, facts)
    end_run(run, last, best)
    publish(run, best, push_to)
    after_result(run.folder / "results.json")


@dataclass(frozen=True)
class Settings:
    """All flags of the command, one dataclass per concern."""

    model: FinetuneModelArgs
    data: LabelledArgs
    augment: AugmentArgs
    run: FinetuneRunArgs
    optim: FinetuneOptimArgs

    @property
    def all(self) -> tuple:
        return self.model, self.data, self.augment, self.run, self.optim

    def checked(self, argv: list[str]) -> Settings:
        """The same settings, with absolute paths. argv: the flags as they were typed.

        Raises:
            ValueError: no model, no data, flags that exclude each other, or flags without an effect.
        """
        model = self.model
        require(model.model is not None, "No model is named; pass --model with a folder, a run or a Hub id.")
        require(
            self.data.dataset is not None,
            "No data is named; pass --dataset with a folder, a .parquet file or a Hub id.",
        )
        together = self.run.compile and model.drop_path
        require(not together, "--compile does not work with --drop_path; leave one of them out.")
        model = replace(model, model=absolute(model.model), tokenizer=absolute(model.tokenizer))
        data = refuse_idle_flags(argv, self.data, self.augment)
        return replace(self, model=model, data=data.absolute())


@dataclass(frozen=True)
class Inputs:
    """The opened and checked inputs of a fine-tuning.

    Fields:
        start: folder or Hub id of the weights to start with.
        config: of the classifier.
        processor: at the classifier's resolution.
        kind: "video" or "image". column: of the labels.
        batches: (rows per micro-batch on a device, micro-batches per step).
        classes: names of the classes.
    """

    start: str
    config: TotoConfig
    processor: TotoProcessor
    kind: str
    column: str
    batches: tuple[int, int]
    classes: list[str]
    train: Clips
    validation: Clips
    test: Clips

    @property
    def splits(self) -> dict[str, Clips]:
        return {"train": self.train, "validation": self.validation, "test": self.test}


def open_inputs(
    beginning: Beginning, settings: Settings, argv: list[str], seen: list[dict] | None
) -> tuple[Inputs, Settings]:
    """(inputs of a run, settings with `epochs` converted to `max_steps`, as written to the run's recipe).

    Args:
        seen: media that the model was trained on, of `media_on_record`.
    Raises:
        ValueError, FileNotFoundError: settings, data and weights do not match, or do not exist; media that the model
            was trained on are tested.
    """
    from training import find_model
    from training.classification import check_rows, model_and_tokenizer
    from training.engine.objective import micro_batches
    from training.publish.overlap import require_unseen

    data, args = settings.data, settings.run
    start = find_model.resolve_model(str(beginning.checkpoint or settings.model.model))
    world = int(os.environ.get("WORLD_SIZE", 1))
    batches = micro_batches(data.batch_size, data.per_device_batch_size, world, "--batch_size")
    config, processor = model_and_tokenizer(settings.model, start, beginning.checkpoint is not None)
    if config.attention_mode != "prefix":
        refuse_idle(argv, ("prefix_length",), f"under {config.attention_mode} attention")
    if config.next_token_loss is None:
        refuse_idle(argv, ("next_token_loss_weight",), "without --next_token_loss")
    media, column, kind = labelled_media(data, config)
    check_rows(config, kind)
    if not data.allow_seen:
        require_unseen(settings.model.model, seen, data.dataset, media.splits(processor.resolution)[2].name)
    clips, classes = read_clips(media, column, processor, data, settings.augment)
    if data.epochs is not None:
        max_steps = max(1, round(data.epochs * len(clips[0]) / data.batch_size))
        settings = replace(settings, run=replace(args, max_steps=max_steps), data=replace(data, epochs=None))
    return Inputs(start, config, processor, kind, column, batches, classes, *clips), settings


def finetune(run: Run, inputs: Inputs, settings: Settings, facts: dict) -> tuple[Path, Path | None]:
    """Train and test a classifier; returns the last checkpoint and the tested one (None if SIGTERM ended the training).

    facts: see `report`.
    """
    from training.architectures import DropPath
    from training.classification import Classify, load_classifier, name_classes
    from training.engine.compiling import compile_blocks
    from training.engine.loop import Learner, train
    from training.engine.optim import layer_factors, make_optimizer

    accelerator, args, optim = run.accelerator, settings.run, settings.optim
    config, processor, augment = inputs.config, inputs.processor, settings.augment
    name_classes(config, inputs.classes)
    stream = open_stream(run, inputs, settings)
    run.report_changes(stream.fingerprints, stream.is_indexed)
    model = load_classifier(str(run.checkpoint or inputs.start), config, inputs.kind)
    processor.to(accelerator.device)
    drop_path, rate = None, settings.model.drop_path
    depth = config.num_hidden_layers if config.next_token_loss is not None else model.feature_layer
    if rate:
        drop_path = DropPath(model.model.layers[:depth], rate, args.seed)
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if args.compile:
        compile_blocks(model, run.is_main)
    run.announce(description(run, inputs, settings, model), *settings.all)
    optimizer = make_optimizer(model, optim, layer_factors(model, depth, optim.layer_decay))
    model, optimizer = accelerator.prepare(model, optimizer)
    objective = Classify(
        accelerator.unwrap_model(model),
        processor,
        inputs.validation,
        inputs.batches,
        settings.data.batch_size,
        is_mixed=bool(augment.mixup or augment.cutmix),
        drop_path=drop_path,
        ema_decay=optim.ema_decay,
    )
    last, preempted = train(run, Learner(model, optimizer, processor, stream, objective), args, optim)
    return last, None if preempted else report(run, objective.best, inputs, settings, facts)


def open_stream(run: Run, inputs: Inputs, settings: Settings) -> RowStream:
    """The training rows of this process."""
    from training.rows.augment import Augment
    from training.rows.labelled_rows import LabelledRows
    from training.rows.mixture import RowStream

    args, data, seed, augment = settings.augment, settings.data, settings.run.seed, None
    if args.augment != "none":
        operations = args.rand_operations if args.augment == "rand" else 0
        how = (args.smallest_crop, args.horizontal_flip, operations, args.rand_magnitude)
        augment = Augment(inputs.processor.resolution, *how)
    rows = LabelledRows(inputs.train, len(inputs.classes), args, augment, seed, data.workers)
    source = Source(data.dataset, name="train")
    return RowStream([(source, rows)], seed, run.accelerator.process_index, run.accelerator.num_processes)


def description(run: Run, inputs: Inputs, settings: Settings, model) -> str:
    """A line for the log that describes the training."""
    from tokenization.sources.labelled import describe_classes

    skipped = [clip for clips in inputs.splits.values() for clip in clips.skipped]
    numbering = f"; {describe_classes(inputs.column, inputs.classes)}" if inputs.train.is_text else ""
    return (
        f"{model.num_parameters() / 1e6:.1f} M parameters, {inputs.config.attention_mode} attention, layer "
        f"{model.feature_layer}; {run.max_steps} steps of {settings.data.batch_size} {inputs.kind}s on {run.machine}; "
        f"{len(inputs.train)} training clips of {len(inputs.classes)} classes, {len(inputs.validation)} for validation "
        f"({inputs.validation.name}), {len(inputs.test)} for the test ({inputs.test.name}){numbering}"
        + (f"; {len(skipped)} skipped, the first: {skipped[0]['source']}: {skipped[0]['why']}" if skipped else "")
    )


def labelled_media(data: LabelledArgs, config):
    """(the `LabelledMedia` of the dataset, its label column, "image" or "video").

    Raises:
        ValueError, FileNotFoundError: no such dataset or column, or several candidate columns.
    """
    from tokenization.sources.labelled import label_columns
    from training.rows.labelled_media import LabelledMedia

    media = LabelledMedia(data, config.num_frames)
    opened = media.open(data.train_split, 64, "train")
    columns = label_columns(opened, [data.label_column] if data.label_column else None, data.dataset)
    require(
        len(columns) == 1,
        f"{data.dataset} has several label columns; name one with --label_column: {', '.join(columns)}.",
    )
    return media, columns[0], opened.kind


def read_clips(media, column: str, processor, data: LabelledArgs, augment: AugmentArgs):
    """([train, validation, test] as `Clips`, names of the classes).

    Training clips are codes; with augmentation, they are pixels, larger than the model's frames.

    Raises:
        ValueError: there is nothing to read, only one class, or a label that is missing, hidden or out of range.
    """
    from tokenization.sources.labelled import check_first
    from training.rows.clips import Clips, same_classes
    from training.rows.labelled_media import Split

    side = processor.resolution
    found = media.splits(side)
    for split, part in zip(found, ("train", "validation", "test"), strict=True):  # before any is decoded
        check_first(split.source, part, [column], f"--{part}_split", data.dataset)
    first = found[0]
    if augment.augment == "none":
        clips = [Clips(first, column, processor)]
    else:
        larger = media.open(data.train_split, round(KEPT_LARGER * side), "train")
        clips = [Clips(Split(first.name, larger, first.items), column, is_kept=data.decode == "once")]
    clips += [Clips(split, column, processor) for split in found[1:]]
    return clips, same_classes(clips, column)


def describe(inputs: Inputs, dataset: str, config: TotoConfig) -> FinetuneData:
    """The part of the result that describes the data. config: of the tested model."""
    from training.results import FinetuneData, FinetuneSplit

    splits = inputs.splits
    return FinetuneData(
        dataset=dataset,
        label_column=inputs.column,
        class_names=inputs.classes,
        kind=inputs.kind,
        num_frames=1 if inputs.kind == "image" else config.num_frames,
        attention_mode=config.attention_mode,
        splits={part: FinetuneSplit(name=clips.name, clips=len(clips)) for part, clips in splits.items()},
        skipped={part: clips.skipped for part, clips in splits.items() if clips.skipped},
    )


def report(run: Run, chosen: dict, inputs: Inputs, settings: Settings, facts: dict) -> Path:
    """Test the chosen checkpoint once: RUN/results.json, and RUN/predictions.json. Returns the checkpoint.

    Args:
        chosen: the validation row of its step.
        facts: further entries of the result: the command as it was typed, and the media that the model had seen.
    Raises:
        FileNotFoundError: the checkpoint is gone.
    """
    from modeling_toto import TotoConfig
    from tokenization.files import write_json
    from training.classification import load_classifier, score
    from training.engine.device import versions
    from training.results import FinetunePredictions, FinetuneResult, FinetuneScore
    from training.scores import accuracy_interval, grid_cells, grid_l1, per_class_accuracy

    best, test = run.folder / "checkpoints" / f"step_{chosen['step']:06d}", inputs.test
    if not best.is_dir():
        raise FileNotFoundError(f"{best}, which was best on validation, is gone, so nothing can be tested.")
    config = TotoConfig.from_pretrained(best)
    model = load_classifier(str(best), config, test.kind).to(run.accelerator.device)
    found = score(run.accelerator, model, test, inputs.batches[0])
    if not run.is_main:
        return best
    accuracy, right = found["correct"] / found["total"], found["predictions"] == test.labels
    per_class = per_class_accuracy(found["predictions"], test.labels, inputs.classes)
    ci95 = accuracy_interval(right, test.sources)
    cells, on_grid = grid_cells(inputs.classes), {}
    if cells is not None:
        on_grid = {"top5": found["top5"], "grid_l1": grid_l1(found["predictions"], test.labels, cells)}
    result = FinetuneResult(
        **facts,
        settings=read_recipe(run.folder),
        model=settings.model.model,
        checkpoint=str(best),
        data=describe(inputs, settings.data.dataset, config),
        versions=versions(run.accelerator.device),
        seeds=[settings.run.seed],
        best=FinetuneScore(
            step=chosen["step"],
            layer=model.feature_layer,
            head=config.pooler,
            val_accuracy=chosen["val_accuracy"],
            accuracy=accuracy,
            ci95=ci95,
            loss=found["loss"],
            correct=found["correct"],
            accuracy_by_class={row["class"]: row["accuracy"] for row in per_class},
            **on_grid,
        ),
        n_test=found["total"],
    )
    predictions = FinetunePredictions(
        classes=inputs.classes,
        sources=test.sources,
        labels=test.labels.tolist(),
        predictions=found["predictions"].tolist(),
    )
    write_json(run.folder / "results.json", result.to_json())
    write_json(run.folder / "predictions.json", predictions.to_json())
    print(
        f"test accuracy {100 * accuracy:.2f} % ({found['correct']} of {found['total']}; 95 % interval "
        f"{100 * ci95[0]:.1f} to {100 * ci95[1]:.1f}), of step {chosen['step']}, "
        f"which was best on validation ({100 * chosen['val_accuracy']:.2f} %)"
        + (f"; top 5 {100 * found['top5']:.2f} %, {on_grid['grid_l1']:.2f} cells from the true one" if on_grid else "")
    )
    return best


if __name__ == "__main__":
    from toto_cli import run

    run(main)
