"""The parser of every command's flags: help with the flags that matter first, whole names only, refusals of a line."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import get_type_hints

from transformers.hf_argparser import HfArgumentParser

# Command -> the flags that a first use needs, which head its help; the rest follows in groups.
FIRST = {
    "toto demo": ("output", "train_minutes", "train_clips", "seed"),
    "toto tokenize": ("dataset", "output", "tokenizer", "fps", "max_clips"),
    "toto train-tokenizer": ("dataset", "recipe", "output_dir", "max_steps", "resume"),
    "toto convert-tokenizer": ("source", "checkpoint", "encoder", "mirror", "output"),
    "toto evaluate-tokenizer": ("dataset", "tokenizer", "split", "max_frames", "output"),
    "toto pretrain": ("shards", "recipe", "output_dir", "max_steps", "resume"),
    "toto sweep coordinates": ("preset", "widths", "steps", "output"),
    "toto sweep mup": ("shards", "recipe", "widths", "max_steps", "output"),
    "toto scaling": ("shards", "recipe", "sizes", "budgets", "output"),
    "toto plan": ("recipe", "gpus", "gpu", "measured", "all"),
    "toto finetune": ("model", "dataset", "label_column", "output_dir", "resume"),
    "toto prompt train": ("model", "task", "data", "output_dir", "resume"),
    "toto prompt run": ("model", "task", "inputs", "examples", "output"),
    "toto prompt rotation": ("model", "output"),
    "toto prompt score": ("model", "task", "output"),
    "toto probe": ("model", "dataset", "label_column", "layers", "output"),
    "toto track": ("model", "dataset", "layers", "setting", "output"),
    "toto permanence attention": ("model", "dataset", "num_occlusions", "video", "output"),
    "toto permanence cups": ("model", "output"),
    "toto robot collect": ("task", "episodes", "output"),
    "toto robot train": ("episodes", "model", "layer", "output"),
    "toto robot evaluate": ("policy", "episodes", "output"),
    "toto robot policy": ("policy",),
    "toto robot arms": ("task", "episodes", "model", "output"),
    "toto generate": ("model", "video", "num_frames", "temperature", "output"),
    "toto generate --score": ("model", "dataset", "max_clips", "output"),
    "toto generate --compare": ("compare", "output"),
    "toto ngrams": ("dataset", "shards", "tokenizer", "n", "output"),
    "toto visualize pca": ("model", "dataset", "layers", "output"),
    "toto visualize attention": ("model", "input", "frame", "point", "output"),
    "toto visualize surprise": ("model", "input", "output"),
    "toto visualize tokens": ("model", "input", "output"),
    "toto visualize arrow": ("model", "dataset", "max_clips", "output"),
    "toto report": ("results", "runs", "generations", "output"),
    "toto export": ("model", "output", "to", "dtype"),
    "toto app": ("model", "photos", "host", "port"),
}

# Groups of the flags of a command with a single dataclass, whose names mean the same everywhere.
GROUPS = {
    "which media": (
        *("task", "dataset", "split", "train_split", "validation_split", "test_split", "image_column", "label_column"),
        *("config_name", "kind", "max_clips", "max_train", "max_eval", "group_by", "leave_one_group_out"),
    ),
    "which frames, and at which size": (
        *("num_frames", "stride", "fps", "resize", "crops", "resolution", "detail", "frame_order", "views"),
        *("average_clips", "num_prompt_frames"),
    ),
    "what is trained on features": ("heads", "layers", "baselines", "floors", "epochs", "batch_norm", "max_tokens"),
    "how the work is done": (
        *("batch_size", "batch_frames", "per_device_batch_size", "precision", "decode_threads", "items_per_part"),
        *("rows_per_shard", "workers", "device", "feature_cache", "seed", "split_seed"),
    ),
}


def parse_flags(kind: type, argv: list[str] | None, prog: str, description: str):
    """The dataclass `kind`, filled from the flags in `argv` (None: the command line).

    Raises:
        ValueError: an unknown or abbreviated flag (the nearest whole name is offered), or a value that is none.
    """
    (args,) = FlagParser((kind,), prog, description).parse_dataclasses(sys.argv[1:] if argv is None else list(argv))
    return args


class FlagParser(HfArgumentParser):
    """HfArgumentParser for our commands, which refuse with a sentence (ValueError) instead of the usage and an exit.

    A flag is typed in full, with underscores or hyphens: what an abbreviation stands for would change with the next
    flag that is added.
    """

    def __init__(self, types: Iterable[type], prog: str, description: str):
        self._titled: dict[str, argparse._ArgumentGroup] = {}
        self._first = FIRST.get(prog, ())
        super().__init__(
            types,
            prog=prog,
            description=description,
            usage=f"{prog} [flags]",
            formatter_class=_Help,
            allow_abbrev=False,
            exit_on_error=False,
            add_help=False,
        )
        more = self._group("more")
        more.add_argument("-h", "--help", action="help", help="print this and exit")

    def _group(self, title: str):
        if title not in self._titled:
            self._titled[title] = self.add_argument_group(title)
        return self._titled[title]

    def _add_dataclass_arguments(self, dtype: type) -> None:
        hints, own = get_type_hints(dtype), {field.name: field for field in fields(dtype)}
        for name in self._first:
            if name in own:
                self._add_field("first", own[name], hints)
        for name, field in own.items():
            if name not in self._first:
                self._add_field(_title(dtype, name), field, hints)

    def _add_field(self, title: str, field, hints: dict) -> None:
        field.type = hints[field.name]
        self._parse_dataclass_field(self._group(title), field)

    def format_help(self) -> str:
        """The help, with the groups in the order of `FIRST` and of the dataclasses."""
        order = {name: rank for rank, name in enumerate(self._first)}
        first = self._titled.get("first")
        if first is not None:
            first._group_actions.sort(key=lambda action: order[action.dest])
            first.title = "the flags to begin with"
        self._action_groups.sort(key=lambda group: (group is not first) + 2 * (group.title == "more"))
        return super().format_help()

    def parse_dataclasses(self, argv: list[str]) -> tuple:
        """The dataclasses. Raises ValueError as `parse_flags`."""
        if {"-h", "--help"} & set(argv):  # even behind a flag without its value
            self.print_help()
            raise SystemExit(0)
        flags = [each for each in argv if each.startswith("--") and each != "--"]
        for unknown in [each for each in flags if each.partition("=")[0] not in self._option_string_actions][:1]:
            raise ValueError(f"The flag '{unknown}' is unknown; {self.nearest(unknown)}")
        try:
            _, rest = self.parse_known_args(argv)
            if rest:  # before the dataclasses say what they miss
                raise ValueError(f"The flag or value '{rest[0]}' is unknown; {self.nearest(rest[0])}")
            return self.parse_args_into_dataclasses(argv, look_for_args_file=False)
        except argparse.ArgumentError as error:
            if error.argument_name is None:  # since Python 3.12, of a required flag
                self.error(str(error.message))
            raise ValueError(_sentence(error)) from error

    def nearest(self, typed: str) -> str:
        """The end of the sentence that refuses a flag or a value: what may have been meant."""
        if not typed.startswith("-") and self._first:  # values follow flags
            return f"did you mean --{self._first[0]} {typed}?"
        name = typed.lstrip("-").partition("=")[0].replace("-", "_")
        known = sorted(
            option[2:] for option in self._option_string_actions if option.startswith("--") and "-" not in option[2:]
        )
        near = [flag for flag in known if name and flag.startswith(name)][:3]
        near = near or difflib.get_close_matches(name, known, n=1)
        return f"did you mean {' or '.join(f'--{flag}' for flag in near)}?" if near else "--help lists the flags."

    def error(self, message: str):
        """Refuse a command line, such as one without a required flag."""
        missing = message.removeprefix("the following arguments are required: ")
        if missing == message:
            raise ValueError(f"{_once(message)}.")
        raise ValueError(f"{_once(missing)} must be given; --help explains the flags.")


def _title(dtype: type, name: str) -> str:
    """The title of the group of a flag: the docstring of the dataclass that has it, or of the one it inherits from."""
    owners = [
        kind for kind in reversed(dtype.__mro__) if is_dataclass(kind) and name in vars(kind).get("__annotations__", {})
    ]
    written = (owners[0].__doc__ or "").strip().splitlines()
    by_name = next((title for title, names in GROUPS.items() if name in names), "more")
    if not written or written[0].startswith((f"{owners[0].__name__}(", "Flags of", "The flags")):  # none of its own
        return by_name
    title = written[0].rstrip(".").lower()
    return title if len(title) < 60 else title.partition(",")[0]


def _once(names: str) -> str:
    """Flags as argparse lists them ("--max_train/--max-train"), each by one name."""
    return re.sub(r"(--\w+)/--[\w-]+", r"\1", names)


def _sentence(error: argparse.ArgumentError) -> str:
    """What is wrong with the value of a flag, in a sentence."""
    flag, told = _once(error.argument_name or "A value"), str(error.message)
    if told.startswith("expected"):
        return f"{flag} has no value; give it one."
    if wrong := re.match(r"invalid (int|float|str|string_to_bool) value: (.*)", told):
        must = {"int": "a whole number", "float": "a number"}.get(wrong[1], "true or false")
        return f"{flag} is {wrong[2]}; it must be {must}."
    if wrong := re.match(r"Truthy value expected: got (.*?) but expected", told):
        return f"{flag} is '{wrong[1]}'; it must be true or false."
    return f"{flag}: {told}."


class _Help(argparse.HelpFormatter):
    """Each flag once, with underscores; defaults where there are any."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=28)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        name = next((option for option in action.option_strings if option.startswith("--")), action.dest)
        if action.nargs == 0 or action.const is True:  # such as --compile
            return ", ".join([*(o for o in action.option_strings if not o.startswith("--")), name])
        value = {int: "N", float: "X"}.get(action.type, action.dest.rpartition("_")[2].upper())
        aliases = [
            o for o in action.option_strings if o.startswith("--") and o.replace("-", "_") != name.replace("-", "_")
        ]
        return f"{', '.join([name, *aliases])} {value}" + (" ..." if action.nargs == "+" else "")

    def _get_help_string(self, action: argparse.Action) -> str:
        text, value = (action.help or "").replace("%", "%%"), action.default
        if action.required:
            return f"{text} (required)"
        if value is None or value is False or value in ([], "{}", argparse.SUPPRESS) or action.nargs == 0:
            return text
        if "default" in text.lower():  # it says so itself
            return text
        shown = " ".join(map(str, value)) if isinstance(value, list) else value
        return f"{text} (default: {str(shown).replace('%', '%%')})"
