"""The first word of a verb with sub-commands: called, refused with the nearest one, or explained."""

import json.tool

import pytest

from tokenization.terminal.actions import run_action

ACTIONS = {"tool": ("json.tool", "a sub-command"), "decoder": ("json.decoder", "another one")}
LISTED = "choose from tool, decoder (toto verb --help)."


def call(*argv):
    run_action(list(argv), "verb", "picture", ACTIONS, lambda: "usage: verb")


def test_the_first_word_is_called_with_the_rest(monkeypatch, capsys):
    monkeypatch.setattr(json.tool, "main", lambda argv: print("called with", *argv))
    call("tool", "--a", "1")
    assert capsys.readouterr().out == "called with --a 1\n"
    for argv in ((), ("--help",), ("-h",)):
        call(*argv)
        assert capsys.readouterr().out == "usage: verb\n"


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["--model", "x"], f"toto verb begins with a picture, before the flags; {LISTED}"),
        (["tolo"], "There is no picture 'tolo'; did you mean tool?"),
        (["zzz"], f"There is no picture 'zzz'; {LISTED}"),
    ],
)
def test_another_first_word_is_one_sentence(argv, told):
    with pytest.raises(ValueError) as caught:
        call(*argv)
    assert str(caught.value) == told
