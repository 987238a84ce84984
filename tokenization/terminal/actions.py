"""Verbs with sub-commands, such as `toto visualize pca`: one table of them, each imported only when it is called."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Mapping


def run_action(
    argv: list[str] | None, verb: str, kind: str, actions: Mapping[str, tuple[str, str]], usage: Callable[[], str]
) -> None:
    """Call the `main` of the sub-command that comes first, or print the usage.

    Args:
        argv: of the verb; None takes the command line. kind: what a sub-command is called, such as "picture".
        actions: sub-command -> (module, summary).
    Raises:
        ValueError: another word, or a flag, comes first.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(usage())
        return
    word, listed = argv[0], f"{', '.join(actions)} (toto {verb} --help)"
    if word.startswith("-"):
        raise ValueError(f"toto {verb} begins with a {kind}, before the flags; choose from {listed}.")
    if word not in actions:
        near = difflib.get_close_matches(word, actions, n=1)
        advice = f"did you mean {near[0]}?" if near else f"choose from {listed}."
        raise ValueError(f"There is no {kind} '{word}'; {advice}")
    importlib.import_module(actions[word][0]).main(argv[1:])
