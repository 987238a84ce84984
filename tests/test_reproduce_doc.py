"""docs/reproduce.md names every recipe; the verbs, recipes and flags that it shows exist; its hours are the plan's."""

import contextlib
import importlib
import io
import json
import re
import shlex
from functools import lru_cache
from pathlib import Path

import pytest

from evaluation.heads import TOKEN_HEADS
from evaluation.probe.tasks import TASKS
from modeling_toto import TotoConfig
from toto_cli import VERBS
from training.flags import find_recipe, parse
from training.plan import PlanArgs, plan
from training.pretrain import TYPES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reproduce.md").read_text()
RECIPES = sorted((ROOT / "training" / "recipes").rglob("*.yaml"))
COMMANDS = [
    line for block in re.findall(r"^```\n(.*?)^```", PAGE, re.M | re.S) for line in block.splitlines() if line.strip()
]
# Whatever the paper numbers, as far as we know.
NUMBERED = [*(f"Table {n}" for n in range(1, 18)), *(f"Figure {n}" for n in range(1, 19))]


def named(words: str) -> set[str]:
    """Numbers after Table(s) and Figure(s) in a heading: "Figures 13 and 14" -> {"Figure 13", "Figure 14"}."""
    found = re.findall(r"(Table|Figure)s? ((?:\d+)(?:(?:, | and )\d+)*)", words)
    return {f"{kind} {number}" for kind, numbers in found for number in re.findall(r"\d+", numbers)}


def test_every_table_and_figure_has_a_place():
    headings = " ".join(re.findall(r"^### (.*)$", PAGE, re.M))
    assert not set(NUMBERED) - named(headings)


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_every_recipe_is_named(path):
    assert re.search(rf"(`|--recipe ){path.stem}\b", PAGE)


@lru_cache
def known_flags(verb: str, *which: str) -> set[str]:
    """The flags that `toto VERB --help` teaches."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), pytest.raises(SystemExit):
        importlib.import_module(VERBS[verb][0]).main([*which, "--help"])
    return set(re.findall(r"--\w+", told.getvalue()))


@pytest.mark.parametrize("command", COMMANDS, ids=range(len(COMMANDS)))
def test_commands_are_understood(command):
    program, verb, *words = shlex.split(command)
    assert program == "toto" and verb in VERBS
    flags = {word for word in words if word.startswith("--")}
    assert flags <= known_flags(
        verb, *(words[:1] if verb in ("sweep", "prompt", "visualize", "permanence", "robot") else [])
    )
    if "--recipe" in words:
        assert find_recipe(words[words.index("--recipe") + 1]).is_relative_to(ROOT / "training" / "recipes")


def flags_of(command: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for word in shlex.split(command)[2:]:
        if word.startswith("--"):
            values = found.setdefault(word, [])
        else:
            values.append(word)
    return found


PROBES = [
    flags for command in COMMANDS if command.startswith("toto probe") and "--model" in (flags := flags_of(command))
]


def test_heads_on_tokens_attend_to_all_of_them():
    """As in the paper; the default averages neighbours."""
    on_tokens = [flags for flags in PROBES if "--task" in flags and set(flags["--heads"]) & set(TOKEN_HEADS)]
    assert len(on_tokens) == 8
    for flags in on_tokens:
        (model,), (task,) = flags["--model"], flags["--task"]
        frames = TASKS[task].num_frames
        is_small = frames > 1 or model == "runs/ablation_dvae_16"  # 128 px; vision models have fewer than a Toto
        assert flags["--max_tokens"] == [str(frames * (256 if is_small else 1024))]


def test_the_row_of_toto_nano_is_that_of_its_files():
    folder, below, open_ = ROOT / "checkpoints" / "toto-nano", set(), set()
    found = []
    for name, labels in (
        *((name, ("label",)) for name in ("probe_room_actions", "probe_room_actions_recordings", "probe_cifar10")),
        ("probe", ("texture", "motion", "digit")),
    ):
        tasks = json.loads((folder / f"{name}.json").read_text())["tasks"]
        for label in labels:
            best = tasks[label]["best"]
            found.append(f"{best['layer']}: {100 * best['accuracy']:.1f} %")
            verdicts = {floor: lead["verdict"] for floor, lead in best["versus"].items()}
            below |= {(name, floor) for floor, verdict in verdicts.items() if verdict == "below"}
            open_ |= {(name, label) for verdict in verdicts.values() if verdict == "no significant difference"}
    (row,) = re.findall(r"^\| toto-nano \(6 layers\).*$", PAGE, re.M)
    assert "; ".join(found) in row
    assert below == {("probe_cifar10", "random_filters")} and "below random filters: CIFAR-10" in row
    rooms = {(name, "label") for name in ("probe_room_actions", "probe_room_actions_recordings")}
    assert open_ == rooms | {("probe", "texture")} and "from a floor: `room_actions` both ways, texture;" in row


def test_what_features_of_all_tokens_would_take():
    sizes = []
    for preset in ("base", "large", "1b"):
        config = TotoConfig.from_preset(preset)
        sizes.append(2 * 1024 * config.hidden_size * (config.num_hidden_layers + 1) * 1.3e6 / 1e12)
    shown = "features of ImageNet-1k would be {:.0f} (base), {:.0f} (large) and {:.0f} TB (1b)".format(*sizes)
    assert shown in re.sub(r"\s+", " ", PAGE)


def test_commands_are_found():
    assert {shlex.split(command)[1] for command in COMMANDS} >= {"plan", "pretrain", "probe", "finetune", "scaling"}


def test_verbs_that_are_missing_are_missing():
    (listed,) = re.findall(
        r"^- \*\*Not here yet\*\*: (.*?)\s+(?:is\s+not\s+a\s+verb|are\s+not\s+verbs)", PAGE, re.M | re.S
    )
    missing = re.findall(r"`toto (\w+)`", listed)
    assert missing and not set(missing) & set(VERBS)
    used = set(re.findall(r"`toto ([\w-]+)", PAGE))
    assert used <= set(VERBS) | set(missing)


def shown_hours(name: str) -> list[str]:
    """GPU-hours on the lines that name a recipe, or on the next (prose is wrapped)."""
    lines = PAGE.splitlines()
    own = re.compile(rf"`{name}`|^\| {name} \|")
    return [
        hours
        for line, following in zip(lines, [*lines[1:], ""], strict=True)
        if own.search(line)
        for hours in re.findall(r"([\d,.]+) GPU-hours", line if line.startswith("|") else line + following)
    ]


# Those of the paper; toto-nano and what continues it are trained here, on a CPU.
PLANNED = [
    path
    for path in RECIPES
    if path.parent.name == "recipes"
    and "sources:" in path.read_text()
    and not path.stem.startswith(("toto_nano", "toto_robot"))
]


@pytest.mark.parametrize("path", PLANNED, ids=[path.stem for path in PLANNED])
def test_hours_are_those_of_the_plan(path):
    args, *recipe = parse((PlanArgs, *TYPES), ["--recipe", str(path)], "toto plan", "")
    hours = plan(*recipe, args)["gpu_hours"]
    assert (f"{hours:,.0f}" if hours >= 100 else f"{hours:.1f}") in shown_hours(path.stem)
