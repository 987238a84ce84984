"""Speed comparisons with peers, in one process and in alternation: `python benchmarks/bench.py NAME --json`.

Each benchmark is a file next to this one; `bench.py NAME --help` explains its flags. Prints one JSON object with ratios
(above 1: this project is ahead) and the absolute values of both sides, as medians with their spread. Logs go to stderr.
"""

import argparse
import importlib
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# name: (module with `add_flags(parser)` and `measure(args) -> dict`, what it measures)
BENCHES = {
    "train": ("bench_train", "an optimisation step: speed, memory and loss curve against transformers' Llama"),
    "generate": ("bench_generate", "one frame after a prompt, against Llama's generate"),
    "parallel": ("bench_parallel", "frames drawn with several places per forward, against one place per forward"),
    "features": ("bench_features", "early exit and pooled features of all layers, against a full pass"),
    "streaming": ("bench_streaming", "features of a new frame of a stream, against recomputing the whole row"),
    "probe": ("bench_probe", "a probe of every layer against one of the last, both from pixels"),
    "data": (
        "bench_data",
        "rows of shards, against datasets streaming the same files; frames by PIL or the decoder",
    ),
    "reading": ("bench_reading", "frames by PyAV, swscale and torchcodec; how busy an encoder is kept"),
    "resume": ("bench_resume", "runs killed at random times: lost, or different from an uninterrupted run"),
    "tokenizer": ("bench_tokenizer", "pictures to codes with the dVAE, against the dall-e package"),
}


def main() -> None:
    table = "\n".join(f"  {name:10} {summary}" for name, (_, summary) in BENCHES.items())
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=table,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("name", choices=BENCHES, help="what to measure", nargs="?")
    name = parser.parse_known_args()[0].name
    parser.add_argument("-h", "--help", action="help", help="this text")
    parser.add_argument("--json", action="store_true", help="print only JSON (always the case; for scripts)")
    bench = None
    if name is not None:
        bench = importlib.import_module(BENCHES[name][0])
        bench.add_flags(parser)
    args = parser.parse_args()
    if bench is None:
        parser.error(f"No benchmark is named; choose one of {', '.join(BENCHES)}.")

    import torch

    from training.engine.device import bf16_is_fast, versions

    device = torch.device("cpu")
    result = bench.measure(args)
    facts = {"bench": args.name, "device": "cpu", "versions": versions(device), "bf16_is_fast": bf16_is_fast(device)}
    print(json.dumps(facts | result))


if __name__ == "__main__":
    main()
