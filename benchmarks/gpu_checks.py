"""Ten minutes on one GPU: what the CPUs of this project could not measure, as a JSON line per check.

  python benchmarks/gpu_checks.py --output gpu_checks.jsonl

The most telling checks come first and torch.compile last. A line is printed, and appended to --output, as soon as its
check has ended; one that fails gives its error in its line, and the others go on. --tiny runs the same code on a CPU.
docs/scaling.md says what to do with the file.
"""

import argparse
import functools
import json
import sys
import time
import traceback
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

# name: (module, function, its options, seconds that it needs on an H100: estimated, without compiled kernels in a
# cache), most telling first
CHECKS = {
    "peaks": ("gpu_training", "peaks", {}, 10),
    "train_eager": ("gpu_training", "train_step", {"compiled": False}, 40),
    "generate": ("gpu_inference", "generate", {}, 120),
    "attention": ("gpu_training", "attention", {}, 20),
    "loss": ("gpu_training", "loss_chunks", {}, 15),
    "recomputation_1b": ("gpu_training", "recomputation", {}, 40),
    "dvae": ("gpu_inference", "dvae", {}, 40),
    "resume": ("gpu_training", "resume", {}, 90),
    "probes": ("gpu_inference", "probes", {}, 30),
    "train_compiled": ("gpu_training", "train_step", {"compiled": True}, 150),
}


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"checks: {', '.join(CHECKS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, help="file to which every line is appended at once")
    parser.add_argument("--minutes", type=float, default=10, help="skip what no longer fits (default 10)")
    parser.add_argument("--only", nargs="+", choices=CHECKS, metavar="CHECK", help="these checks alone")
    parser.add_argument("--rounds", type=int, help="measured rounds of a check (default 5; 1 with --tiny)")
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, for a test of this script on a CPU")
    args = parser.parse_args(argv)
    if args.minutes <= 0:
        parser.error(f"--minutes is {args.minutes}; set a number above 0.")
    if args.rounds is not None and args.rounds < 1:
        parser.error(f"--rounds is {args.rounds}; set 1 or more.")
    return args


def run_check(name: str, setup) -> dict:
    """{"values": ...} of a check, or {"error": its sentence}."""
    import importlib

    from gpu_setup import free

    module, function, options, _ = CHECKS[name]
    try:
        return {"values": getattr(importlib.import_module(module), function)(setup, **options)}
    except (Exception, SystemExit) as error:  # a GPU may show what no CPU has shown; the others still run
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:1000]}
    finally:
        free()


def machine(device) -> dict:
    """What the numbers of a file are about."""
    import torch

    from training.engine.data_sheets import known_gpu
    from training.engine.device import versions

    found = {"check": "machine", "versions": versions(device)}
    if device.type != "cuda":
        return found | {"device": device.type}
    about = torch.cuda.get_device_properties(device)
    found |= {"device": about.name, "capability": [about.major, about.minor], "memory_gb": about.total_memory / 1e9}
    found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(), "bf16_tflops_of_data_sheet": None}
    if gpu := known_gpu(about.name):
        found["bf16_tflops_of_data_sheet"] = gpu.tflops
    return found


def write(row: dict, output: Path | None) -> None:
    line = json.dumps(row)
    print(line, flush=True)
    if output is not None:
        with output.open("a") as file:
            file.write(f"{line}\n")


def main(argv: list[str] | None = None) -> int:
    """Run the checks; the exit code is 1 if one has failed."""
    began, args = time.perf_counter(), parse(argv)
    if args.output is not None:  # before a minute is spent
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.open("a").close()

    import torch
    from gpu_setup import Setup

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not args.tiny:
        raise SystemExit("There is no CUDA device here; run this on a GPU, or pass --tiny to test the script.")
    setup = Setup(device, args.tiny, args.rounds or (1 if args.tiny else 5))
    put = functools.partial(write, output=args.output)
    put(machine(device) | {"tiny": args.tiny, "minutes": args.minutes, "rounds": setup.rounds})
    failed = False
    for name in args.only or CHECKS:
        left, needs = 60 * args.minutes - (time.perf_counter() - began), 1 if args.tiny else CHECKS[name][3]
        if left < needs:
            put({"check": name, "skipped": f"needs about {needs} s, and {max(0, left):.0f} s are left"})
            continue
        start = time.perf_counter()
        found = run_check(name, setup)
        failed |= "error" in found
        put({"check": name, "seconds": round(time.perf_counter() - start, 3)} | found)
    return int(failed)


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).resolve().parent)]
    sys.exit(main())
