"""`toto pretrain`: next-token training on token shards; one process, or as many as `accelerate launch` starts."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path

from .args import DataArgs, ModelArgs, OptimArgs, RunArgs, json_fields, parse, require, resumed_run, write_recipe

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
    model_args, data, args, optim = parse((ModelArgs, DataArgs, RunArgs, OptimArgs), argv, "toto pretrain", DESCRIPTION)
    run = resumed or Path(args.output_dir or f"runs/{_recipe_name(args)}-{datetime.now():%Y%m%d-%H%M%S}")
    require(data.shards is not None, "Name the shards to train on: --shards DIR (written by toto tokenize).")
    if resumed is None:
        occupied = run.exists() and (not run.is_dir() or any(run.iterdir()))
        require(not occupied, f"{run} is not empty; choose another --output_dir, or continue it with --resume {run}.")

    import torch
    from accelerate.utils import set_seed
    from huggingface_hub.errors import StrictDataclassError

    from modeling_toto import TotoConfig, TotoForCausalLM
    from tokenization import TotoProcessor

    from . import checkpoints
    from .data import RowStream, check_fit, read_manifest, validation_rows
    from .device import make_accelerator, versions
    from .kernels import use_liger
    from .loop import accumulation_steps, train
    from .optim import make_optimizer

    start = (
        checkpoints.latest(run) if resumed else model_args.init_from and checkpoints.resolve_model(model_args.init_from)
    )
    fields = json_fields(model_args.config, "--config", ["hidden_size", *TotoConfig.__dataclass_fields__, "rope_theta"])
    try:
        if resumed:
            config = TotoConfig.from_pretrained(start)
        elif start:
            config = changed_config(start, fields)
        else:
            config = TotoConfig.from_preset(model_args.preset, **fields)
    except StrictDataclassError as error:  # transformers' own wrapping of what a config refuses
        raise ValueError(f"--config is refused: {error.__cause__}") from error
    check_fit(read_manifest(data.shards), config)

    accelerator = make_accelerator(log_with=args.report_to, project_dir=str(run))
    accumulation_steps(data, config.num_frames * config.tokens_per_frame, accelerator.num_processes)
    if args.push_to_hub and accelerator.is_main_process:
        from .hub import create_repo

        create_repo(args.hub_model_id)  # a missing token is better known before the training than after it
    set_seed(args.seed)
    if start:
        model = TotoForCausalLM.from_pretrained(start, config=config, dtype=torch.float32)
    else:
        model = TotoForCausalLM(config)
    processor_folder = Path(data.shards) / "processor"
    processor = TotoProcessor.from_pretrained(processor_folder) if processor_folder.is_dir() else None
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    if args.liger:
        use_liger(model, accelerator.device)
    if args.compile:
        for layer in model.model.layers:
            layer.compile(dynamic=False)
    stream = RowStream(
        data.shards,
        config,
        args.seed,
        accelerator.process_index,
        accelerator.num_processes,
        hold_out=data.val_shards is None,
    )
    validation = validation_rows(data.shards, data.val_shards, config)
    if accelerator.is_main_process:
        run.mkdir(parents=True, exist_ok=True)
        if resumed is None:
            # Absolute paths, so that the run can be resumed from another folder.
            shards, val_shards = (path and str(Path(path).resolve()) for path in (data.shards, data.val_shards))
            write_recipe(run, model_args, replace(data, shards=shards, val_shards=val_shards), args, optim)
        (run / "versions.json").write_text(json.dumps(versions(accelerator.device), indent=2) + "\n")
        print(
            f"{run}: {model.num_parameters() / 1e6:.1f} M parameters, {args.max_steps} steps of "
            f"{data.tokens_per_step:,} tokens on {accelerator.num_processes} x {accelerator.device.type} "
            f"(mixed precision: {accelerator.mixed_precision}), "
            f"{len(validation)} validation rows",
            flush=True,
        )
    if args.report_to:
        accelerator.init_trackers("toto", config={**asdict(model_args), **asdict(data), **asdict(optim)})
    optimizer = make_optimizer(model, optim)
    model, optimizer = accelerator.prepare(model, optimizer)
    try:
        last = train(
            accelerator,
            model,
            optimizer,
            processor,
            stream,
            validation,
            run,
            args,
            data,
            optim,
            start if resumed else None,
        )
    finally:
        accelerator.end_training()
    if accelerator.is_main_process:
        print(f"wrote {last}")
        if args.push_to_hub:
            from .hub import push_folder

            print(f"pushed {push_folder(last, args.hub_model_id)}")


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


def _recipe_name(args: RunArgs) -> str:
    return Path(args.recipe).stem if args.recipe else "pretrain"


if __name__ == "__main__":
    from toto_cli import run

    run(main)
