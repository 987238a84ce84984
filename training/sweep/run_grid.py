"""Many short runs of `toto pretrain`, for a sweep or a scaling law: resumable, with one worker per device."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import shutil
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from tokenization.files import write_whole

OUTCOME = "outcome.json"


@dataclass(frozen=True)
class Point:
    """A run. name: of its folder. flags: of `toto pretrain`, without --output_dir."""

    name: str
    flags: tuple[str, ...]


def run_grid(points: list[Point], folder: Path, workers: int | None, description: str) -> dict[str, dict]:
    """Run every point that has no outcome yet, and return the outcomes of all points by name.

    An outcome holds the "flags" of the run and its last losses, or the sentence "diverged". It is written at the end of
    the run, so that a grid that was killed resumes with its unfinished runs. Weights are not kept.

    Args:
        workers: runs at a time; None takes one per GPU, or one on a CPU.
    Raises:
        ValueError: a run failed, or `folder` holds a run of that name with other flags.
    """
    from tokenization.terminal.progress import tqdm

    folder.mkdir(parents=True, exist_ok=True)
    outcomes = {}
    for point in points:
        file = folder / point.name / OUTCOME
        if file.is_file():
            outcomes[point.name] = outcome = json.loads(file.read_text())
            if outcome["flags"] != list(point.flags):
                raise ValueError(f"{file.parent} was run with other flags; name another folder, or delete that one.")
    waiting = [point for point in points if point.name not in outcomes]
    with tqdm(total=len(points), initial=len(outcomes), desc=description, unit="run") as bar:
        if waiting:
            with _pool(workers, len(waiting)) as pool:
                runs = {pool.submit(_run, point, folder / point.name): point for point in waiting}
                try:
                    for done in as_completed(runs):
                        outcomes[runs[done].name] = outcome = done.result()
                        bar.update()
                        bar.set_postfix_str(f"{runs[done].name}: {_summary(outcome)}")
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
    return {point.name: outcomes[point.name] for point in points}


def _pool(workers: int | None, most: int) -> ProcessPoolExecutor:
    """New processes, each with its own device or share of the cores."""
    import torch

    devices = list(range(torch.cuda.device_count())) or [None]
    count = min(workers or len(devices), most)
    threads = max(1, torch.get_num_threads() // count) if devices == [None] else None
    spawn = multiprocessing.get_context("spawn")
    places = spawn.Queue()
    for number in range(count):
        places.put((devices[number % len(devices)], threads))
    return ProcessPoolExecutor(count, mp_context=spawn, initializer=_take_place, initargs=(places,))


def _take_place(places) -> None:
    device, threads = places.get()
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(device)  # before torch looks for devices in this process
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    # A worker is an independent run, even if the grid was started by a launcher.
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        os.environ.pop(name, None)


def _run(point: Point, run: Path) -> dict:
    from training.pretrain import main

    shutil.rmtree(run, ignore_errors=True)  # left over from a grid that was killed
    run.parent.mkdir(parents=True, exist_ok=True)
    log = run.with_name(f"{run.name}.log")
    outcome = {"flags": list(point.flags)}
    with log.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        try:
            main([*point.flags, "--output_dir", str(run)])
            rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            if not any("val_loss" in row for row in rows):
                raise ValueError("There are no validation rows; name some with --val_shards.")
            trained = ([row for row in rows if "loss" in row] or [{"tokens": 0, "loss": None, "seconds": 0.0}])[-1]
            outcome |= {key: trained[key] for key in ("tokens", "loss", "seconds")}
            outcome |= {key: value for key, value in rows[-1].items() if key in ("step", "val_loss")}
        except ValueError as error:
            if "is not finite" not in str(error):
                traceback.print_exc()
                raise ValueError(f"The run {run.name} failed: {error} (see {log})") from error
            outcome["diverged"] = str(error)
    if outcome.get("val_loss", 0.0) is None:
        outcome["diverged"] = "The validation loss is not finite."
        del outcome["val_loss"]
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    write_whole(run / OUTCOME, lambda path: path.write_text(json.dumps(outcome) + "\n"))
    return outcome


def _summary(outcome: dict) -> str:
    return "diverged" if "diverged" in outcome else f"{outcome['val_loss']:.3f}"
