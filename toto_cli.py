"""The `toto` command: one table of verbs in data-flow order, each imported only when it is called."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path

PACKAGES = ("tokenization", "modeling_toto", "training", "evaluation")

VERBS = {
    "demo": ("evaluation.demo", "the whole path on a laptop: tokenize, pretrain, generate, probe, report"),
    "tokenize": ("tokenization.tokenize_dataset", "videos or images -> shards of visual tokens"),
    "train-tokenizer": ("training.train_tokenizer", "train a small visual tokenizer"),
    "convert-tokenizer": ("tokenization.convert_tokenizer", "the published tokenizers' original files -> safetensors"),
    "evaluate-tokenizer": (
        "tokenization.evaluate_tokenizer",
        "how well a tokenizer reconstructs pictures: PSNR, SSIM, codes used",
    ),
    "pretrain": ("training.pretrain", "token shards -> a Toto checkpoint"),
    "sweep": ("training.sweep", "check muP: activations and the best learning rate at several widths"),
    "scaling": ("evaluation.scaling", "loss against compute: runs of many sizes and a power law fitted to them"),
    "plan": ("training.plan", "what a recipe costs: tokens, epochs, FLOPs, hours, memory, disk"),
    "finetune": ("training.finetune", "a Toto checkpoint and labelled images or clips -> a classifier"),
    "probe": ("evaluation.probe", "frozen features -> accuracy of linear and attention probes on every layer"),
    "generate": ("evaluation.generate", "continue a clip, frame by frame"),
    "report": ("evaluation.report", "results and runs -> one page"),
    "export": ("training.export", "a Toto checkpoint -> a plain Llama with the same logits"),
}


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
    try:
        main(argv)
    except (ValueError, OSError) as error:
        if os.environ.get("TOTO_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def exit_if_hidden() -> None:
    if sentence := hidden_package():
        print(f"error: {sentence}", file=sys.stderr)
        raise SystemExit(1)


def usage() -> str:
    width = max(map(len, VERBS))
    lines = "\n".join(f"  {verb:{width}}  {summary}" for verb, (_, summary) in VERBS.items())
    return f"usage: toto <verb> [flags]\n\n{lines}\n\n`toto <verb> --help` explains a verb's flags."


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(usage())
        return
    verb = sys.argv[1]
    if verb not in VERBS:
        print(f"error: there is no verb '{verb}'\n\n{usage()}", file=sys.stderr)
        raise SystemExit(2)
    exit_if_hidden()  # before the verb's module is looked for in the wrong folder
    run(importlib.import_module(VERBS[verb][0]).main, sys.argv[2:])


if __name__ == "__main__":
    main()
