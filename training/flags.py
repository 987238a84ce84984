"""Flags and recipes become dataclasses: parsing, defaults from YAML, checks of values; flags win over a recipe."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, field, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from tokenization.sources.named import near_path, without
from tokenization.storage.remote import is_remote


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

    from tokenization.terminal.command_line import FlagParser

    argv = sys.argv[1:] if argv is None else list(argv)
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--recipe")
    recipe = finder.parse_known_args(argv)[0].recipe
    known = [f.name for kind in types for f in fields(kind)]
    hints = {key: hint for kind in types for key, hint in get_type_hints(kind).items()}
    optional = {key for key in known if type(None) in get_args(hints[key])}
    parser = FlagParser(types, prog, description)
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
    parsed = parser.parse_dataclasses(recipe_flags + argv)
    # toto plan needs nothing of what it names; once torch is there, nothing is gained (commands refuse too)
    if prog != "toto plan" and "torch" not in sys.modules:
        from training.refusals import refuse_names

        values = {f.name: getattr(args, f.name) for args in parsed for f in fields(args)}
        refuse_names(prog, {name: values[name] for name in sorted(typed_flags(argv)) if values.get(name) is not None})
    return parsed


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
    names = [p.stem for p in recipes]
    near = difflib.get_close_matches(name, names, n=1)
    meant = f"did you mean {near[0]}?" if near else near_path(name)
    advice = meant or f"give a YAML file or one of: {', '.join(names)}."
    raise FileNotFoundError(f"There is no recipe '{name}'; {advice}")


def resumed_run(argv: list[str] | None) -> tuple[list[str], Path | None]:
    """(flags, run folder of `--resume`, if any); the flags then start with the folder's own recipe.yaml.

    Of a URL, what the run needs is brought to a local folder, which is returned (`RemoteRun.fetch`).

    Args:
        argv: None takes the command line.
    Raises:
        FileNotFoundError: `--resume` does not name a run folder. OSError: its URL cannot be read and written.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    finder.add_argument("--resume")
    run = finder.parse_known_args(argv)[0].resume
    if is_remote(run):
        from training.remote_run import RemoteRun

        run = str(RemoteRun(run).fetch())
    if run is not None and not (Path(run) / "recipe.yaml").is_file():
        raise FileNotFoundError(f"{run} is not a run folder: {without(run, 'recipe.yaml')}")
    return (argv, None) if run is None else (["--recipe", str(Path(run) / "recipe.yaml"), *argv], Path(run))


def write_recipe(run: Path, *args) -> None:
    """Write the resolved settings to recipe.yaml, which `--resume` reads."""
    import yaml

    from tokenization.files import write_whole

    settings = {key: value for concern in args for key, value in asdict(concern).items()}
    for key in ("recipe", "resume", "output_dir", "profile"):
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


def option(default, help: str, **parsing):
    """A dataclass field that is a flag: its default and its help text. parsing: further options of add_argument."""
    metadata = {"help": help, **parsing}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


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


def absolute(name: str | None) -> str | None:
    """The absolute path, so that a run can be resumed from another folder; names that are not paths are unchanged."""
    kind, _, folder = (name or "").partition(":")
    if kind == "cater" and folder:
        return f"cater:{Path(folder).resolve()}"
    is_path = name is not None and kind != "toyworld" and Path(name).exists()
    return str(Path(name).resolve()) if is_path else name
