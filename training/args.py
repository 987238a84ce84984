"""Flags of `toto pretrain`, which other training commands share in part: frozen dataclasses, one per concern."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path

from tokenization.sampling import RESIZE, Sampling
from tokenization.shards.format import found_shards, has_manifest
from training.flags import (
    absolute,
    json_fields,
    option,
    require,
    require_choice,
    require_not_negative,
    require_positive,
)

# Exit code of a run that SIGTERM ended after a checkpoint (sysexits.h: "temporary failure, try again").
PREEMPTED = 75
# That of a run that Ctrl-C ended, as of any other program.
INTERRUPTED = 130


@dataclass(frozen=True)
class OptimArgs:
    """The optimiser and its schedule."""

    learning_rate: float = option(3e-4, "peak learning rate (paper Sec. 3.2: 3e-4; muP, App. A.7: 2^-7 = 0.0078125)")
    warmup_steps: int = option(2000, "steps of linear warm-up (paper: 2000)")
    min_lr_ratio: float = option(0.1, "end of the cosine, as a share of the peak (paper silent)")
    adam_beta1: float = option(0.9, "AdamW beta 1 (paper: 0.9)")
    adam_beta2: float = option(0.95, "AdamW beta 2 (paper: 0.95)")
    weight_decay: float = option(0.1, "weight decay of matrices; norms have none (paper silent; we follow LLaMA)")
    max_grad_norm: float | None = option(1.0, "clip the gradient's norm (paper silent; we follow LLaMA)")

    def __post_init__(self):
        require_positive(self, "learning_rate", "max_grad_norm")
        require_not_negative(self, "warmup_steps")
        require(0 <= self.min_lr_ratio <= 1, f"--min_lr_ratio is {self.min_lr_ratio}; it must be from 0 to 1.")
        for name in ("adam_beta1", "adam_beta2"):
            value = getattr(self, name)
            require(0 <= value < 1, f"--{name} is {value}; it must be at least 0 and below 1.")


OPTIMIZERS = ("adamw", "muon")
MUON_RATE = 0.02


@dataclass(frozen=True)
class PretrainOptimArgs(OptimArgs):
    """The optimiser, its schedule, and the flags that only pre-training has."""

    optimizer: str = option(
        "adamw",
        "adamw (paper), or muon for the matrices of the blocks and adamw for all other weights; without muP or FSDP",
    )
    muon_learning_rate: float | None = option(
        None, f"peak learning rate of Muon, with the warm-up and cosine of the rest (default with muon: {MUON_RATE})"
    )

    def __post_init__(self):
        super().__post_init__()
        require_choice(self, "optimizer", OPTIMIZERS)
        require_positive(self, "muon_learning_rate")
        if self.optimizer == "muon" and self.muon_learning_rate is None:
            object.__setattr__(self, "muon_learning_rate", MUON_RATE)  # so that recipe.yaml has it
        require(
            self.optimizer == "muon" or self.muon_learning_rate is None,
            f"--muon_learning_rate {self.muon_learning_rate} would have no effect with --optimizer {self.optimizer}; "
            "leave it out, or add --optimizer muon.",
        )


ARCHITECTURES = ("llama", "patches", "gpt2", "mamba")


@dataclass(frozen=True)
class ModelArgs:
    """Which model to train."""

    preset: str = option("base", "size: tiny, base, large, 1b, a1..a6 (paper Table 1 and Table 15)")
    config: str = option("{}", "JSON mapping of TotoConfig fields that replace the preset's, or those of --init_from")
    architecture: str = option(
        "llama",
        "llama (Toto), patches (pixels as inputs, paper Table 3), or gpt2 or mamba of the same size (paper Table 6)",
    )
    init_from: str | None = option(None, "start from these weights (folder, run or Hub id) instead of random ones")

    def __post_init__(self):
        require_choice(self, "architecture", ARCHITECTURES)


AT_END = ("repeat", "leave", "stop")


@dataclass(frozen=True)
class Source:
    """A source of a mixture; a mapping in the `sources` of a recipe.

    Fields:
        data: a folder written by `toto tokenize`, or one of its inputs: Hub id, folder, parquet or tar file, toyworld;
            folders and files may be URLs, and a Hub id may name shards.
        weight: probability of this source for every row; the weights of a mixture sum to 1 (paper Sec. 3.3).
        name: name in the log; by default the last part of `data`.
        at_end: at the end of the source, "repeat" starts it again; "leave" gives its share to the others, in
            proportion; "stop" ends the training.
        val_data: validation rows; by default one item in 20 of the source is held out (toyworld has its own split).
        split, val_split, kind, stride, fps, resize, crops, image_column, config_name: for pixels that are tokenized
            while training; see `toto tokenize`. With crops above 1, crops are random and differ in every epoch (paper:
            random crops).
    """

    data: str
    weight: float = 1.0
    name: str = ""
    at_end: str = "repeat"
    val_data: str | None = None
    split: str = "train"
    val_split: str | None = None
    kind: str | None = None
    stride: int = Sampling.stride
    fps: float | None = None
    resize: str = Sampling.resize
    crops: int = 2
    image_column: str | None = None
    config_name: str | None = None

    def __post_init__(self):
        for key, kind in (("data", str), ("name", str), ("split", str), ("stride", int), ("crops", int)):
            value = getattr(self, key)
            require(isinstance(value, kind), f"A source has {key} {value!r}; it must be of type {kind.__name__}.")
        if not self.name:
            object.__setattr__(self, "name", Path(self.data).name)
        has = f"The source {self.data} has"
        is_number = isinstance(self.weight, (int, float)) and not isinstance(self.weight, bool)
        require(is_number and self.weight > 0, f"{has} weight {self.weight!r}; it must be a number above 0.")
        require(self.at_end in AT_END, f"{has} at_end '{self.at_end}'; choose one of {', '.join(AT_END)}.")
        require(self.kind in (None, "video", "image"), f"{has} kind '{self.kind}'; it must be video or image.")
        require(self.resize in RESIZE, f"{has} resize '{self.resize}'; choose one of {', '.join(RESIZE)}.")

    @property
    def is_shards(self) -> bool:
        """Whether it is a folder or URL of token shards, not of pixels."""
        return has_manifest(self.data)

    @property
    def is_toyworld(self) -> bool:
        """Whether it is the embedded world, which is endless and needs no crops."""
        return self.data.split(":")[0] == "toyworld"


@dataclass(frozen=True)
class DataArgs:
    """Which rows to train and validate on."""

    shards: str | None = option(
        None,
        "folder written by `toto tokenize`, a URL of one (s3://, gs://, hf://, https://), or a Hub id; replaces the "
        "sources of a recipe",
    )
    val_shards: str | None = option(None, "validation shards; by default one item in 20 of --shards is held out")
    sources: list[str] = option(
        [],
        'a mixture: JSON mappings such as \'{"data": "shards/ego4d", "weight": 0.1, "at_end": "repeat"}\' (a list in '
        "a recipe); docs/datasets.md lists all keys",
    )
    tokenizer: str | None = option(
        None,
        "visual tokenizer (folder or Hub id) for sources of pixels (default: that of the shards, or the one shipped)",
    )
    tokens_per_step: int = option(1_048_576, "code tokens per optimiser step, on all devices (paper: 1M)")
    per_device_batch_size: int = option(8, "rows at a time on a device; accumulation follows from tokens_per_step")
    val_rows: int = option(256, "validation rows per source")

    def __post_init__(self):
        require_positive(self, "tokens_per_step", "per_device_batch_size")
        require_not_negative(self, "val_rows")
        mixture = self.mixture()
        total = sum(source.weight for source in mixture)
        require(
            not mixture or abs(total - 1) < 1e-6,
            f"The weights of the sources sum to {total:g}; they are probabilities and must sum to 1.",
        )
        names = [source.name for source in mixture]
        twice = next((name for name in names if names.count(name) > 1), None)
        require(twice is None, f"Two sources are called '{twice}'; give each a 'name' of its own.")

    def absolute(self) -> DataArgs:
        """The same settings with absolute paths, and URLs of the shards that are named by a Hub id."""
        named = {name: found_shards(absolute(getattr(self, name))) for name in ("shards", "val_shards")}
        named["tokenizer"] = absolute(self.tokenizer)
        sources = [json.loads(source) for source in self.sources]
        keys = ("data", "val_data")
        paths = [{key: found_shards(absolute(source[key])) for key in keys if key in source} for source in sources]
        return replace(self, **named, sources=[json.dumps(s | p) for s, p in zip(sources, paths, strict=True)])

    def mixture(self) -> list[Source]:
        """The sources; --shards is a single source of weight 1. Empty if there are none."""
        if self.shards is not None:
            return [Source(self.shards, val_data=self.val_shards)]
        known = [f.name for f in fields(Source)]
        example = '{"data": "shards/ego4d", "weight": 1}'
        found = [json_fields(source, "--sources", known, example) for source in self.sources]
        require(all("data" in source for source in found), "A source has no 'data'; give each a folder or a Hub id.")
        return [Source(**source) for source in found]


@dataclass(frozen=True)
class RunArgs:
    """How long a run is, where it is written, and what it logs."""

    recipe: str | None = option(None, "YAML file, or a name in training/recipes, with defaults for these flags")
    output_dir: str | None = option(
        None, "run folder, or a URL (s3://, gs://) for it (default: runs/<recipe>-<time>); must be new or empty"
    )
    resume: str | None = option(None, "continue this run folder, or URL, exactly; needs no other flag")
    max_steps: int = option(1_000_000, "optimiser steps (paper: 1M)")
    max_minutes: float | None = option(
        None,
        "wall-clock budget of the whole run: max_steps is lowered to fit it, judging by the first steps (not exactly "
        "repeatable)",
    )
    save_steps: int = option(500, "steps between checkpoints; one is also written at the end")
    keep_checkpoints: int | None = option(None, "number of checkpoints to keep, the newest ones (default: all)")
    async_checkpoints: bool = option(
        True, "copy the state to host memory and write the checkpoint from there, while the training goes on"
    )
    logging_steps: int = option(10, "steps between log lines and rows of metrics.jsonl")
    eval_steps: int | None = option(None, "steps between validations (default: save_steps)")
    report_to: str | None = option(
        None, "Accelerate's trackers, separated by commas: tensorboard, wandb, trackio, mlflow, ...; or all"
    )
    push_to_hub: bool = option(False, "push the last checkpoint to the Hub, with a card")
    hub_model_id: str | None = option(None, "repository to push to, user/name")
    max_skipped_steps: int = option(10, "successive steps that may be skipped because of a loss that is not finite")
    compile: bool = option(False, "torch.compile every block (needs a C++ compiler on a CPU)")
    gradient_checkpointing: bool = option(False, "recompute the activations of the blocks, to save memory")
    gradient_reduction: str = option(
        "fp32",
        "fp32 or bf16: precision in which the gradients of several processes are summed; bf16 halves the traffic",
    )
    deterministic: bool = option(
        False, "only algorithms that give the same bits in every run, which a GPU has to be asked for; slower there"
    )
    profile: int | None = option(None, "write a torch profiler trace of this many steps to the run folder, then go on")
    seed: int = option(0, "seed of the weights and of the order of the rows")

    def __post_init__(self):
        require_positive(self, "max_steps", "save_steps", "logging_steps")
        require_positive(self, "max_minutes", "keep_checkpoints", "eval_steps", "profile")
        require_choice(self, "gradient_reduction", ("fp32", "bf16"))
        require_not_negative(self, "max_skipped_steps")
        require(not self.push_to_hub or self.hub_model_id, "--push_to_hub needs a repository; add --hub_model_id.")


@dataclass(frozen=True)
class PretrainRunArgs(RunArgs):
    """How long a run is, where it is written, what it logs, and the flags that only pre-training has."""

    compile: bool | None = option(
        None,
        "torch.compile every block (default: on CUDA, for llama and patches without --liger; on a CPU it needs a C++ "
        "compiler). Kernels are kept in TORCHINDUCTOR_CACHE_DIR, by default ~/.cache/toto/inductor",
        nargs="?",  # --compile alone is --compile true
        const=True,
    )
    scale: str = option("full", "full; or tiny, which shrinks any recipe to seconds on a laptop, on toyworld")
    liger: bool = option(False, "Liger's Triton kernels in the blocks (GPU only; pip install 'modeling-toto[liger]')")

    def __post_init__(self):
        super().__post_init__()
        require_choice(self, "scale", ("full", "tiny"))
