"""`toto prompt train`: tunes a Toto on rows of examples, with the loop of all trainings."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tokenization.terminal.next_command import say_next
from training.args import Source
from training.flags import absolute, parse, require, resumed_run
from training.prompting.args import DESCRIPTION, PromptDataArgs, PromptModelArgs, PromptOptimArgs, PromptRunArgs

if TYPE_CHECKING:
    from modeling_toto import TotoConfig
    from tokenization import TotoProcessor
    from training.engine.run import Beginning, Run
    from training.prompting.tasks import Prompting
    from training.rows.prompted_rows import PromptedRows

TYPES = (PromptModelArgs, PromptDataArgs, PromptRunArgs, PromptOptimArgs)
# Rows of a task for each row of another one. Masks need more, since their colours differ from row to row.
SHARES = {"segmentation": 2}
VALIDATION_SEED = 1_000_000  # of the rows that validate, which are of other clips anyway


def main(argv: list[str] | None = None) -> None:
    argv, resumed = resumed_run(argv)
    model_args, data, args, optim = parse(TYPES, argv, "toto prompt train", DESCRIPTION)
    require(model_args.model is not None, "No model is named; pass --model with a folder, a run or a Hub id.")
    settings = replace(model_args, model=absolute(model_args.model)), data.absolute(), args, optim

    from training.engine.run import begin, end_run, publish, running

    # Everything that can be wrong is checked before there is a process group or a model.
    beginning = begin("prompt train", args, resumed, f"prompt-{data.task}")
    changes = beginning.changes(*settings, weights_flag="--model")
    inputs = open_inputs(beginning, settings)
    push_to = args.hub_model_id if args.push_to_hub else None
    with running(beginning, args, changes, report_to=args.report_to, push_to=push_to) as run:
        last, preempted = tune(run, inputs, settings)
    end_run(run, last, None if preempted else last)
    publish(run, last, push_to)
    model = ["--model", run.folder, *([] if data.task == "all" else ["--task", data.task])]
    pictures = sorted((Path(data.data) / "image").glob("*"))[:1] if data.data and data.task != "flow" else []
    if pictures:
        say_next("prompt", "run", *model, "--inputs", *pictures, "--output", run.folder / "drawn.png")
    else:
        say_next("prompt", "score", *model, "--output", run.folder / "scores.json")


@dataclass(frozen=True)
class Inputs:
    """The opened and checked inputs of a tuning.

    Fields:
        start: folder or Hub id of the weights to start with, or whose architecture to train.
        sources: [(`Source`, its rows)], as in `RowStream`. validation: task -> rows (L,).
        batches: (rows per micro-batch on a device, micro-batches per step).
    """

    start: str
    config: TotoConfig
    processor: TotoProcessor
    prompting: Prompting
    sources: list[tuple[Source, PromptedRows]]
    validation: dict[str, list]
    batches: tuple[int, int]


def open_inputs(beginning: Beginning, settings: tuple) -> Inputs:
    """The inputs of a run.

    Raises:
        ValueError, FileNotFoundError: settings, data and model do not match, or do not exist.
    """
    from modeling_toto import TotoConfig
    from tokenization import TotoProcessor
    from training.architectures import check_architecture
    from training.engine.objective import micro_batches
    from training.find_model import resolve_model
    from training.prompting.tasks import TASKS, check_context, read_prompting

    model_args, data, args, optim = settings
    start = resolve_model(str(beginning.checkpoint or model_args.model))
    check_architecture("llama", start)
    config = TotoConfig.from_pretrained(start)
    check_context(config, {name: TASKS[name] for name in data.names})
    world = int(os.environ.get("WORLD_SIZE", 1))
    batches = micro_batches(data.rows_per_step, data.per_device_batch_size, world, "--rows_per_step")
    if optim.optimizer == "muon":
        from accelerate.utils import parse_flag_from_env

        from training.engine.optim import require_muon_fits

        require_muon_fits("llama", config, parse_flag_from_env("ACCELERATE_USE_FSDP"))
    processor = TotoProcessor.from_pretrained(start)
    if beginning.checkpoint is not None:  # ranges and colours stay those that the weights have learnt
        prompting = read_prompting(start)
    else:
        prompting = make_prompting(data, processor)
    weights = {name: SHARES.get(name, 1) for name in data.names}
    sources, validation = [], {}
    for name in data.names:
        rows = open_rows(name, data, prompting, processor, args.seed, "train")
        sources.append(
            (Source(data.data or "toyworld:motion", weight=weights[name] / sum(weights.values()), name=name), rows)
        )
        held_out = open_rows(name, data, prompting, processor, VALIDATION_SEED, "validation") if data.val_rows else None
        validation[name] = [held_out.row(k) for k in range(data.val_rows)] if held_out else []
    return Inputs(start, config, processor, prompting, sources, validation, batches)


def make_prompting(data: PromptDataArgs, processor) -> Prompting:
    """Tasks, ranges and colours of a new run. Raises ValueError if the tokenizer shows too few colours."""
    from training.prompting.calibration import colours_shown
    from training.prompting.examples import HELD_OUT_HUES, PairExamples, value_range
    from training.prompting.tasks import TASKS, Prompting, make_coding

    colours, tasks = colours_shown(processor), {}
    for name in data.names:
        task = TASKS[name]
        if data.data is not None:
            low, high = value_range(PairExamples(task, data.data, 0, processor.resolution), task)
            low, high = (own if given is None else given for given, own in ((data.low, low), (data.high, high)))
            require(low < high, f"The range of the labels is {low:g} to {high:g}; set --low below --high.")
            task = replace(task, low=low, high=high)
        tasks[name] = task
    codings = {name: make_coding(task, colours) for name, task in tasks.items()}
    held_out = HELD_OUT_HUES if data.data is None else ()
    return Prompting(processor.fingerprint, tasks, codings, held_out)


def open_rows(name: str, data: PromptDataArgs, prompting: Prompting, processor, seed: int, split: str) -> PromptedRows:
    """The rows of a task: training or validation clips of the world, or that part of the pairs in --data."""
    from training.prompting.examples import PairExamples, WorldExamples
    from training.rows.prompted_rows import PromptedRows

    task, side = prompting.tasks[name], processor.resolution
    if data.data is None:
        examples = WorldExamples(task, split, seed, side, prompting.held_out_hues)
    else:  # too few pairs to hold any out are trained on, and validated on
        few = len(PairExamples(task, data.data, seed, side).pairs) < 10 * task.groups
        part = "all" if few else {"train": "train", "validation": "test"}[split]
        examples = PairExamples(task, data.data, seed, side, part)
    return PromptedRows(task, prompting.codings[name], examples, processor, seed)


def tune(run: Run, inputs: Inputs, settings: tuple) -> tuple[Path, bool]:
    """Train the model of a run; returns the last checkpoint, and whether SIGTERM ended the training early."""
    from training.architectures import load_model, make_model
    from training.engine.compiling import compile_blocks
    from training.engine.loop import Learner, train
    from training.engine.optim import make_optimizer
    from training.prompting.objective import LabelTokens
    from training.rows.mixture import RowStream

    model_args, data, args, optim = settings
    accelerator = run.accelerator
    stream = RowStream(inputs.sources, args.seed, accelerator.process_index, accelerator.num_processes)
    run.report_changes(stream.fingerprints, stream.is_indexed)
    if model_args.from_scratch and run.checkpoint is None:
        model = make_model("llama", inputs.config)
    else:
        model = load_model("llama", str(run.checkpoint or inputs.start), inputs.config)
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if args.compile:
        compile_blocks(model, run.is_main)
    inputs.processor.to(accelerator.device)
    began = "new weights" if model_args.from_scratch else f"the weights of {inputs.start}"
    run.announce(
        f"{model.num_parameters() / 1e6:.1f} M parameters from {began}, {run.max_steps} steps of {data.rows_per_step} "
        f"rows on {run.machine}, tasks {', '.join(data.names)}",
        *settings,
    )
    optimizer = make_optimizer(model, optim)
    objective = LabelTokens(model, inputs.prompting, inputs.validation, inputs.batches, data.rows_per_step)
    model, optimizer = accelerator.prepare(model, optimizer)
    return train(run, Learner(model, optimizer, inputs.processor, stream, objective), args, optim)
