"""What a training command does around its loop: the run folder, the processes, where a run goes on, the end of it."""

from __future__ import annotations

import json
import os
import tempfile
from datetime import datetime
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from tokenization.files import write_whole

from . import checkpoints
from .args import PREEMPTED, RunArgs, require, write_recipe
from .device import make_accelerator, require_free_port, require_together, surroundings, versions
from .mixture import RowStream
from .resume import changed_surroundings, told


def run_folder(args: RunArgs, resumed: Path | None, verb: str) -> Path:
    """The run folder: the one resumed, or a new or empty one.

    Raises:
        ValueError: something is in it.
    """
    if resumed is not None:
        return resumed
    name = Path(args.recipe).stem if args.recipe else verb
    run = Path(args.output_dir or f"runs/{name}-{datetime.now():%Y%m%d-%H%M%S}")
    occupied = run.exists() and (not run.is_dir() or any(run.iterdir()))
    require(not occupied, f"{run} is not empty; choose another --output_dir, or continue it with --resume {run}.")
    return run


def start_processes(args: RunArgs, run: Path) -> tuple[Accelerator, Path]:
    """(the accelerator of this process, the run folder that all of them write to), when all else has been looked at.

    Raises:
        ValueError: processes that would work alone, a port in use, an unknown tracker. OSError: a run folder or a
            repository that cannot be written.
    """
    require_free_port()
    if os.environ.get("RANK", "0") == "0":
        _require_writable(run)
    accelerator = make_accelerator(log_with=args.report_to, project_dir=str(run))
    require_together(accelerator.num_processes)
    require(
        args.report_to is None or bool(accelerator.log_with),
        f"--report_to {args.report_to}: Accelerate knows no such tracker, or it is not installed.",
    )
    run = Path(broadcast_object_list([str(run)])[0])  # a name made of the time is another in every process
    if args.push_to_hub and accelerator.is_main_process:
        from .hub import create_repo

        create_repo(args.hub_model_id)  # a missing token is better known before the training than after it
    return accelerator, run


def refuse_fp16() -> None:
    """Raises ValueError where `accelerate launch` was given fp16."""
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION")
    require(precision != "fp16", "fp16 needs a scale of the loss, which checkpoints do not keep: train in bf16 or no.")


def go_on(accelerator, run: Path, args: RunArgs, changes: list[str], stream: RowStream) -> tuple[str, int]:
    """(newest sound checkpoint, steps of the schedule) of a run that is resumed; what has changed is told.

    changes: sentences of `changed_settings`.
    """
    sound = [None]
    if accelerator.is_main_process:
        checkpoint, damaged = checkpoints.newest_sound(run)
        sound = [str(checkpoint)]
        print("".join(f"{sentence}\n" for sentence in damaged), end="")
    start = broadcast_object_list(sound)[0]
    loop_state = checkpoints.load_loop(Path(start))
    now = {"world": accelerator.num_processes, "fingerprints": stream.fingerprints}
    now["versions"] = surroundings(accelerator)
    changes = changes + changed_surroundings(loop_state, now, stream.is_indexed)
    if changes and accelerator.is_main_process:
        print(told(run, loop_state["step"], changes))
    # --max_minutes may have lowered what was asked for, which the recipe does not know.
    return start, loop_state["max_steps"] if args.max_steps == loop_state["asked_steps"] else args.max_steps


def write_run_files(run: Path, device, *settings) -> None:
    """recipe.yaml and versions.json."""
    write_recipe(run, *settings)
    text = json.dumps(versions(device), indent=2) + "\n"
    write_whole(run / "versions.json", lambda path: path.write_text(text))


def end_run(accelerator, verb: str, run: Path, last: Path, best: Path | None, args: RunArgs) -> None:
    """Say what was written, and push what was asked for. best: what to push; None where SIGTERM ended the training.

    Raises:
        SystemExit: with PREEMPTED, after SIGTERM.
    """
    if accelerator.is_main_process:
        print(f"wrote {last}")
        if best is None:
            print(f"stopped by SIGTERM; go on with: toto {verb} --resume {run}")
        elif best != last:
            print(f"best on validation, and what `--model {run}` takes: {best}")
    if best is None:
        raise SystemExit(PREEMPTED)
    if accelerator.is_main_process:
        keep_media(run)
        if args.push_to_hub:
            from .hub import push_folder

            print(f"pushed {push_folder(best, args.hub_model_id)}")


def keep_media(run: Path) -> None:
    """media.json in the run, so that what it saw stays known when its shards, or the model that it began with, go."""
    from .media import write_media

    try:
        write_media(run, run)
    except (OSError, ValueError) as error:
        print(f"no record of what the run saw was kept: {error}")


def _require_writable(run: Path) -> None:
    """Raises OSError where the run folder cannot be written; makes it."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=run):
            pass
    except OSError as error:
        raise OSError(
            f"The run folder {run} cannot be written ({error.strerror}); name another --output_dir."
        ) from error
