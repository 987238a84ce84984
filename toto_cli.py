"""The `toto` command: one table of verbs in data-flow order, each imported only when it is called."""

from __future__ import annotations

import importlib
import os
import sys

VERBS = {
    "demo": ("evaluation.demo", "the whole path on a laptop: tokenize, pretrain, generate, probe, report"),
    "tokenize": ("tokenization.tokenize_dataset", "videos or images -> shards of visual tokens"),
    "train-tokenizer": ("training.train_tokenizer", "train a small visual tokenizer"),
    "convert-tokenizer": ("tokenization.convert_tokenizer", "the published tokenizers' original files -> safetensors"),
    "evaluate-tokenizer": (
        "tokenization.evaluate_tokenizer",
        "what does a tokenizer keep of pictures? PSNR, SSIM, codes used",
    ),
    "pretrain": ("training.pretrain", "token shards -> a Toto checkpoint"),
    "sweep": ("training.sweep", "is muP right? activations and best learning rates against width"),
    "scaling": ("evaluation.scaling", "how does the loss fall with compute? runs of many sizes and a law through them"),
    "plan": ("training.plan", "what does a recipe cost? tokens, epochs, FLOPs, hours, memory, disk"),
    "finetune": ("training.finetune", "a Toto checkpoint and labelled images or clips -> a classifier"),
    "probe": ("evaluation.probe", "what do frozen features know? linear and attention probes on every layer"),
    "generate": ("evaluation.generate", "continue a clip, frame by frame"),
    "report": ("evaluation.report", "results and runs -> one page of what holds and what fails"),
    "export": ("training.export", "a Toto checkpoint -> a plain Llama with the same logits"),
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
