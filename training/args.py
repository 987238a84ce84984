"""Flags and recipes of the training commands: frozen dataclasses, one per concern; flags win over a recipe."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from tokenization.sampling import Sampling

# Exit code of a run that SIGTERM ended after a checkpoint (sysexits.h: "temporary failure, try again").
PREEMPTED = 75


def parse(
    types: tuple[type, ...], argv: list[str] | None, prog: str, description: str, retired: dict | None = None
) -> tuple:
    """Fill the dataclasses `types` from `--recipe FILE.yaml` and the flags in `argv`; flags win.

    retired: flags that earlier versions had and wrote into recipe.yaml, with the only value that they could have; they
    are passed over.

    Raises:
        ValueError: a recipe that is not a mapping, a key that no flag has (the nearest valid name is offered), or a
            value of another kind than the flag's.
        FileNotFoundError: no such recipe.
    """
    import yaml
    from transformers.hf_argparser import HfArgumentParser

    argv = sys.argv[1:] if argv is None else list(argv)
    finder = argparse.ArgumentParser(add_help=False)
    finder.add_argument("--recipe")
    recipe = finder.parse_known_args(argv)[0].recipe
    known = [f.name for kind in types for f in fields(kind)]
    hints = {key: hint for kind in types for key, hint in get_type_hints(kind).items()}
    optional = {key for key in known if type(None) in get_args(hints[key])}
    parser = HfArgumentParser(types, prog=prog, description=description)
    recipe_flags: list[str] = []
    if recipe is not None:
        path = find_recipe(recipe)
        try:
            values = yaml.safe_load(path.read_text())
        except yaml.YAMLError as error:
            raise ValueError(f"The recipe {path} is not YAML: {' '.join(str(error).split())}") from error
        if not isinstance(values, dict):
            raise ValueError(f"The recipe {path} must be a mapping of flag names to values.")
        values = {key: value for key, value in values.items() if key not in (retired or {}) or value != retired[key]}
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else f"; the keys are {', '.join(sorted(known))}."
                raise ValueError(f"The recipe {path} has an unknown key '{key}'{hint}")
        # As flags in front of the user's own: checked alike, and the last one wins.
        for key, value in values.items():
            if value is None:
                require(key in optional, f"The recipe {path} sets '{key}' to nothing, and it needs a value.")
                parser.set_defaults(**{key: None})
            elif value == [] and parser.get_default(key) == []:
                continue  # as a run without sources wrote it
            elif isinstance(value, list):
                recipe_flags += [f"--{key}", *map(_flag_value, value)]
            else:
                recipe_flags.append(f"--{key}={_flag_value(value)}")
    *parsed, rest = parser.parse_args_into_dataclasses(
        recipe_flags + argv, return_remaining_strings=True, look_for_args_file=False
    )
    if rest:
        near = difflib.get_close_matches(rest[0].lstrip("-").replace("-", "_"), known, n=1)
        hint = f"; did you mean --{near[0]}?" if near else "; --help lists the flags."
        raise ValueError(f"The flag or value '{rest[0]}' is not understood{hint}")
    return tuple(parsed)


def with_flags(settings: tuple, flags: dict[str, Any]) -> tuple:
    """Parsed settings with some flags changed, as a caller in Python gives them.

    Args:
        flags: name -> value, of the type of the dataclass's field; a path becomes text, a mapping JSON; None is off.
    Raises:
        ValueError: a name that no flag has (the nearest valid one is offered).
    """
    known = [f.name for concern in settings for f in fields(concern)]
    for name in flags:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the flags are {', '.join(sorted(known))}."
        require(name in known, f"There is no flag {name}; {hint}")

    def as_field(value):
        if isinstance(value, (list, tuple)):
            return [as_field(each) for each in value]
        return _flag_value(value) if isinstance(value, (dict, Path)) else value

    values = {name: as_field(value) for name, value in flags.items()}
    mine = [{f.name: values[f.name] for f in fields(concern) if f.name in values} for concern in settings]
    return tuple(replace(concern, **changes) for concern, changes in zip(settings, mine, strict=True))


def typed_flags(argv: list[str]) -> set[str]:
    """Names of the flags in `argv`, as fields of the dataclasses: "--max-train=3" is "max_train"."""
    return {flag[2:].split("=")[0].replace("-", "_") for flag in argv if flag.startswith("--")}


def idle(argv: list[str], *names: str) -> str:
    """Those of `names` that were typed, as in "--stride, --fps", to say that they have no effect; empty for none."""
    typed = typed_flags(argv)
    return ", ".join(f"--{name}" for name in names if name in typed)


def refuse_idle(argv: list[str], names: tuple[str, ...], where: str) -> None:
    """Raises ValueError where one of the flags `names` was typed, which has no effect `where`, as in "on images"."""
    found = idle(argv, *names)
    require(not found, f"{found} would have no effect {where}; leave it out.")


def _flag_value(value) -> str:
    return json.dumps(value) if isinstance(value, dict) else str(value)


def find_recipe(name: str) -> Path:
    """A recipe file by path, or by its bare name among training/recipes and its folders ("tiny_cpu")."""
    folder = Path(__file__).parent / "recipes"
    recipes = sorted(folder.rglob("*.yaml"))
    for path in (Path(name), folder / name, *(p for p in recipes if name in (p.stem, p.name)), Path(f"{name}.yaml")):
        if path.is_file():
            return path
    shipped = ", ".join(p.stem for p in recipes)
    raise FileNotFoundError(f"There is no recipe '{name}'; give a YAML file or one of: {shipped}.")


def resumed_run(argv: list[str] | None) -> tuple[list[str], Path | None]:
    """(flags, the run folder that `--resume` names): its own recipe.yaml then gives every default.

    Args:
        argv: None is the command line.
    Raises:
        FileNotFoundError: it is not a run folder.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    finder = argparse.ArgumentParser(add_help=False)
    finder.add_argument("--resume")
    run = finder.parse_known_args(argv)[0].resume
    if run is not None and not (Path(run) / "recipe.yaml").is_file():
        raise FileNotFoundError(f"{run} is not a run folder: it holds no recipe.yaml.")
    return (argv, None) if run is None else (["--recipe", str(Path(run) / "recipe.yaml"), *argv], Path(run))


def write_recipe(run: Path, *args) -> None:
    """The resolved settings as recipe.yaml: what `--resume` reads, and what a reader of the run needs."""
    import yaml

    from tokenization.files import write_whole

    settings = {key: value for concern in args for key, value in asdict(concern).items()}
    for key in ("recipe", "resume", "output_dir"):
        settings.pop(key, None)
    if settings.get("sources"):
        settings["sources"] = [json.loads(source) for source in settings["sources"]]
    text = yaml.safe_dump(settings, sort_keys=False)
    write_whole(run / "recipe.yaml", lambda path: path.write_text(text))


def read_recipe(run: Path) -> dict:
    """The settings of a run's recipe.yaml, sources as they are in `DataArgs`."""
    import yaml

    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    if recipe.get("sources"):
        recipe["sources"] = [json.dumps(source) for source in recipe["sources"]]
    return recipe


def json_fields(text: str, flag: str, known: list[str], example: str = '{"hidden_size": 512}') -> dict:
    """The JSON mapping that `flag` was given, every key of which must be `known` (transformers would take any).

    Raises:
        ValueError: no JSON, no mapping, or an unknown key (the nearest valid one is offered).
    """
    try:
        settings = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{flag} must be a JSON mapping such as '{example}': {error}.") from error
    require(isinstance(settings, dict), f"{flag} must be a JSON mapping, not {text}.")
    for key in settings:
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"it has {', '.join(known)}."
        require(key in known, f"{flag} has the unknown key '{key}'; {hint}")
    return settings


def config_fields(text: str) -> dict:
    """The TotoConfig fields of `--config`.

    Raises:
        ValueError: no JSON mapping, or a field that no Toto has.
    """
    from modeling_toto import TotoConfig

    return json_fields(text, "--config", ["hidden_size", *TotoConfig.__dataclass_fields__, "rope_theta"])


def option(default, help: str):
    """A dataclass field that is a flag: its default and its help text."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


def require(condition: bool, sentence: str) -> None:
    """Refuse nonsense in a flag with the sentence that says what to do."""
    if not condition:
        raise ValueError(sentence)


@dataclass(frozen=True)
class OptimArgs:
    """The optimiser and its schedule."""

    learning_rate: float = option(3e-4, "peak learning rate (paper Sec. 3.2: 3e-4; muP, App. A.7: 2^-7 = 0.0078125)")
    warmup_steps: int = option(2000, "steps of linear warm-up (paper: 2000)")
    min_lr_ratio: float = option(0.1, "end of the cosine, as a share of the peak (paper silent)")
    adam_beta1: float = option(0.9, "AdamW beta 1 (paper: 0.9)")
    adam_beta2: float = option(0.95, "AdamW beta 2 (paper: 0.95)")
    weight_decay: float = option(0.1, "on matrices, not on norms (paper silent; we follow LLaMA)")
    max_grad_norm: float | None = option(1.0, "clip the gradient's norm (paper silent; we follow LLaMA)")

    def __post_init__(self):
        require(self.learning_rate > 0, "--learning_rate must be above 0.")
        require(self.warmup_steps >= 0, "--warmup_steps must be 0 or more.")
        require(0 <= self.min_lr_ratio <= 1, "--min_lr_ratio must lie between 0 and 1.")
        for name in ("adam_beta1", "adam_beta2"):
            require(0 <= getattr(self, name) < 1, f"--{name} must be 0 or more, and below 1.")
        require(self.max_grad_norm is None or self.max_grad_norm > 0, "--max_grad_norm must be above 0, or left out.")


def absolute(name: str | None) -> str | None:
    """A path that exists made absolute, so that a run can be resumed from another folder; other names as they are."""
    is_path = name is not None and name.split(":")[0] != "toyworld" and Path(name).exists()
    return str(Path(name).resolve()) if is_path else name


ARCHITECTURES = ("llama", "patches", "gpt2", "mamba")


@dataclass(frozen=True)
class ModelArgs:
    """Which model to train."""

    preset: str = option("base", "size: tiny, base, large, 1b, a1..a6 (paper Table 1 and Table 15)")
    config: str = option("{}", "JSON mapping of TotoConfig fields that replace the preset's, or those of --init_from")
    architecture: str = option(
        "llama",
        "llama (Toto), patches (paper Table 3: pixels in), or of the same size gpt2 or mamba (paper Table 6)",
    )
    init_from: str | None = option(None, "start from these weights (folder, run or Hub id) instead of fresh ones")

    def __post_init__(self):
        require(
            self.architecture in ARCHITECTURES,
            f"--architecture must be one of {', '.join(ARCHITECTURES)}, not '{self.architecture}'.",
        )


AT_END = ("repeat", "leave", "stop")


@dataclass(frozen=True)
class Source:
    """One source of a mixture, as a mapping in `sources` of a recipe.

    Fields:
        data: a folder of `toto tokenize`, or what that takes: Hub id, folder, .parquet or .tar file, toyworld.
        weight: its probability for every row; those of a mixture sum to 1 (paper Sec. 3.3).
        name: what the log calls it; by default the last part of `data`.
        at_end: "repeat" it from its beginning, on its own; "leave" its share to the others, in proportion; "stop" the
            training.
        val_data: validation rows; by default one item in 20 of the source is held out (of toyworld: its own split).
        split, val_split, kind, stride, fps, crops, image_column: of pixels that are tokenized while training; see
            `toto tokenize`. crops above 1 are random and new in every epoch (paper: random crops).
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
    crops: int = 2
    image_column: str | None = None

    def __post_init__(self):
        for key, kind in (("data", str), ("name", str), ("split", str), ("stride", int), ("crops", int)):
            value = getattr(self, key)
            require(isinstance(value, kind), f"A source has {key} {value!r}, which must be of type {kind.__name__}.")
        if not self.name:
            object.__setattr__(self, "name", Path(self.data).name)
        told = f"The source {self.data} has"
        is_number = isinstance(self.weight, (int, float)) and not isinstance(self.weight, bool)
        require(is_number and self.weight > 0, f"{told} weight {self.weight!r}, which is no number above 0.")
        require(self.at_end in AT_END, f"{told} at_end '{self.at_end}'; choose one of {', '.join(AT_END)}.")
        require(self.kind in (None, "video", "image"), f"{told} kind '{self.kind}', not video or image.")

    @property
    def is_shards(self) -> bool:
        """Whether it is a folder of `toto tokenize`, and not pixels."""
        return (Path(self.data) / "manifest.json").is_file()

    @property
    def is_toyworld(self) -> bool:
        """Whether it is the embedded world, which has no end and needs no crops."""
        return self.data.split(":")[0] == "toyworld"


@dataclass(frozen=True)
class DataArgs:
    """Which rows to train and validate on."""

    shards: str | None = option(None, "folder written by `toto tokenize`; takes the place of a recipe's sources")
    val_shards: str | None = option(
        None, "validation shards; by default one source in 20 of --shards is held out of training"
    )
    sources: list[str] = option(
        [],
        'a mixture: JSON mappings such as \'{"data": "shards/ego4d", "weight": 0.1, "at_end": "repeat"}\' (in a '
        "recipe a list); docs/datasets.md has all keys",
    )
    tokenizer: str | None = option(
        None, "visual tokenizer (folder or Hub id) of sources that are pixels; default: the one of the shards, or ours"
    )
    tokens_per_step: int = option(1_048_576, "code tokens of one optimiser step, all devices (paper: 1M)")
    per_device_batch_size: int = option(8, "rows at a time on one device; accumulation follows from tokens_per_step")
    val_rows: int = option(256, "validation rows of every source")

    def __post_init__(self):
        require(self.tokens_per_step > 0, "--tokens_per_step must be above 0.")
        require(self.per_device_batch_size > 0, "--per_device_batch_size must be above 0.")
        require(self.val_rows >= 0, "--val_rows must be 0 or more.")
        mixture = self.mixture()
        total = sum(source.weight for source in mixture)
        require(
            not mixture or abs(total - 1) < 1e-6,
            f"The weights of the sources are probabilities and must sum to 1; these sum to {total:g}.",
        )
        names = [source.name for source in mixture]
        twice = next((name for name in names if names.count(name) > 1), None)
        require(twice is None, f"Two sources are called '{twice}'; give each a 'name' of its own.")

    def absolute(self) -> DataArgs:
        """With absolute paths."""
        named = {name: absolute(getattr(self, name)) for name in ("shards", "val_shards", "tokenizer")}
        sources = [json.loads(source) for source in self.sources]
        paths = [{key: absolute(source[key]) for key in ("data", "val_data") if key in source} for source in sources]
        return replace(self, **named, sources=[json.dumps(s | p) for s, p in zip(sources, paths, strict=True)])

    def mixture(self) -> list[Source]:
        """The sources, --shards being one of weight 1. Empty where none was named."""
        if self.shards is not None:
            return [Source(self.shards, val_data=self.val_shards)]
        known = [f.name for f in fields(Source)]
        example = '{"data": "shards/ego4d", "weight": 1}'
        found = [json_fields(source, "--sources", known, example) for source in self.sources]
        require(all("data" in source for source in found), "Every one of --sources needs 'data': a folder or a Hub id.")
        return [Source(**source) for source in found]


@dataclass(frozen=True)
class RunArgs:
    """How long a run is, where it is written, and what it logs."""

    recipe: str | None = option(None, "YAML file, or a name in training/recipes, with defaults for all these flags")
    output_dir: str | None = option(None, "run folder (default: runs/<recipe>-<time>); must be new or empty")
    resume: str | None = option(None, "continue this run folder exactly; needs no other flag")
    max_steps: int = option(1_000_000, "optimiser steps (paper: 1M)")
    max_minutes: float | None = option(
        None, "wall-clock budget: max_steps is lowered to what the first steps say fits (not exactly repeatable)"
    )
    save_steps: int = option(500, "steps between checkpoints; one is also written at the end")
    keep_checkpoints: int | None = option(None, "keep only so many checkpoints (default: all)")
    logging_steps: int = option(10, "steps between log lines and rows of metrics.jsonl")
    eval_steps: int | None = option(None, "steps between validations (default: save_steps)")
    report_to: str | None = option(None, "an Accelerate tracker: tensorboard, wandb, ... or all")
    push_to_hub: bool = option(False, "push the last checkpoint, with its card")
    hub_model_id: str | None = option(None, "repository to push to, user/name")
    max_skipped_steps: int = option(10, "steps in a row whose loss or gradient may be infinite; they change no weight")
    compile: bool = option(False, "torch.compile every block (needs a C++ compiler on a CPU)")
    gradient_checkpointing: bool = option(False, "trade compute for memory in the blocks")
    seed: int = option(0, "of the weights and of the order of the shards")

    def __post_init__(self):
        for name in ("max_steps", "save_steps", "logging_steps"):
            require(getattr(self, name) > 0, f"--{name} must be above 0.")
        for name in ("max_minutes", "keep_checkpoints", "eval_steps"):
            value = getattr(self, name)
            require(value is None or value > 0, f"--{name} must be above 0, or left out.")
        require(self.max_skipped_steps >= 0, "--max_skipped_steps must be 0 or more.")
        require(not self.push_to_hub or self.hub_model_id, "--push_to_hub needs --hub_model_id user/name.")


@dataclass(frozen=True)
class PretrainRunArgs(RunArgs):
    """How long a run is, where it is written, what it logs, and what only pre-training has."""

    scale: str = option("full", "full, or tiny: the recipe at a size that runs on a laptop in seconds, on toyworld")
    liger: bool = option(False, "Liger's Triton kernels in the blocks (GPU only; pip install 'modeling-toto[liger]')")

    def __post_init__(self):
        super().__post_init__()
        require(self.scale in ("full", "tiny"), f"--scale must be full or tiny, not '{self.scale}'.")
