"""`toto train-tokenizer`: trains a visual tokenizer, a dVAE (Ramesh et al. 2021) or VQGAN (Esser et al. 2021)."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tokenization.shards.files import HELD_OUT
from tokenization.terminal.next_command import say_next
from training.flags import json_fields, parse, read_recipe, require, resumed_run, typed_flags
from training.tokenizers.args import AdversarialArgs, RelaxationArgs, TokenizerArgs, TokenizerOptimArgs

if TYPE_CHECKING:
    from training.engine.run import Beginning, Run

DESCRIPTION = (
    "Train a visual tokenizer on the frames of datasets; writes a folder for `toto tokenize --tokenizer`. The recipes "
    "dvae and vqgan_f16_1024 are the published ones. --resume RUN continues a killed run exactly."
)


TYPES = (TokenizerArgs, RelaxationArgs, AdversarialArgs, TokenizerOptimArgs)
# Flags that a resumed run cannot change, and flags that it cannot add or remove.
SETTLED = ("kind", "model", "disc_channels", "disc_layers")
GIVEN_OR_NOT = ("ema_decay", "disc_start")


def main(argv: list[str] | None = None) -> None:
    argv, resumed = resumed_run(argv)
    settings = args, relaxation, adversarial, _ = parse(TYPES, argv, "toto train-tokenizer", DESCRIPTION)
    unused = adversarial if args.kind == "dvae" else relaxation
    idle = [key for key, value in asdict(unused).items() if value != asdict(type(unused)())[key]]
    require(not idle, f"--{', --'.join(idle)} has no effect on a {args.kind}; leave it out.")

    from training.engine.run import begin, close_remote, end_run, running

    args = with_held_out(args, argv)
    settings = args, *settings[1:]
    beginning = begin("train-tokenizer", args, resumed, name=f"tokenizer-{args.kind}")
    changes = beginning.changes(*settings, settled=settled(beginning, settings))
    config = tokenizer_config(args)
    # Before the training, so that a source without such a split is refused at once.
    held_out = read_held_out(args, config.resolution) if os.environ.get("RANK", "0") == "0" else {}
    # The discriminator has batch norms.
    with running(beginning, args, changes, report_to=args.report_to, broadcast_buffers=True) as run:
        last, preempted = train_tokenizer(run, config, held_out, settings)
    end_run(run, last, None if preempted else last)
    close_remote(run)
    split = args.split if args.eval_split == "held_out" else args.eval_split
    where = ["--dataset", *args.dataset, "--split", split, "--output", run.folder / "evaluation"]
    say_next("evaluate-tokenizer", "--tokenizer", run.folder, *where)


def settled(beginning: Beginning, settings: tuple) -> tuple[str, ...]:
    """The flags that may not differ from those that the run was started with."""
    if beginning.checkpoint is None:
        return ()
    recipe, now = (
        read_recipe(beginning.folder),
        {key: value for each in settings for key, value in asdict(each).items()},
    )
    return SETTLED + tuple(key for key in GIVEN_OR_NOT if (recipe.get(key) is None) != (now[key] is None))


def tokenizer_config(args: TokenizerArgs):
    """The TotoVQGANConfig or TotoDVAEConfig of `--kind` and `--model`.

    Raises:
        ValueError: not a JSON mapping, or a field that this kind does not have.
    """
    from tokenization.configuration_dvae import TotoDVAEConfig
    from tokenization.configuration_vqgan import TotoVQGANConfig

    kind = TotoVQGANConfig if args.kind == "vqgan" else TotoDVAEConfig
    return kind(**json_fields(args.model, "--model", list(kind.__annotations__), '{"num_codes": 512}'))


def with_held_out(args: TokenizerArgs, argv: list[str]) -> TokenizerArgs:
    """The same flags; --eval_split held_out where the split of a recipe is not in the user's data."""
    if "eval_split" in typed_flags(argv) or args.eval_split == "held_out":
        return args
    from tokenization.sources.open import config_of, open_source

    for name in args.dataset:
        try:
            open_source(name, args.eval_split, limit=1, config_name=config_of(name, args.config_name))
        except ValueError as error:
            if "has no split" in str(error):
                return replace(args, eval_split="held_out")
            raise
    return args


def read_held_out(args: TokenizerArgs, resolution: int) -> dict:
    """Dataset -> frames to measure on, uint8 (N, R, R, 3)."""
    from training.rows.frames import held_out_frames

    only = args.eval_split == "held_out"
    split = args.split if only else args.eval_split
    frames = (resolution, args.eval_frames)
    options = {"only_held_out": only, "config_name": args.config_name}
    try:
        return {name: held_out_frames(name, split, *frames, **options) for name in args.dataset}
    except ValueError as error:
        if only or "has no split" not in str(error):
            raise
        raise ValueError(
            f"{error} --eval_split held_out measures on one item in 20 of the split {args.split}."
        ) from error


def train_tokenizer(run: Run, config, held_out: dict, settings: tuple) -> tuple[Path, bool]:
    """Train the tokenizer of a run; returns the last folder written, and whether SIGTERM ended the training early.

    Args:
        config: of the tokenizer. held_out: see `read_held_out`; empty except in the first process.
        settings: the dataclasses of `TYPES`.
    Raises:
        ValueError: the number of processes changed, the mixed precision is not bf16, or the loss is not finite.
    """
    from training.engine import checkpoints
    from training.rows.frames import FrameStream
    from training.tokenizers.loop import TokenizerLoop
    from training.tokenizers.steps import DVAESteps, VQGANSteps

    args, relaxation, adversarial, optim = settings
    accelerator = run.accelerator
    require(
        accelerator.mixed_precision in ("no", "bf16"),
        f"The mixed precision is {accelerator.mixed_precision}; a tokenizer trains in bf16 or no.",
    )
    model = make_tokenizer(run, config)
    kind, flags = (VQGANSteps, adversarial) if args.kind == "vqgan" else (DVAESteps, relaxation)
    steps = kind(accelerator, model, args, flags, optim)
    rank, world = accelerator.process_index, accelerator.num_processes
    share = {"crops": args.crops, "hold_out": args.eval_split == "held_out", "seed": args.seed}
    share |= {"rank": rank, "world": world, "config_name": args.config_name}
    stream = FrameStream(args.dataset, args.split, config.resolution, args.batch_size, **share)
    loop = TokenizerLoop(run, steps, stream, held_out, args)
    if run.checkpoint is not None:
        state, loop_state = checkpoints.load_state(run.checkpoint)
        had = len(loop_state["streams"])
        require(had == world, f"The run had {had} processes and now has {world}; resume it with the same number.")
        steps.load_state_dict(state)
        loop.load(loop_state)
    run.report_changes()
    run.announce(
        f"{args.kind} of {model.num_parameters() / 1e6:.2f} M parameters, {args.max_steps} steps of {args.batch_size} "
        f"frames on {run.machine}"
        + (f", measured on {measured_on(held_out)}" if args.eval_split == "held_out" else ""),
        *settings,
    )
    if loop.train():
        return loop.checkpoint, True
    if adversarial.retire_unused:
        loop.retire_unused()
    if run.is_main:
        finish(run.folder, steps.final_model(), held_out, (args, flags, optim), loop.seconds)
    return run.folder, False


def measured_on(held_out: dict) -> str:
    """What is held out of training, in words. held_out: see `read_held_out`."""
    count = sum(map(len, held_out.values()))
    return f"{count} frame{'s' * (count != 1)} held out of training (one file or row in {HELD_OUT}, at least one)"


def make_tokenizer(run: Run, config):
    """The float32 tokenizer to train: new, or that of the run's checkpoint."""
    import torch

    from tokenization.modeling_dvae import TotoDVAEModel
    from tokenization.modeling_vqgan import TotoVQGANModel
    from training.engine.device import in_own_memory

    kind = TotoVQGANModel if config.model_type == TotoVQGANModel.config_class.model_type else TotoDVAEModel
    model = kind.from_pretrained(run.checkpoint, dtype=torch.float32) if run.checkpoint else kind(config)
    return in_own_memory(model).to(run.accelerator.device, memory_format=torch.channels_last).train()


def finish(run: Path, model, held_out: dict, settings: tuple, seconds: float) -> None:
    """Write the tokenizer, its figures and its card into the run folder itself, for `toto tokenize --tokenizer RUN`."""
    from tokenization.evaluate_tokenizer.scores import measure
    from training.publish.cards import tokenizer_card

    model.eval()
    results = {name: measure(model, frames) for name, frames in held_out.items()}
    partial = run / ".final.partial"
    model.save_pretrained(partial)
    (partial / "evaluation.json").write_text(json.dumps(results, indent=2) + "\n")
    (partial / "README.md").write_text(tokenizer_card(model, settings, results, seconds))
    # The configuration comes last: a folder without it does not count as a tokenizer.
    for file in sorted(partial.iterdir(), key=lambda file: file.name == "config.json"):
        file.replace(run / file.name)
    partial.rmdir()


if __name__ == "__main__":
    from toto_cli import run

    run(main)
