"""`toto pretrain`: next-token training on token shards; one process, or as many as `accelerate launch` starts."""

from __future__ import annotations

import math
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path

from tokenization.shards import read_manifest

from .args import DataArgs, ModelArgs, OptimArgs, PretrainRunArgs, absolute, config_fields, parse, require, resumed_run
from .tiny_scale import shrink

DESCRIPTION = (
    "Pre-train Toto by predicting the next visual token (paper Sec. 3). Tokenize first: toto tokenize. "
    "A killed run continues exactly: toto pretrain --resume RUN."
)

# Fields that the weights of a checkpoint have decided; what else the config says may change when training goes on.
DECIDED_BY_WEIGHTS = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"),
    *("num_key_value_heads", "tie_word_embeddings", "attention_bias", "mlp_bias", "hidden_act", "code_offset"),
    *("mup_base_width", "mup_base_head_dim", "embedding_multiplier", "output_multiplier"),
)


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    resumed = resumed_run(argv)
    if resumed is not None:  # the run's own recipe gives every default
        argv = ["--recipe", str(resumed / "recipe.yaml"), *argv]
    settings = parse((ModelArgs, DataArgs, PretrainRunArgs, OptimArgs), argv, "toto pretrain", DESCRIPTION)
    if settings[2].scale == "tiny" and resumed is None:  # the recipe of a tiny run is tiny already
        settings = shrink(*settings)
    model_args, data, args, optim = settings
    model_args = replace(model_args, init_from=absolute(model_args.init_from))
    mixture = data.mixture()
    require(bool(mixture), "Name the shards to train on: --shards DIR (written by toto tokenize), or --sources.")

    from accelerate.utils import set_seed

    from . import checkpoints
    from .architectures import check_architecture, load_model, make_model
    from .begin import end_run, go_on, refuse_fp16, run_folder, start_processes, write_run_files
    from .kernels import use_liger
    from .loop import accumulation_steps, train
    from .mixture import RowStream, check_tokenizers, open_rows, open_validation, warn_of_other_codes
    from .next_tokens import NextTokens
    from .optim import make_optimizer
    from .resume import changed_settings, read_recipe

    run = run_folder(args, resumed, "pretrain")
    # Everything that can be wrong is looked at before there is a process group or a model.
    goes_on = resumed is not None and bool(checkpoints.steps(run))  # else it stopped before its first checkpoint
    start = checkpoints.latest(run) if goes_on else model_args.init_from
    start = start and checkpoints.resolve_model(str(start))
    if goes_on:
        changes = changed_settings(read_recipe(run), model_args, data.absolute(), args, optim)
    if start:
        check_architecture(model_args.architecture, start)
    refuse_fp16()
    layout = row_layout(model_args, start, goes_on)
    if data.shards is not None:
        read_manifest(data.shards)  # which tells a wrong folder better than that it is no data set either
    processor, to_row, resolution = reading(model_args.architecture, data, layout)
    sources = [open_rows(source, layout, args.seed, resolution, to_row) for source in mixture]
    check_tokenizers(mixture, processor)
    if start and not goes_on and processor is not None:
        warn_of_other_codes(Path(start), processor)
    if processor is not None and not all(source.is_shards for source in mixture):
        require(
            processor.num_codes == layout.num_codes,
            f"The visual tokenizer has {processor.num_codes} codes and the model {layout.num_codes}; name the model's "
            f"with --tokenizer, or set vocab_size {layout.code_offset + processor.num_codes} in --config.",
        )
    world = int(os.environ.get("WORLD_SIZE", 1))
    accumulation_steps(data, layout.num_frames * layout.tokens_per_frame, world)
    accelerator, run = start_processes(args, run)
    stream = RowStream(sources, args.seed, accelerator.process_index, world)
    max_steps = None
    if resumed and not goes_on and accelerator.is_main_process:
        print(f"{run} has no checkpoint yet, so it begins anew.")
    if goes_on:
        start, max_steps = go_on(accelerator, run, args, changes, stream)
    set_seed(args.seed)
    if start:
        model = load_model(model_args.architecture, start, layout)
    else:
        model = make_model(model_args.architecture, layout)
    if processor is not None:
        processor.to(accelerator.device)
    validation = {source.name: open_validation(source, layout, resolution, to_row, data.val_rows) for source in mixture}
    validation = {name: rows for name, rows in validation.items() if len(rows)}
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if args.liger:
        use_liger(model, accelerator.device)
    if args.compile:
        for layer in getattr(model.base_model, "layers", None) or model.base_model.h:  # GPT-2's name
            layer.compile(dynamic=False)
    if accelerator.is_main_process:
        write_run_files(run, accelerator.device, model_args, data.absolute(), args, optim)
        print(
            f"{run}: {model.num_parameters() / 1e6:.1f} M parameters, {max_steps or args.max_steps} steps of "
            f"{data.tokens_per_step:,} tokens on {world} x {accelerator.device.type} "
            f"(mixed precision: {accelerator.mixed_precision}), "
            f"{sum(map(len, validation.values()))} validation rows, sources {', '.join(stream.names)}",
            flush=True,
        )
    if args.report_to:
        accelerator.init_trackers("toto", config={**asdict(model_args), **asdict(data), **asdict(optim)})
    optimizer = make_optimizer(model, optim)
    objective = NextTokens(model, stream, validation, data, layout, world)
    model, optimizer = accelerator.prepare(model, optimizer)
    try:
        last, preempted = train(
            accelerator,
            model,
            optimizer,
            processor,
            stream,
            objective,
            run,
            args,
            optim,
            Path(start) if goes_on else None,
            max_steps,
        )
    finally:
        # What holds the process group goes first. Else its end may wait, holding Python's lock, for a thread of gloo's
        # that waits for that lock.
        model, optimizer = accelerator.free_memory(model, optimizer)
        accelerator.end_training()
    end_run(accelerator, "pretrain", run, last, None if preempted else last, args)


def row_layout(model_args: ModelArgs, start: str | None, resumed: bool):
    """The TotoConfig to train, which also says what a row is.

    Raises:
        ValueError: fields that no Toto has, or that the weights of `start` have decided.
    """
    from huggingface_hub.errors import StrictDataclassError

    from modeling_toto import TotoConfig

    fields = config_fields(model_args.config)
    try:
        if model_args.architecture in ("gpt2", "mamba") or start is None:  # a peer's config is derived from this one
            return TotoConfig.from_preset(model_args.preset, **fields)
        return TotoConfig.from_pretrained(start) if resumed else changed_config(start, fields)
    except StrictDataclassError as error:  # transformers' own wrapping of what a config refuses
        raise ValueError(f"--config is refused: {error.__cause__}") from error


def reading(architecture: str, data: DataArgs, layout):
    """(processor that is saved with the model, what makes rows of pixels, side of the frames in pixels).

    Raises:
        ValueError: patches from shards, which hold none.
    """
    from tokenization import TotoProcessor

    from .pixels import patch_row, token_row
    from .tiny_scale import tiny_processor

    mixture = data.mixture()
    side = math.isqrt(layout.tokens_per_frame)
    folders = [Path(source.data) / "processor" for source in mixture if source.is_shards]
    needs_codes = architecture != "patches" or layout.prediction_target == "code"
    processor = None
    if data.tokenizer in ("tiny-dvae", "tiny-vqgan"):  # of --scale tiny
        processor = tiny_processor(data.tokenizer, layout.tokens_per_frame, layout.num_frames)
    elif data.tokenizer is not None:
        processor = TotoProcessor.from_visual_tokenizer(data.tokenizer)
    elif folders:
        processor = TotoProcessor.from_pretrained(folders[0]) if folders[0].is_dir() else None
    elif needs_codes:
        processor = TotoProcessor.default()
    if architecture == "patches":
        require(not folders, "Shards hold codes, and --architecture patches reads pixels; name the media as a source.")
        processor = processor if needs_codes else None
        return processor, patch_row(layout.patch_size, processor), side * layout.patch_size
    require(
        all(source.is_shards for source in mixture) or side**2 == layout.tokens_per_frame,
        f"Frames of pixels are square, and tokens_per_frame {layout.tokens_per_frame} is no square number.",
    )
    if processor is None:
        return None, None, 0
    stride = processor.visual_tokenizer.config.stride
    processor = processor.with_sizes(side * stride, layout.num_frames)
    return processor, token_row(processor), side * stride


def changed_config(start: str, fields: dict):
    """The config of a checkpoint with other fields: a resolution, a RoPE base (paper Table 4), not other weights.

    Raises:
        ValueError: a field that the checkpoint's weights have decided.
    """
    from modeling_toto import TotoConfig

    config = TotoConfig.from_pretrained(start)
    for key in DECIDED_BY_WEIGHTS:
        require(
            fields.get(key, getattr(config, key)) == getattr(config, key),
            f"--config says {key} {fields.get(key)}, but the weights of --init_from {start} were made with "
            f"{getattr(config, key)}; leave it out, or train from fresh weights without --init_from.",
        )
    return TotoConfig.from_pretrained(start, **fields)


if __name__ == "__main__":
    from toto_cli import run

    run(main)
