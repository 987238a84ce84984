"""The `toto` command: one table of verbs in data-flow order, each imported only when it is called."""

from __future__ import annotations

import importlib
import os
import sys

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
    "probe": ("evaluation.probe", "train linear and attention probes on the frozen features of every layer"),
    "generate": ("evaluation.generate", "continue clips, frame by frame"),
    "report": ("evaluation.report", "write a page from results and runs"),
    "export": ("training.export", "export a Toto as a plain Llama with the same logits"),
}


def run(main, argv: list[str] | None = None) -> None:
    """Call a command's `main`; a user's mistake ends it with one sentence (TOTO_TRACEBACK=1 shows the traceback)."""
    try:
        main(argv)
    except (ValueError, OSError) as error:
        if os.environ.get("TOTO_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


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
    run(importlib.import_module(VERBS[verb][0]).main, sys.argv[2:])


if __name__ == "__main__":
    main()
