"""`toto permanence`: one sub-command per question."""

from __future__ import annotations

import importlib
import sys

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
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return
    if argv[0] not in QUESTIONS:
        raise ValueError(
            f"There is no question '{argv[0]}'; choose from {', '.join(QUESTIONS)} (toto permanence --help)."
        )
    importlib.import_module(QUESTIONS[argv[0]][0]).main(argv[1:])
