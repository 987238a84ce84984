"""`toto pretrain`: next-token training on token shards, in one process or those that `accelerate launch` starts."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenization.terminal.next_command import after_pretrain
from training.args import DataArgs, ModelArgs, PretrainOptimArgs, PretrainRunArgs
from training.flags import absolute, config_fields, parse, require, resumed_run, with_flags
from training.tiny_scale import shrink

if TYPE_CHECKING:
    from modeling_toto import TotoConfig
    from tokenization import TotoProcessor
    from training.engine.run import Beginning, Run

DESCRIPTION = (
    "Pre-train Toto by predicting the next visual token (paper Sec. 3). Tokenize first: toto tokenize. "
    "toto pretrain --resume RUN continues a killed run exactly."
)

# Fields that the weights of a checkpoint determine; the others may change when training continues.
DECIDED_BY_WEIGHTS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"),
    *("num_key_value_heads", "tie_word_embeddings", "attention_bias", "mlp_bias", "hidden_act", "code_offset"),
    *("mup_base_width", "mup_base_head_dim", "embedding_multiplier", "output_multiplier"),
)


TYPES = (ModelArgs, DataArgs, PretrainRunArgs, PretrainOptimArgs)


def main(argv: list[str] | None = None) -> None:
    argv, resumed = resumed_run(argv)
    settings = parse(TYPES, argv, "toto pretrain", DESCRIPTION)
    run = execute(settings, resumed)
    after_pretrain(run, media_of(settings[1]))


def media_of(data: DataArgs) -> str | None:
    """The data set of the first source; None if it has none, as with --scale tiny."""
    from tokenization.shards.format import read_manifest

    for source in data.mixture()[:1]:
        return read_manifest(source.data)["dataset"] if source.is_shards else source.data
    return None


def pretrain_model(
    shards: str | Path | None = None,
    *,
    recipe: str | Path | None = None,
    output_dir: str | Path | None = None,
    resume: str | Path | None = None,
    **flags: Any,
) -> Path | str:
    """Pre-train a Toto on token shards, as `toto pretrain` does; returns the run folder.

    Args:
        shards: folder or URL that `tokenization.tokenize` wrote; takes the place of a recipe's sources.
        recipe: YAML file, or a name in training/recipes such as "tiny_cpu", with defaults for all flags.
        output_dir: run folder or URL, new or empty; None: runs/<recipe>-<time>.
        resume: continue this run folder exactly; needs no other argument.
        flags: other flags of the verb by name, such as max_steps=600, learning_rate=1e-3 or seed=1; `config` and the
            members of `sources` are mappings. `toto pretrain --help` lists them.
    Returns:
        The folder with recipe.yaml, versions.json, metrics.jsonl and checkpoints/step_XXXXXX/, of which
        `training.load_run` loads the newest; its URL, if `output_dir` or `resume` is one.
    Raises:
        ValueError: an unknown flag (the nearest valid one is offered), or settings and data that do not fit together.
        FileNotFoundError: no such recipe, shards or run.
        SystemExit: code 75, after a SIGTERM and a checkpoint.
    """
    argv, resumed = resumed_run([] if resume is None else ["--resume", str(resume)])
    argv += [] if recipe is None else ["--recipe", str(recipe)]
    named = {"shards": shards, "output_dir": output_dir}
    flags |= {name: value for name, value in named.items() if value is not None}
    return execute(with_flags(parse(TYPES, argv, "toto pretrain", DESCRIPTION), flags), resumed)


def execute(
    settings: tuple[ModelArgs, DataArgs, PretrainRunArgs, PretrainOptimArgs], resumed: Path | None
) -> Path | str:
    """Start or resume the run that the settings describe; returns its folder, or its URL."""
    if settings[2].scale == "tiny" and resumed is None:  # the recipe of a tiny run is tiny already
        settings = shrink(*settings)
    model_args, data, args, optim = settings
    model_args, data = replace(model_args, init_from=absolute(model_args.init_from)), data.absolute()
    settings = model_args, data, args, optim
    require(bool(data.mixture()), "No data is named; pass --shards DIR (written by toto tokenize), or --sources.")

    from accelerate.utils import parse_flag_from_env

    from training.engine.optim import require_muon_fits
    from training.engine.run import begin, end_run, publish, running

    # Everything that can be wrong is checked before there is a process group or a model.
    beginning = begin("pretrain", args, resumed)
    changes = beginning.changes(*settings, weights_flag="--init_from")
    inputs = open_inputs(beginning, model_args, data, args.seed)
    if optim.optimizer == "muon":
        require_muon_fits(model_args.architecture, inputs.layout, parse_flag_from_env("ACCELERATE_USE_FSDP"))
    push_to = args.hub_model_id if args.push_to_hub else None
    with running(beginning, args, changes, report_to=args.report_to, push_to=push_to) as run:
        last, preempted = pretrain(run, inputs, settings)
    end_run(run, last, None if preempted else last)
    publish(run, last, push_to)
    return beginning.remote.url if beginning.remote else run.folder


@dataclass(frozen=True)
class Inputs:
    """The opened and checked inputs of a pre-training.

    Fields:
        start: folder of the weights to start with; None for new ones.
        layout: the TotoConfig to train, which also defines a row.
        processor: saved with the model; None if it is not needed.
        resolution, to_row: for sources of pixels: the side of their frames, and the function that makes a row of them.
        sources: [(`Source`, its rows)], as in `RowStream`.
    """

    start: str | None
    layout: TotoConfig
    processor: TotoProcessor | None
    resolution: int
    to_row: Callable | None
    sources: list[tuple]


def open_inputs(beginning: Beginning, model_args: ModelArgs, data: DataArgs, seed: int) -> Inputs:
    """The inputs of a run.

    Raises:
        ValueError, FileNotFoundError: settings, data and weights do not match, or do not exist.
    """
    from tokenization.shards.format import read_manifest
    from training import find_model
    from training.architectures import check_architecture
    from training.engine.objective import accumulation_steps
    from training.rows.mixture import check_tokenizers, open_rows, warn_of_other_codes

    continues, mixture = beginning.checkpoint is not None, data.mixture()
    start = beginning.checkpoint or model_args.init_from
    start = start and find_model.resolve_model(str(start))
    if start:
        check_architecture(model_args.architecture, start)
    layout = row_layout(model_args, start, continues)
    if data.shards is not None:
        read_manifest(data.shards)  # its error for a wrong folder is clearer than that of a general dataset
    processor, to_row, resolution = reading(model_args.architecture, data, layout)
    sources = [open_rows(source, layout, seed, resolution, to_row) for source in mixture]
    check_tokenizers(mixture, processor)
    if start and not continues and processor is not None:
        warn_of_other_codes(Path(start), processor)
    if processor is not None and not all(source.is_shards for source in mixture):
        require(
            processor.num_codes == layout.num_codes,
            f"The visual tokenizer has {processor.num_codes} codes, but the model has {layout.num_codes}; pass the "
            f"model's --tokenizer, or set vocab_size {layout.code_offset + processor.num_codes} in --config.",
        )
    world = int(os.environ.get("WORLD_SIZE", 1))
    accumulation_steps(data, layout.num_frames * layout.tokens_per_frame, world)
    return Inputs(start, layout, processor, resolution, to_row, sources)


def pretrain(
    run: Run, inputs: Inputs, settings: tuple[ModelArgs, DataArgs, PretrainRunArgs, PretrainOptimArgs]
) -> tuple[Path, bool]:
    """Train the model of a run; returns the last checkpoint, and whether SIGTERM ended the training early."""
    from training.engine.loop import Learner, train
    from training.engine.optim import make_optimizer
    from training.next_tokens import NextTokens
    from training.rows.mixture import RowStream, open_validation

    model_args, data, args, optim = settings
    accelerator, layout, processor = run.accelerator, inputs.layout, inputs.processor
    world = accelerator.num_processes
    stream = RowStream(inputs.sources, args.seed, accelerator.process_index, world)
    run.report_changes(stream.fingerprints, stream.is_indexed)
    model = make_network(run, inputs, model_args, args)
    if processor is not None:
        processor.to(accelerator.device)
    pixels = (inputs.resolution, inputs.to_row)
    validation = {source.name: open_validation(source, layout, *pixels, data.val_rows) for source in data.mixture()}
    validation = {name: rows for name, rows in validation.items() if len(rows)}
    run.announce(
        f"{model.num_parameters() / 1e6:.1f} M parameters, {run.max_steps} steps of {data.tokens_per_step:,} tokens on "
        f"{run.machine}, {validation_in_words(data, validation)}, sources {', '.join(stream.names)}",
        *settings,
    )
    optimizer = make_optimizer(model, optim)
    objective = NextTokens(model, stream, validation, data, layout, world)
    model, optimizer = accelerator.prepare(model, optimizer)
    return train(run, Learner(model, optimizer, processor, stream, objective), args, optim)


def validation_in_words(data: DataArgs, validation: dict[str, list]) -> str:
    """How many rows validate, and where they are from."""
    rows = sum(map(len, validation.values()))
    held_out = [s for s in data.mixture() if s.name in validation and not (s.val_data or s.val_split or s.is_toyworld)]
    if rows:
        return f"{rows} validation rows" + (" (one item in 20 is held out of training)" if held_out else "")
    why = "switched off" if data.val_rows == 0 else "too few items to hold out one in 20; --val_shards names others"
    return f"no validation ({why})"


def make_network(run: Run, inputs: Inputs, model_args: ModelArgs, args: PretrainRunArgs):
    """The model to train, with the options that the flags set; not yet prepared by the accelerator."""
    from training.architectures import load_model, make_model, use_liger
    from training.engine.compiling import compile_blocks, wants_compile

    start = run.checkpoint or inputs.start
    if start:
        model = load_model(model_args.architecture, str(start), inputs.layout)
    else:
        model = make_model(model_args.architecture, inputs.layout)
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if args.liger:
        use_liger(model, run.accelerator.device)
    if wants_compile(args.compile, model_args.architecture, args.liger, run.accelerator.device):
        compile_blocks(model, run.is_main)
    return model


def row_layout(model_args: ModelArgs, start: str | None, resumed: bool):
    """The TotoConfig to train, which also defines a row.

    Raises:
        ValueError: fields that TotoConfig does not have, or that the weights of `start` do not allow.
    """
    from huggingface_hub.errors import StrictDataclassError

    from modeling_toto import TotoConfig

    fields = config_fields(model_args.config)
    try:
        if model_args.architecture in ("gpt2", "mamba") or start is None:  # a peer's config is derived from this one
            return TotoConfig.from_preset(model_args.preset, **fields)
        return TotoConfig.from_pretrained(start) if resumed else changed_config(start, fields)
    except StrictDataclassError as error:  # transformers wraps the errors of a config
        raise ValueError(f"--config is not valid: {error.__cause__}") from error


def reading(architecture: str, data: DataArgs, layout):
    """(processor that is saved with the model, function that makes a row of pixels, side of the frames in pixels).

    Raises:
        ValueError: patches from shards, which hold no pixels.
    """
    from tokenization import TotoProcessor
    from tokenization.shards.format import processor_folder
    from training.rows.pixel_rows import patch_row, token_row
    from training.tiny_scale import tiny_processor

    mixture = data.mixture()
    side = math.isqrt(layout.tokens_per_frame)
    folders = [source.data for source in mixture if source.is_shards]
    needs_codes = architecture != "patches" or layout.prediction_target == "code"
    processor = None
    if data.tokenizer in ("tiny-dvae", "tiny-vqgan"):  # of --scale tiny
        processor = tiny_processor(data.tokenizer, layout.tokens_per_frame, layout.num_frames)
    elif data.tokenizer is not None:
        processor = TotoProcessor.from_visual_tokenizer(data.tokenizer)
    elif folders:
        inside = processor_folder(folders[0])
        processor = None if inside is None else TotoProcessor.from_pretrained(inside)
    elif needs_codes:
        processor = TotoProcessor.default()
    if architecture == "patches":
        require(not folders, "--architecture patches reads pixels, but shards hold codes; name the media as a source.")
        processor = processor if needs_codes else None
        return processor, patch_row(layout.patch_size, processor), side * layout.patch_size
    require(
        all(source.is_shards for source in mixture) or side**2 == layout.tokens_per_frame,
        f"tokens_per_frame is {layout.tokens_per_frame}; it must be a square number, because frames are square.",
    )
    if processor is None:
        return None, None, 0
    stride = processor.visual_tokenizer.config.stride
    processor = processor.with_sizes(side * stride, layout.num_frames)
    return processor, token_row(processor), side * stride


def changed_config(start: str, fields: dict):
    """The config of a checkpoint with other fields, such as a resolution or a RoPE base (paper Table 4).

    Raises:
        ValueError: a field that the checkpoint's weights determine.
    """
    from modeling_toto import TotoConfig

    config = TotoConfig.from_pretrained(start)
    for key in DECIDED_BY_WEIGHTS:
        require(
            fields.get(key, getattr(config, key)) == getattr(config, key),
            f"--config sets {key} to {fields.get(key)}, but the weights of --init_from {start} have "
            f"{getattr(config, key)}; leave it out, or train from random weights without --init_from.",
        )
    return TotoConfig.from_pretrained(start, **fields)


if __name__ == "__main__":
    from toto_cli import run

    run(main)
