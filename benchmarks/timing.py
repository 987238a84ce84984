"""Fair measurement of two sides: alternating calls, medians with their spread, and peak memory."""

import statistics
import sys
import time
from collections.abc import Callable


def alternate(sides: dict, rounds: int, wait: Callable[[], object] | None = None, first: dict | None = None) -> dict:
    """Seconds of each side's calls, alternating after one unmeasured round: {name: [seconds, ...]}.

    Args:
        wait: called after each call, until the device has done its work.
        first: receives the seconds of the unmeasured round, {name: seconds}.
    """
    seconds = {name: [] for name in sides}
    for turn in range(rounds + 1):
        for name, call in sides.items():
            began = time.perf_counter()
            call()
            if wait is not None:
                wait()
            taken = time.perf_counter() - began
            if turn:
                seconds[name].append(taken)
            elif first is not None:
                first[name] = taken
        print(f"round {turn}/{rounds}", file=sys.stderr)
    return seconds


def spread(rates: list[float]) -> dict:
    return {"median": statistics.median(rates), "min": min(rates), "max": max(rates)}


def peak_bytes(call) -> int:
    """The most memory that torch holds on the CPU during a call, above what it held before.

    Counted from the profiler's events of torch's allocator; scratch memory that libraries such as oneDNN take for
    themselves is not seen.
    """
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.device_type() == DeviceType.CPU:
            held += event.nbytes()
            most = max(most, held)
    return most
