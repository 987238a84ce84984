"""`toto permanence`: one sub-command per question."""

from __future__ import annotations

from tokenization.terminal.actions import run_action

QUESTIONS = {
    "attention": (
        "evaluation.permanence.attention",
        "which heads look from an object that comes back to its last sighting, and what is it worth?",
    ),
    "cups": (
        "evaluation.permanence.cups",
        "can the place of an object under a cup that has moved be read from the features of the last frame?",
    ),
}


def usage() -> str:
    width = max(map(len, QUESTIONS))
    lines = "\n".join(f"  {name:{width}}  {summary}" for name, (_, summary) in QUESTIONS.items())
    more = "`toto permanence <question> --help` explains its flags; docs/permanence.md has results."
    return f"usage: toto permanence <question> [flags]\n\n{lines}\n\n{more}"


def main(argv: list[str] | None = None) -> None:
    run_action(argv, "permanence", "question", QUESTIONS, usage)
