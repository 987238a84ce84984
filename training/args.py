"""Flags and recipes of the training commands: frozen dataclasses, one per concern; flags win over a recipe."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Iterable
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

    Args:
        retired: flags of earlier versions that a recipe.yaml may hold, with the only value that they could have; they
            are ignored.
    Raises:
        ValueError: the recipe is not a mapping, or has an unknown key (the nearest valid one is suggested) or a value
            of the wrong type.
        FileNotFoundError: there is no such recipe.
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
        # Passed as flags before the user's own: they are checked in the same way, and the last one wins.
        for key, value in values.items():
            if value is None:
                require(key in optional, f"The recipe {path} leaves '{key}' empty; give it a value.")
                parser.set_defaults(**{key: None})
            elif value == [] and parser.get_default(key) == []:
                continue  # written by a run without sources
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
        raise ValueError(f"The flag or value '{rest[0]}' is unknown{hint}")
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
    """Names of the flags in `argv` as fields of the dataclasses: "--max-train=3" gives "max_train"."""
    return {flag[2:].split("=")[0].replace("-", "_") for flag in argv if flag.startswith("--")}


def idle(argv: list[str], *names: str) -> str:
    """Those of `names` that were typed, such as "--stride, --fps", for the message that they have no effect."""
    typed = typed_flags(argv)
    return ", ".join(f"--{name}" for name in names if name in typed)


def refuse_idle(argv: list[str], names: tuple[str, ...], where: str) -> None:
    """Raises ValueError if one of the flags `names` was typed, which has no effect `where`, such as "on images"."""
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
    """(flags, run folder of `--resume`, if any); the flags then start with the folder's own recipe.yaml.

    Args:
        argv: None takes the command line.
    Raises:
        FileNotFoundError: `--resume` does not name a run folder.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    finder = argparse.ArgumentParser(add_help=False)
    finder.add_argument("--resume")
    run = finder.parse_known_args(argv)[0].resume
    if run is not None and not (Path(run) / "recipe.yaml").is_file():
        raise FileNotFoundError(f"{run} is not a run folder: it holds no recipe.yaml.")
    return (argv, None) if run is None else (["--recipe", str(Path(run) / "recipe.yaml"), *argv], Path(run))


def write_recipe(run: Path, *args) -> None:
    """Write the resolved settings to recipe.yaml, which `--resume` reads."""
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
    """The settings in a run's recipe.yaml, with sources in the form of `DataArgs`."""
    import yaml

    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    if recipe.get("sources"):
        recipe["sources"] = [json.dumps(source) for source in recipe["sources"]]
    return recipe


def json_fields(text: str, flag: str, known: list[str], example: str = '{"hidden_size": 512}') -> dict:
    """The JSON mapping that `flag` was given; unknown keys are refused, unlike in transformers' configs.

    Raises:
        ValueError: not JSON, not a mapping, or an unknown key (the nearest valid one is suggested).
    """
    try:
        settings = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{flag} must be a JSON mapping such as '{example}'; it is not JSON ({error}).") from error
    require(isinstance(settings, dict), f"{flag} is {text}; it must be a JSON mapping.")
    for key in settings:
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"the keys are {', '.join(known)}."
        require(key in known, f"{flag} has the unknown key '{key}'; {hint}")
    return settings


def config_fields(text: str) -> dict:
    """The TotoConfig fields of `--config`.

    Raises:
        ValueError: not a JSON mapping, or a field that TotoConfig does not have.
    """
    from modeling_toto import TotoConfig

    return json_fields(text, "--config", ["hidden_size", *TotoConfig.__dataclass_fields__, "rope_theta"])


def option(default, help: str):
    """A dataclass field that is a flag: its default and its help text."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": help})
    return field(default=default, metadata={"help": help})


def require(condition: bool, sentence: str) -> None:
    """Raises ValueError with this sentence unless the condition holds."""
    if not condition:
        raise ValueError(sentence)


def require_positive(args, *names: str) -> None:
    """Raises ValueError unless each of these fields of `args` is above 0, or None."""
    for name in names:
        value = getattr(args, name)
        require(value is None or value > 0, f"--{name} is {value}; it must be above 0.")


def require_not_negative(args, *names: str) -> None:
    """Raises ValueError unless each of these fields of `args` is at least 0, or None."""
    for name in names:
        value = getattr(args, name)
        require(value is None or value >= 0, f"--{name} is {value}; it must be at least 0.")


def require_choice(args, name: str, choices: Iterable[str]) -> None:
    """Raises ValueError unless this field of `args` is one of the choices, or None."""
    value = getattr(args, name)
    require(value is None or value in choices, f"--{name} is '{value}'; it must be one of {', '.join(choices)}.")


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


def absolute(name: str | None) -> str | None:
    """The absolute path, so that a run can be resumed from another folder; names that are not paths are unchanged."""
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
        data: a folder written by `toto tokenize`, or one of its inputs: Hub id, folder, parquet or tar file, toyworld.
        weight: probability of this source for every row; the weights of a mixture sum to 1 (paper Sec. 3.3).
        name: name in the log; by default the last part of `data`.
        at_end: at the end of the source, "repeat" starts it again; "leave" gives its share to the others, in
            proportion; "stop" ends the training.
        val_data: validation rows; by default one item in 20 of the source is held out (toyworld has its own split).
        split, val_split, kind, stride, fps, crops, image_column: for pixels that are tokenized while training; see
            `toto tokenize`. With crops above 1, crops are random and differ in every epoch (paper: random crops).
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
            require(isinstance(value, kind), f"A source has {key} {value!r}; it must be of type {kind.__name__}.")
        if not self.name:
            object.__setattr__(self, "name", Path(self.data).name)
        has = f"The source {self.data} has"
        is_number = isinstance(self.weight, (int, float)) and not isinstance(self.weight, bool)
        require(is_number and self.weight > 0, f"{has} weight {self.weight!r}; it must be a number above 0.")
        require(self.at_end in AT_END, f"{has} at_end '{self.at_end}'; choose one of {', '.join(AT_END)}.")
        require(self.kind in (None, "video", "image"), f"{has} kind '{self.kind}'; it must be video or image.")

    @property
    def is_shards(self) -> bool:
        """Whether it is a folder of token shards, not of pixels."""
        return (Path(self.data) / "manifest.json").is_file()

    @property
    def is_toyworld(self) -> bool:
        """Whether it is the embedded world, which is endless and needs no crops."""
        return self.data.split(":")[0] == "toyworld"


@dataclass(frozen=True)
class DataArgs:
    """Which rows to train and validate on."""

    shards: str | None = option(None, "folder written by `toto tokenize`; replaces the sources of a recipe")
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
        """The same settings with absolute paths."""
        named = {name: absolute(getattr(self, name)) for name in ("shards", "val_shards", "tokenizer")}
        sources = [json.loads(source) for source in self.sources]
        paths = [{key: absolute(source[key]) for key in ("data", "val_data") if key in source} for source in sources]
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
    output_dir: str | None = option(None, "run folder (default: runs/<recipe>-<time>); must be new or empty")
    resume: str | None = option(None, "continue this run folder exactly; needs no other flag")
    max_steps: int = option(1_000_000, "optimiser steps (paper: 1M)")
    max_minutes: float | None = option(
        None, "wall-clock budget: max_steps is lowered to fit it, judging by the first steps (not exactly repeatable)"
    )
    save_steps: int = option(500, "steps between checkpoints; one is also written at the end")
    keep_checkpoints: int | None = option(None, "number of checkpoints to keep, the newest ones (default: all)")
    logging_steps: int = option(10, "steps between log lines and rows of metrics.jsonl")
    eval_steps: int | None = option(None, "steps between validations (default: save_steps)")
    report_to: str | None = option(None, "an Accelerate tracker: tensorboard, wandb, ... or all")
    push_to_hub: bool = option(False, "push the last checkpoint to the Hub, with a card")
    hub_model_id: str | None = option(None, "repository to push to, user/name")
    max_skipped_steps: int = option(10, "successive steps that may be skipped because of a loss that is not finite")
    compile: bool = option(False, "torch.compile every block (needs a C++ compiler on a CPU)")
    gradient_checkpointing: bool = option(False, "recompute the activations of the blocks, to save memory")
    seed: int = option(0, "seed of the weights and of the order of the rows")

    def __post_init__(self):
        require_positive(self, "max_steps", "save_steps", "logging_steps")
        require_positive(self, "max_minutes", "keep_checkpoints", "eval_steps")
        require_not_negative(self, "max_skipped_steps")
        require(not self.push_to_hub or self.hub_model_id, "--push_to_hub needs a repository; add --hub_model_id.")


@dataclass(frozen=True)
class PretrainRunArgs(RunArgs):
    """How long a run is, where it is written, what it logs, and the flags that only pre-training has."""

    scale: str = option("full", "full; or tiny, which shrinks any recipe to seconds on a laptop, on toyworld")
    liger: bool = option(False, "Liger's Triton kernels in the blocks (GPU only; pip install 'modeling-toto[liger]')")

    def __post_init__(self):
        super().__post_init__()
        require_choice(self, "scale", ("full", "tiny"))
