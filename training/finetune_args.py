"""Flags of `toto finetune`: what is fine-tuned, on what, and how it is kept from learning it by heart.

The paper says nothing of its fine-tuning recipe (App. A.3, A.4: accuracies only); defaults follow MAE's (arXiv
2111.06377, Table 9) and BEiT's where it has one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tokenization.sampling import TimeStepArgs
from training.args import OptimArgs, RunArgs, absolute, option, refuse_idle, require, typed_flags


@dataclass(frozen=True)
class FinetuneModelArgs:
    """Which model, and how it reads the rows; what is left out stays as the model's config has it."""

    model: str | None = option(None, "a pre-trained Toto: Hub id, Hugging Face folder, or run folder of toto pretrain")
    tokenizer: str | None = option(None, "visual tokenizer or processor, where the model comes without one")
    attention_mode: str | None = option(None, "causal, prefix (App. A.3) or full (App. A.4)")
    prefix_length: int | None = option(None, "with prefix: so many first ids see each other, the start id included")
    pooler: str | None = option(None, "attention (default), mean, or cross_attention_mlp")
    feature_layer: int | None = option(
        None, "the layer that the head reads; default: the config's, or else the last (paper silent)"
    )
    num_frames: int | None = option(None, "frames of a clip: 16, or 32 as for CATER (positions are added as needed)")
    resolution: int | None = option(None, "side of the frames in pixels; another one than the model's is learnt anew")
    rope_theta: float | None = option(None, "base of RoPE (paper Table 4: 50000 for longer rows)")
    next_token_loss: str | None = option(
        None, "beside the labels: backbone (both through it), or stop_gradient (it learns from next tokens alone)"
    )
    next_token_loss_weight: float | None = option(None, "factor of the next-token loss (paper silent; 1)")
    drop_path: float = option(0.0, "chance that a row skips the last block in training; earlier ones less (MAE: 0.1)")

    def __post_init__(self):
        require(0 <= self.drop_path < 1, "--drop_path must be 0 or more, and below 1.")
        for name in ("num_frames", "resolution", "rope_theta"):
            require(getattr(self, name) is None or getattr(self, name) > 0, f"--{name} must be above 0.")

    def fields(self) -> dict:
        """The TotoConfig fields among them that were given."""
        names = ("attention_mode", "prefix_length", "pooler", "feature_layer", "rope_theta")
        names += ("next_token_loss", "next_token_loss_weight")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True)
class LabelledArgs(TimeStepArgs):
    """Which labelled images or clips."""

    dataset: str | None = option(
        None, "Hub id, folder (class folders, or train/ and test/ of them), .parquet or .tar file, or toyworld"
    )
    label_column: str | None = option(
        None, "column of the labels (whole numbers, text, or true and false); needed where there are several"
    )
    train_split: str = option("train", "split to train on")
    validation_split: str | None = option(
        None, "split to choose on; default: its own, or a fifth of the training files"
    )
    test_split: str | None = option(
        None, "split scored once at the end; default: its own, or the validation split, or a fifth of the files"
    )
    max_train: int | None = option(None, "at most so many files or rows of train, carved-off ones too (toyworld: 2000)")
    max_validation: int | None = option(None, "at most so many of validation (toyworld: 500)")
    max_test: int | None = option(None, "at most so many of test (toyworld: 500)")
    group_by: str | None = option(
        None,
        "regular expression on the files' names, such as '_g\\d+_': files with the same match are never on both sides "
        "of a carved split",
    )
    split_seed: int = option(0, "of splits that are carved, and of what --max_train and its like choose")
    image_column: str | None = option(None, "column with the images or videos, where there are several")
    kind: str | None = option(None, "video or image, where a dataset holds both")
    decode: str = option(
        "once", "once: pixels are kept in memory; always: read when needed, for folders that do not fit there"
    )
    workers: int = option(4, "threads that prepare augmented rows")
    batch_size: int = option(256, "rows of an optimiser step, all devices")
    per_device_batch_size: int = option(8, "rows at a time on one device; accumulation follows")
    epochs: float | None = option(None, "passes over the training clips, in place of --max_steps")

    def __post_init__(self):
        super().__post_init__()
        names = ("max_train", "max_validation", "max_test", "epochs", "batch_size", "per_device_batch_size")
        for name in names:
            require(getattr(self, name) is None or getattr(self, name) > 0, f"--{name} must be above 0.")
        require(self.workers >= 0, "--workers must be 0 or more.")
        require(self.decode in ("once", "always"), f"--decode must be once or always, not '{self.decode}'.")

    def absolute(self) -> LabelledArgs:
        """With an absolute path."""
        return replace(self, dataset=absolute(self.dataset))


@dataclass(frozen=True)
class AugmentArgs:
    """How the training clips are varied."""

    augment: str = option(
        "none", "none (tokens are made once), crop (crops and flips), rand (and RandAugment): encoded in every step"
    )
    horizontal_flip: bool = option(True, "mirror half of the clips; leave it out where labels say left or right")
    smallest_crop: float = option(0.35, "least area of a random crop (MAE: 0.08, on images of 224 pixels)")
    rand_operations: int = option(2, "RandAugment: operations on a clip")
    rand_magnitude: float = option(9, "RandAugment: their strength, 0 to 10")
    mixup: float = option(0.0, "alpha of mixup, 0 for none (MAE: 0.8)")
    cutmix: float = option(0.0, "alpha of cutmix, 0 for none (MAE: 1.0)")
    label_smoothing: float = option(0.1, "share of the target that all classes get alike (MAE: 0.1)")

    def __post_init__(self):
        names = ("none", "crop", "rand")
        require(self.augment in names, f"--augment must be one of {', '.join(names)}, not '{self.augment}'.")
        require(0 < self.smallest_crop <= 1, "--smallest_crop must be above 0, and at most 1.")
        require(0 <= self.rand_magnitude <= 10, "--rand_magnitude must lie between 0 and 10.")
        require(self.rand_operations >= 0, "--rand_operations must be 0 or more.")
        require(self.mixup >= 0 and self.cutmix >= 0, "--mixup and --cutmix must be 0 or more.")
        require(0 <= self.label_smoothing < 1, "--label_smoothing must be 0 or more, and below 1.")
        require(
            self.augment != "none" or not (self.mixup or self.cutmix),
            "--mixup and --cutmix blend pixels, and --augment none keeps ids only, which cannot be blended; take "
            "--augment crop.",
        )


@dataclass(frozen=True)
class FinetuneOptimArgs(OptimArgs):
    """The optimiser and its schedule; the paper is silent on all of it."""

    learning_rate: float = option(5e-4, "peak learning rate of the head (MAE: 5e-4 for every 256 rows of a step)")
    warmup_steps: int = option(100, "steps of linear warm-up (MAE: 5 epochs)")
    min_lr_ratio: float = option(0.0, "end of the cosine, as a share of the peak (MAE: 0)")
    adam_beta2: float = option(0.999, "AdamW beta 2 (MAE: 0.999)")
    weight_decay: float = option(0.05, "on matrices, not on norms (MAE: 0.05)")
    layer_decay: float = option(0.75, "factor of the rate from a block to the one below (MAE: 0.65 base, 0.75 large)")
    ema_decay: float | None = option(None, "average the weights with this decay, and evaluate and save the average")

    def __post_init__(self):
        super().__post_init__()
        require(0 < self.layer_decay <= 1, "--layer_decay must be above 0, and at most 1 (no decay).")
        require(self.ema_decay is None or 0 < self.ema_decay < 1, "--ema_decay must lie between 0 and 1.")


@dataclass(frozen=True)
class FinetuneRunArgs(RunArgs):
    """How long a run is, where it is written, and what it logs."""

    max_steps: int = option(1000, "optimiser steps; see also --epochs")
    save_steps: int = option(200, "steps between checkpoints; one is also written at the end")
    seed: int = option(0, "of the head, the order of the clips, and their augmentation")


# What recipe.yaml of runs by earlier versions may hold: flags of toto pretrain that were refused here.
RETIRED = {"scale": "full", "liger": False}
OF_CROPS = ("smallest_crop", "horizontal_flip", "no_horizontal_flip")
OF_RAND = ("rand_operations", "rand_magnitude")


def refuse_idle_flags(argv: list[str], data: LabelledArgs, augment: AugmentArgs) -> LabelledArgs:
    """The data settings, without a recipe's epochs where --max_steps was typed.

    Raises:
        ValueError: a typed flag that would have no effect next to the others.
    """
    typed = typed_flags(argv)
    if "fps" in typed:
        refuse_idle(argv, ("stride",), "next to --fps")
    if augment.augment == "none":
        refuse_idle(argv, (*OF_CROPS, *OF_RAND), "with --augment none, which makes tokens once")
    if augment.augment == "crop":
        refuse_idle(argv, OF_RAND, "with --augment crop")
    if data.dataset and data.dataset.split(":")[0] == "toyworld":
        refuse_idle(argv, ("stride", "fps", "image_column"), "on toyworld, which is drawn")
    if "epochs" in typed:
        refuse_idle(argv, ("max_steps",), "next to --epochs")
    return replace(data, epochs=None) if "max_steps" in typed else data
