"""What the checks of `gpu_checks.py` share: the device, the sizes, and measurements on it."""

import gc
import sys
import warnings
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from timing import alternate, peak_bytes, spread

# The shapes of --tiny: a row of 66 ids.
TINY = {
    "vocab_size": 64 + 32,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "tokens_per_frame": 16,
    "num_frames": 4,
    "max_position_embeddings": 66,
}


@dataclass(frozen=True)
class Setup:
    """Where and how large the checks run.

    Fields:
        tiny: shapes that a CPU computes in a second, through the same code.
        rounds: measured rounds, after an unmeasured one.
        peaks: what the check of the peaks has found, for the MFU of later ones: {"bf16": FLOPs per second}.
    """

    device: torch.device
    tiny: bool
    rounds: int
    peaks: dict = field(default_factory=dict)

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def gpu(self):
        """The data sheet of this GPU; None if it is not listed, and on a CPU."""
        from training.engine.data_sheets import known_gpu

        return known_gpu(torch.cuda.get_device_name(self.device)) if self.is_cuda else None

    def config(self, preset: str = "base", **changes):
        """The TotoConfig of a preset, or of --tiny."""
        from modeling_toto import TotoConfig

        tiny = {**TINY, "grid_size": None, "head_dim": None, "num_key_value_heads": None}
        return TotoConfig.from_preset("tiny" if self.tiny else preset, **((tiny if self.tiny else {}) | changes))

    def side_args(self, preset: str) -> Namespace:
        """The arguments of `bench_train.make_side`."""
        import json

        return Namespace(
            preset="tiny" if self.tiny else preset, config=json.dumps(TINY if self.tiny else {}), precision="bf16"
        )

    def wait(self) -> None:
        if self.is_cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, sides: dict[str, Callable], rounds: int | None = None) -> tuple[dict, dict]:
        """({side: [seconds]}, {side: seconds of its first call}) of sides that alternate."""
        first = {}
        return alternate(sides, rounds or self.rounds, self.wait, first), first

    def rates(self, sides: dict[str, Callable], amount: float, unit: str, rounds: int | None = None) -> dict:
        """{side_unit: median and spread of amount / seconds, side_first_call_seconds: ...}."""
        seconds, first = self.seconds(sides, rounds)
        values = {f"{name}_{unit}": spread([amount / each for each in taken]) for name, taken in seconds.items()}
        return values | {f"{name}_first_call_seconds": taken for name, taken in first.items()}

    def peak_gb(self, call: Callable) -> float:
        """The most memory held during a call, in 1e9 bytes: on a GPU with what it held before, on a CPU without."""
        if not self.is_cuda:
            return peak_bytes(call) / 1e9
        free()
        torch.cuda.reset_peak_memory_stats(self.device)
        call()
        self.wait()
        return torch.cuda.max_memory_allocated(self.device) / 1e9

    def synchronisations(self, call: Callable) -> dict[str, int] | None:
        """{the line of code that waits for the GPU: times} in a call; None on a CPU, which waits for nothing."""
        if not self.is_cuda:
            call()
            return None
        found: dict[str, int] = {}
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                call()
            finally:
                torch.cuda.set_sync_debug_mode(before)
        for warning in told:
            if "called a synchronizing" in str(warning.message):
                place = f"{'/'.join(warning.filename.split('/')[-2:])}:{warning.lineno}"
                found[place] = found.get(place, 0) + 1
        return found


def free() -> None:
    """Give back what earlier checks have left."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
