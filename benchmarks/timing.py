"""Fair timing of two sides: alternating calls, and medians with their spread."""

import statistics
import sys
import time


def alternate(sides: dict, rounds: int) -> dict:
    """Seconds of each side's calls, alternating after one unmeasured round: {name: [seconds, ...]}."""
    seconds = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, call in sides.items():
            began = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - began)
        print(f"round {turn}/{rounds}", file=sys.stderr)
    return seconds


def spread(rates: list[float]) -> dict:
    return {"median": statistics.median(rates), "min": min(rates), "max": max(rates)}
