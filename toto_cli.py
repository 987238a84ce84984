"""The `toto` command: one table of verbs in data-flow order, each imported only when it is called."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shlex
import sys
from pathlib import Path

PACKAGES = ("tokenization", "modeling_toto", "training", "evaluation")

VERBS = {
    "demo": ("evaluation.demo", "run the whole path on a laptop: tokenize, pretrain, generate, probe, report"),
    "tokenize": ("tokenization.tokenize_dataset", "turn videos or images into shards of visual tokens"),
    "train-tokenizer": ("training.train_tokenizer", "train a visual tokenizer"),
    "convert-tokenizer": (
        "tokenization.convert_tokenizer",
        "convert the files of a published tokenizer to safetensors",
    ),
    "evaluate-tokenizer": ("tokenization.evaluate_tokenizer", "measure PSNR, SSIM and codebook use of a tokenizer"),
    "pretrain": ("training.pretrain", "pre-train a Toto on token shards"),
    "sweep": ("training.sweep", "check muP: activations and best learning rates against width"),
    "scaling": ("evaluation.scaling", "train models of several sizes and fit a law of loss against compute"),
    "plan": ("training.plan", "compute the cost of a recipe: tokens, epochs, FLOPs, hours, memory, disk"),
    "finetune": ("training.finetune", "fine-tune a Toto on labelled images or clips"),
    "prompt": ("evaluation.prompt", "tune a Toto to draw depth, flow and masks from examples; prompt and score it"),
    "probe": ("evaluation.probe", "train linear and attention probes on the frozen features of every layer"),
    "track": ("evaluation.track", "propagate masks through videos by frozen features of every layer (DAVIS)"),
    "permanence": ("evaluation.permanence", "test whether a model follows objects that are out of sight"),
    "robot": ("evaluation.robot", "train policies of a robot arm on a frozen Toto from demonstrations; test them"),
    "generate": ("evaluation.generate", "continue clips, frame by frame"),
    "ngrams": ("evaluation.ngrams", "count how often codes and short runs of codes occur; entropy and compression"),
    "visualize": ("evaluation.visualize", "draw what is inside: components, attention, surprise, codes, arrow of time"),
    "report": ("evaluation.report", "write a page from results and runs"),
    "export": ("training.export", "export a Toto as a plain Llama with the same logits"),
    "app": ("evaluation.app", "open a page in the browser: tokens, continuations, features, attention, a probe"),
}


# Verbs that go on where they were stopped when the same command is given again.
RESUMED = ("demo", "tokenize", "probe", "track", "robot", "scaling", "sweep")


def hidden_package() -> str | None:
    """The sentence for a user whose own file or folder is imported in place of one of our packages; else None.

    All four stand next to this file, in a clone, in an editable installation and in an installed wheel. Python prefers
    a folder of the same name that comes earlier on its path: the working directory for `python -m`, or PYTHONPATH.
    """
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is None:
            continue
        found = Path(spec.origin or next(iter(spec.submodule_search_locations)))
        found = found.parent if found.name == "__init__.py" else found
        if found.resolve() == Path(__file__).resolve().parent / name:
            continue
        kind = "folder" if found.is_dir() else "file"
        here = Path.cwd()
        shown = f"./{found.relative_to(here)}" if found.is_relative_to(here) else str(found)
        return (
            f"The {kind} {shown} hides the package {name} of modeling-toto; run toto from another folder or rename it."
        )
    return None


def run(main, argv: list[str] | None = None) -> None:
    """Call a command's `main`; a user's mistake ends it with one sentence (TOTO_TRACEBACK=1 shows the traceback)."""
    exit_if_hidden()
    from tokenization.terminal.progress import quiet_libraries

    quiet_libraries()
    try:
        refuse_url(main, sys.argv[1:] if argv is None else argv)
        main(argv)
    except (ValueError, OSError) as error:
        if os.environ.get("TOTO_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt as stop:
        print(f"\n{str(stop) or going_on(main, sys.argv[1:] if argv is None else argv)}", file=sys.stderr)
        raise SystemExit(130) from None


def going_on(main, argv: list[str]) -> str:
    """What a user is told after Ctrl-C: the command that goes on, if the verb keeps what it has finished."""
    verb = next((verb for verb in RESUMED if main.__module__.startswith(VERBS[verb][0])), None)
    return "stopped" if verb is None else f"stopped; go on with: toto {shlex.join([verb, *argv])}"


def refuse_url(main, argv: list[str]) -> None:
    """Raises ValueError if --output is a URL and the command is not `toto tokenize`, before the command's work is lost.

    Run folders (--output_dir) may be URLs in every command that trains.
    """
    spec = main.__globals__.get("__spec__")  # of "python -m" too, where the module's name is __main__
    if spec is not None and spec.name == VERBS["tokenize"][0]:
        return
    for flag, value in zip(argv, [*argv[1:], ""], strict=False):
        name, _, inside = flag.partition("=")
        if name == "--output" and "://" in (inside or value):
            raise ValueError(
                f"--output {inside or value} is a URL, but this command writes local files; name a local one and copy "
                "it afterwards."
            )


def exit_if_hidden() -> None:
    if sentence := hidden_package():
        print(f"error: {sentence}", file=sys.stderr)
        raise SystemExit(1)


def version() -> str:
    """The version of modeling-toto, as installed or in the setup.py of the clone."""
    import importlib.metadata
    import re

    try:
        return importlib.metadata.version("modeling-toto")
    except importlib.metadata.PackageNotFoundError:  # a clone that is not installed
        text = Path(__file__).with_name("setup.py").read_text()
        return re.search(r'version="([^"]+)"', text)[1]


def nearest(word: str, known) -> str:
    """The end of a sentence that refuses a word: the known one that was probably meant, or a hint at --help."""
    import difflib

    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]}?" if near else "toto --help lists the verbs."


def usage() -> str:
    width = max(map(len, VERBS))
    lines = "\n".join(f"  {verb:{width}}  {summary}" for verb, (_, summary) in VERBS.items())
    begin = (
        "Begin with `toto demo`, or with your own videos: toto tokenize --dataset FOLDER --output out/shards\n"
        "A command ends by naming the next one. `toto <verb> --help` explains a verb's flags."
    )
    return f"usage: toto <verb> [flags]\n\n{lines}\n\n{begin}"


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(usage())
        return
    verb = sys.argv[1]
    if verb in ("-V", "--version"):
        print(f"toto {version()}")
        return
    if verb not in VERBS:
        print(f"error: there is no verb '{verb}'; {nearest(verb, VERBS)}", file=sys.stderr)
        raise SystemExit(2)
    exit_if_hidden()  # before the verb's module is looked for in the wrong folder
    run(importlib.import_module(VERBS[verb][0]).main, sys.argv[2:])


if __name__ == "__main__":
    main()
