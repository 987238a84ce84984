"""The help of every command begins with the flags that matter and has each flag once; flags are typed in full."""

import contextlib
import importlib
import io
import re

import pytest

import toto_cli
from evaluation.permanence.command import QUESTIONS
from evaluation.prompt.command import ACTIONS as PROMPTS
from evaluation.robot.command import ACTIONS as ROBOTS
from evaluation.visualize.command import PICTURES
from tokenization.terminal.command_line import FIRST
from training.sweep.command import SWEEPS

MORE = {"sweep": SWEEPS, "prompt": PROMPTS, "permanence": QUESTIONS, "robot": ROBOTS, "visualize": PICTURES}
MORE |= {"generate": ("", "--score", "--compare")}
COMMANDS = [[verb, *sub.split()] for verb in toto_cli.VERBS for sub in MORE.get(verb, ("",))]


def call(words: list[str]) -> None:
    importlib.import_module(toto_cli.VERBS[words[0]][0]).main(words[1:])


def help_of(words: list[str]) -> str:
    with contextlib.redirect_stdout(said := io.StringIO()), pytest.raises(SystemExit) as end:
        call([*words, "--help"])
    assert not end.value.code
    return said.getvalue()


def test_every_command_has_first_flags():
    assert {" ".join(["toto", *words]) for words in COMMANDS} == set(FIRST)
    assert all(1 <= len(flags) <= 5 for flags in FIRST.values())


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_help_begins_with_the_flags_that_matter_and_has_each_once(words):
    said = help_of(words)
    prog = " ".join(["toto", *words])
    assert said.startswith(f"usage: {prog} [flags]\n")
    flags = re.findall(r"^  (?:-h, )?--(\w+)", said, re.MULTILINE)
    assert tuple(flags[: len(FIRST[prog])]) == FIRST[prog]
    assert len(flags) == len(set(flags)) and flags[-1] == "help"
    assert "(default: None)" not in said and "default: False" not in said
    assert not re.search(r"^ +(-h, )?--[a-z]+-[a-z]", said, re.MULTILINE)
    titles = re.findall(r"^([a-z].*):$", said.partition("the flags to begin with")[2], re.MULTILINE)
    assert "the flags to begin with:" in said
    assert titles[-1] == "more" and len(titles) == len(set(titles))


def test_a_default_that_is_zero_is_told():
    assert "(default: 0)" in " ".join(help_of(["tokenize"]).split())


@pytest.mark.parametrize(
    ("words", "near"),
    [
        ("pretrain --max_st 3", "--max_steps"),
        ("pretrain --max-ste=3", "--max_steps"),
        ("tokenize --data toyworld --output x", "--dataset"),
        ("evaluate-tokenizer --datase toyworld", "--dataset"),
        ("convert-tokenizer --check x --output y", "--checkpoint"),
        ("probe --mod x", "--model"),
        ("generate --vide x", "--video"),
        ("report --result x", "--results"),
        ("demo --out x", "--output"),
        ("plan --rec base", "--recipe"),
        ("train-tokenizer --res x", "--resume"),
    ],
)
def test_an_abbreviated_flag_is_refused_with_its_name(words, near):
    with pytest.raises(ValueError, match=rf"The flag '{words.split()[1]}' is unknown; did you mean .*{near}"):
        call(words.split())


def test_hyphens_are_underscores():
    with pytest.raises(ValueError, match="--max_steps is 'many'; it must be a whole number"):
        call(["pretrain", "--max-steps", "many"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("probe --model", "--model has no value; give it one"),
        ("probe --max_train 2.5", "--max_train is '2.5'; it must be a whole number"),
        ("plan --mfu much", "--mfu is 'much'; it must be a number"),
        ("pretrain --compile perhaps", "--compile is 'perhaps'; it must be true or false"),
        ("generate --video x", "--model, --output must be given"),
        ("report x", "The flag or value 'x' is unknown; did you mean --results x?"),
        ("tokenize my_videos", "The flag or value 'my_videos' is unknown; did you mean --dataset my_videos?"),
        ("tokenize --dataset toyworld", "--output is missing; name a folder for the shards."),
        ("tokenize --output x", "--dataset is missing; name a folder of videos or images"),
    ],
)
def test_a_wrong_value_is_one_sentence(words, told):
    with pytest.raises(ValueError) as caught:
        call(words.split())
    assert str(caught.value).startswith(told) and "\n" not in str(caught.value)
