"""Flags of `toto finetune`: model, labelled data, augmentation, optimiser and run.

The paper gives only the accuracies of its fine-tuning (App. A.3, A.4), not the recipe. Defaults follow MAE (arXiv
2111.06377, Table 9) and BEiT.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from tokenization.sampling import TimeStepArgs
from training.args import OptimArgs, RunArgs
from training.flags import (
    absolute,
    option,
    refuse_idle,
    require,
    require_choice,
    require_not_negative,
    require_positive,
    typed_flags,
)


@dataclass(frozen=True)
class FinetuneModelArgs:
    """The model and how it reads rows; flags that are left out keep the values of the model's config."""

    model: str | None = option(None, "a pre-trained Toto: Hub id, Hugging Face folder, or run folder of toto pretrain")
    tokenizer: str | None = option(None, "visual tokenizer or processor, for a model that has none")
    attention_mode: str | None = option(None, "causal, prefix (App. A.3) or full (App. A.4)")
    prefix_length: int | None = option(
        None, "with prefix: number of first ids (start included) that attend to each other"
    )
    pooler: str | None = option(None, "attention (default), mean, or cross_attention_mlp")
    feature_layer: int | None = option(
        None, "layer that the head reads (default: that of the config, else the last; paper silent)"
    )
    num_frames: int | None = option(
        None, "frames per clip, such as 16, or 32 for CATER (positions are added if needed)"
    )
    resolution: int | None = option(None, "side of the frames in pixels (default: that of the model)")
    rope_theta: float | None = option(None, "base of RoPE (paper Table 4: 50000 for longer rows)")
    next_token_loss: str | None = option(
        None, "a next-token loss as well: backbone, or stop_gradient (labels then train only the head)"
    )
    next_token_loss_weight: float | None = option(None, "factor of the next-token loss (paper silent; default 1)")
    drop_path: float = option(0.0, "probability that a row skips the last block; lower for earlier blocks (MAE: 0.1)")

    def __post_init__(self):
        require(0 <= self.drop_path < 1, f"--drop_path is {self.drop_path}; it must be at least 0 and below 1.")
        require_positive(self, "num_frames", "resolution", "rope_theta")

    def fields(self) -> dict:
        """The TotoConfig fields that were given."""
        names = ("attention_mode", "prefix_length", "pooler", "feature_layer", "rope_theta")
        names += ("next_token_loss", "next_token_loss_weight")
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


@dataclass(frozen=True)
class LabelledArgs(TimeStepArgs):
    """The labelled images or clips."""

    dataset: str | None = option(
        None,
        "Hub id, folder (of class folders, or train/ and test/ of them), .parquet or .tar file, cater:FOLDER, or "
        "toyworld",
    )
    label_column: str | None = option(
        None, "column of the labels (whole numbers, text or booleans); required if there are several"
    )
    train_split: str = option("train", "split to train on")
    validation_split: str | None = option(
        None, "split to select the checkpoint on (default: the dataset's, or a fifth of the training files)"
    )
    test_split: str | None = option(
        None, "split scored once at the end (default: the dataset's, or its validation split, or a fifth of the files)"
    )
    max_train: int | None = option(
        None, "maximum number of training files or rows, carved-off ones included (toyworld: 2000)"
    )
    max_validation: int | None = option(None, "maximum number of validation files or rows (toyworld: 500)")
    max_test: int | None = option(None, "maximum number of test files or rows (toyworld: 500)")
    group_by: str | None = option(
        None,
        "regular expression on the files' names, such as '_g\\d+_': files with the same match are kept on one side of "
        "a carved split",
    )
    allow_seen: bool = option(
        False,
        "a control, marked in the result: test items that the model was trained on, which are otherwise refused",
    )
    split_seed: int = option(0, "seed of carved splits and of the choice of --max_train, --max_validation, --max_test")
    image_column: str | None = option(None, "column of the images or videos, if there are several")
    kind: str | None = option(None, "video or image, for a dataset that holds both")
    config_name: str | None = option(None, "configuration of a dataset that has several")
    decode: str = option(
        "once", "once: keep pixels in memory; always: read them when needed, for folders that do not fit in memory"
    )
    workers: int = option(4, "threads that prepare augmented rows")
    batch_size: int = option(256, "rows per optimiser step, on all devices")
    per_device_batch_size: int = option(8, "rows at a time on a device; accumulation follows from batch_size")
    epochs: float | None = option(None, "passes over the training clips, instead of --max_steps")

    def __post_init__(self):
        super().__post_init__()
        require_positive(self, "max_train", "max_validation", "max_test", "epochs", "batch_size")
        require_positive(self, "per_device_batch_size")
        require_not_negative(self, "workers")
        require_choice(self, "decode", ("once", "always"))

    def absolute(self) -> LabelledArgs:
        """The same settings with an absolute path."""
        return replace(self, dataset=absolute(self.dataset))


@dataclass(frozen=True)
class AugmentArgs:
    """The augmentation of the training clips."""

    augment: str = option(
        "none",
        "none (clips are tokenized once); crop (crops and flips) and rand (RandAugment as well) encode in every step",
    )
    horizontal_flip: bool = option(True, "mirror half of the clips; turn it off if labels depend on left and right")
    smallest_crop: float = option(0.35, "smallest area of a random crop (MAE: 0.08, on images of 224 pixels)")
    rand_operations: int = option(2, "RandAugment: operations per clip")
    rand_magnitude: float = option(9, "RandAugment: strength of the operations, 0 to 10")
    mixup: float = option(0.0, "alpha of mixup, 0 for none (MAE: 0.8)")
    cutmix: float = option(0.0, "alpha of cutmix, 0 for none (MAE: 1.0)")
    label_smoothing: float = option(0.1, "share of the target that is spread over all classes (MAE: 0.1)")

    def __post_init__(self):
        require_choice(self, "augment", ("none", "crop", "rand"))
        crop, magnitude, smoothing = self.smallest_crop, self.rand_magnitude, self.label_smoothing
        require(0 < crop <= 1, f"--smallest_crop is {crop}; it must be above 0 and at most 1.")
        require(0 <= magnitude <= 10, f"--rand_magnitude is {magnitude}; it must be from 0 to 10.")
        require_not_negative(self, "rand_operations", "mixup", "cutmix")
        require(0 <= smoothing < 1, f"--label_smoothing is {smoothing}; it must be at least 0 and below 1.")
        require(
            self.augment != "none" or not (self.mixup or self.cutmix),
            "--mixup and --cutmix blend pixels, but --augment none keeps only ids, which cannot be blended; use "
            "--augment crop.",
        )


@dataclass(frozen=True)
class FinetuneOptimArgs(OptimArgs):
    """The optimiser and its schedule, on which the paper is silent."""

    learning_rate: float = option(5e-4, "peak learning rate of the head (MAE: 5e-4 per 256 rows of a step)")
    warmup_steps: int = option(100, "steps of linear warm-up (MAE: 5 epochs)")
    min_lr_ratio: float = option(0.0, "end of the cosine, as a share of the peak (MAE: 0)")
    adam_beta2: float = option(0.999, "AdamW beta 2 (MAE: 0.999)")
    weight_decay: float = option(0.05, "weight decay of matrices; norms have none (MAE: 0.05)")
    layer_decay: float = option(0.75, "ratio of a block's rate to that of the block above (MAE: 0.65 base, 0.75 large)")
    ema_decay: float | None = option(None, "average the weights with this decay, and evaluate and save the average")

    def __post_init__(self):
        super().__post_init__()
        decay, ema = self.layer_decay, self.ema_decay
        require(0 < decay <= 1, f"--layer_decay is {decay}; it must be above 0 and at most 1 (no decay).")
        require(ema is None or 0 < ema < 1, f"--ema_decay is {ema}; it must be above 0 and below 1.")


@dataclass(frozen=True)
class FinetuneRunArgs(RunArgs):
    """How long a run is, where it is written, and what it logs."""

    max_steps: int = option(1000, "optimiser steps; see also --epochs")
    save_steps: int = option(200, "steps between checkpoints; one is also written at the end")
    seed: int = option(0, "seed of the head, of the order of the clips and of their augmentation")


# Flags of toto pretrain that the recipe.yaml of an older run may hold; they never had an effect here.
RETIRED = {"scale": "full", "liger": False}
OF_CROPS = ("smallest_crop", "horizontal_flip", "no_horizontal_flip")
OF_RAND = ("rand_operations", "rand_magnitude")


def refuse_idle_flags(argv: list[str], data: LabelledArgs, augment: AugmentArgs) -> LabelledArgs:
    """The data settings, without a recipe's epochs if --max_steps was typed.

    Raises:
        ValueError: a typed flag would have no effect next to the others.
    """
    typed = typed_flags(argv)
    if "fps" in typed:
        refuse_idle(argv, ("stride",), "next to --fps")
    if augment.augment == "none":
        refuse_idle(argv, (*OF_CROPS, *OF_RAND), "with --augment none, which makes tokens once")
    if augment.augment == "crop":
        refuse_idle(argv, OF_RAND, "with --augment crop")
    if data.dataset and data.dataset.split(":")[0] == "toyworld":
        refuse_idle(argv, ("stride", "fps", "resize", "image_column", "config_name"), "on toyworld, which is drawn")
    if "epochs" in typed:
        refuse_idle(argv, ("max_steps",), "next to --epochs")
    return replace(data, epochs=None) if "max_steps" in typed else data
