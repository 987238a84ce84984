"""The life of a run folder: where a run starts or resumes, its processes, its files, SIGTERM, and its end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed

from tokenization.files import write_whole
from tokenization.storage.remote import is_remote, join
from tokenization.terminal.stopping import CTRL_C, Stopping
from training import find_model
from training.args import INTERRUPTED, PREEMPTED, RunArgs
from training.engine import checkpoints
from training.engine.changes import changed_settings, changed_surroundings
from training.engine.device import (
    deterministic,
    make_accelerator,
    require_free_port,
    require_together,
    surroundings,
    versions,
)
from training.engine.hangs import set_flight_recorder
from training.engine.trackers import start_trackers, tracker_names
from training.flags import read_recipe, require, write_recipe
from training.refusals import require_new_run
from training.remote_run import RemoteRun


@dataclass(frozen=True)
class Beginning:
    """A run before its processes have started.

    Fields:
        is_resumed: `--resume` named the folder.
        checkpoint: the newest valid checkpoint of a resumed run; None if training starts at step 0.
        remote: the URL to which the folder is uploaded; None for an ordinary run.
    """

    verb: str
    folder: Path
    is_resumed: bool
    checkpoint: Path | None
    remote: RemoteRun | None = None

    def changes(self, *settings, **which) -> list[str]:
        """`changed_settings` of a resumed run; none of a run that starts at step 0."""
        return [] if self.checkpoint is None else changed_settings(read_recipe(self.folder), *settings, **which)


def begin(verb: str, args, resumed: Path | None, name: str | None = None) -> Beginning:
    """The run to start or to resume, checked before there is a process group or a model.

    Args:
        args: has `recipe` and `output_dir`.
        resumed: the folder that `--resume` names.
        name: of a new folder without a recipe; by default the verb.
    Raises:
        ValueError: the output folder is not empty, or `accelerate launch` was given fp16. OSError: its URL cannot be
            written.
    """
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION")
    require(precision != "fp16", "fp16 needs a loss scale, which checkpoints do not keep; train in bf16 or no.")
    if resumed is not None:
        found = find_model.steps(resumed)
        return Beginning(verb, resumed, True, found[-1] if found else None, RemoteRun.of(resumed))
    if is_remote(args.output_dir):
        remote = RemoteRun(args.output_dir)
        remote.begin()
        return Beginning(verb, remote.folder, False, None, remote)
    name = Path(args.recipe).stem if args.recipe else name or verb
    run = Path(args.output_dir or f"runs/{name}-{datetime.now():%Y%m%d-%H%M%S}")
    require_new_run(run)
    return Beginning(verb, run, False, None)


@dataclass(frozen=True)
class Run:
    """A run whose processes have started.

    Fields:
        folder: the same in every process.
        checkpoint: the newest undamaged checkpoint of a resumed run, which continues from it as if it had never
            stopped. None if training starts at step 0.
        max_steps: of the schedule.
        changes: sentences of `Beginning.changes`.
        remote: of `Beginning`, in the first process; None in the others.
    """

    verb: str
    folder: Path
    accelerator: Accelerator
    checkpoint: Path | None
    max_steps: int
    changes: list[str]
    remote: RemoteRun | None = None

    @property
    def place(self) -> str:
        """The URL of the run, or its folder: what `--resume` and `--model` take."""
        return self.remote.url if self.remote else str(self.folder)

    def before_checkpoint(self) -> None:
        """Wait until no file of an earlier checkpoint is read; called before another is written."""
        if self.remote:
            self.remote.settle()

    def after_checkpoint(self, keep: int | None = None, spared: Iterable[int] = ()) -> None:
        """Upload the run, if it has a URL; called when a checkpoint is whole. keep, spared: as in `writing`."""
        if self.remote:
            self.remote.saved(keep, spared)

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def machine(self) -> str:
        """Processes, device and precision, as text for the log."""
        accelerator = self.accelerator
        precision = f"mixed precision: {accelerator.mixed_precision}"
        return f"{accelerator.num_processes} x {accelerator.device.type} ({precision})"

    def report_changes(self, fingerprints: dict[str, str] | None = None, is_indexed: bool = True) -> None:
        """Print what has changed since the checkpoint was written, and append it to RUN/changes.txt.

        Args:
            fingerprints: source -> what its rows depend on (`RowStream.fingerprints`).
            is_indexed: the rows are the same for any number of processes (`RowStream.is_indexed`).
        """
        if self.checkpoint is None or not self.is_main:
            return
        saved = checkpoints.load_loop(self.checkpoint)
        now = {"world": self.accelerator.num_processes, "fingerprints": fingerprints or {}}
        now["versions"] = surroundings(self.accelerator)
        sentences = self.changes + changed_surroundings(saved, now, is_indexed)
        if sentences:
            text = f"Resumed after step {saved['step']} with changes:\n" + "".join(f"- {each}\n" for each in sentences)
            with (self.folder / "changes.txt").open("a") as file:
                file.write(text)
            print(text.rstrip())

    def announce(self, what: str, *settings) -> None:
        """Write recipe.yaml and versions.json, print what is trained, and start the trackers of `--report_to`."""
        if self.is_main:
            write_recipe(self.folder, *settings)
            text = json.dumps(versions(self.accelerator.device), indent=2) + "\n"
            write_whole(self.folder / "versions.json", lambda path: path.write_text(text))
            print(f"{self.place}: {what}", flush=True)
            self.after_checkpoint()  # recipe.yaml and versions.json
        tracked = [asdict(concern) for concern in settings if not isinstance(concern, RunArgs)]
        start_trackers(
            self.accelerator, self.folder, {key: value for concern in tracked for key, value in concern.items()}
        )


@contextlib.contextmanager
def running(
    beginning: Beginning,
    args,
    changes: list[str],
    *,
    report_to: str | None = None,
    push_to: str | None = None,
    broadcast_buffers: bool = False,
) -> Iterator[Run]:
    """The processes of a run, from their start to their end.

    No reference to a prepared model may outlive the body (keep them in a function of their own). Otherwise the model is
    the last holder of the process group, whose destructor may wait, holding Python's lock, for a gloo thread that waits
    for that lock.

    Args:
        args: has `max_steps` and `seed`; `gradient_reduction` and `deterministic` if the command has these flags.
        report_to: Accelerate's trackers; see `tracker_names`.
        push_to: the repository that the run will be pushed to; created now, so that a missing token is reported before
            the training, not after it.
        broadcast_buffers: see `make_accelerator`.
    Raises:
        ValueError: processes that would work alone, a port in use, an unknown tracker. OSError: a run folder or a
            repository that cannot be written. FileNotFoundError: every checkpoint is damaged.
    """
    require_free_port()
    trackers = tracker_names(report_to)
    if os.environ.get("RANK", "0") == "0":
        _require_writable(beginning.folder)
    with contextlib.ExitStack() as stack:
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            set_flight_recorder(beginning.folder)
        stack.enter_context(deterministic(getattr(args, "deterministic", False)))
        accelerator = make_accelerator(
            getattr(args, "gradient_reduction", "fp32"),
            broadcast_buffers,
            log_with=trackers or None,
            project_dir=str(beginning.folder),
        )
        stack.callback(accelerator.end_training)
        stack.callback(accelerator.free_memory)
        require_together(accelerator.num_processes)
        folder = Path(broadcast_object_list([str(beginning.folder)])[0])  # a name with the time differs by process
        if push_to is not None and accelerator.is_main_process:
            from training.publish.push import create_repo

            create_repo(push_to)
        checkpoint, max_steps = None, args.max_steps
        if beginning.checkpoint is not None:
            checkpoint = _newest_sound(accelerator, folder)
            saved = checkpoints.load_loop(checkpoint)
            # --max_minutes may have lowered what was asked for, which the recipe does not know.
            max_steps = saved["max_steps"] if max_steps == saved.get("asked_steps") else max_steps
        elif beginning.is_resumed and accelerator.is_main_process:
            print(f"{folder} has no checkpoint yet, so the run starts again.")
        set_seed(args.seed)
        remote = beginning.remote if accelerator.is_main_process else None
        try:
            run = Run(beginning.verb, folder, accelerator, checkpoint, max_steps, changes, remote)
            yield run
        except KeyboardInterrupt:  # a second one, or one before the first step
            raise KeyboardInterrupt(f"stopped; go on with: toto {beginning.verb} --resume {run.place}") from None
        if remote:
            remote.finish()


class Preemption(Stopping):
    """Notes SIGTERM, which a scheduler sends before it takes the machine away, and Ctrl-C: a checkpoint, then the end.

    last: the signal that ended the latest training of this process; None if another process was asked.
    """

    last: str | None = None

    def __init__(self):
        super().__init__("stopping after this step, with a checkpoint", signal.SIGTERM, signal.SIGINT)

    def __exit__(self, *error):
        Preemption.last = self.by
        super().__exit__(*error)


def end_run(run: Run, last: Path, best: Path | None) -> None:
    """Print what was written.

    Args:
        last: the last checkpoint. best: the one that `--model RUN` takes; None if a signal ended the training.
    Raises:
        SystemExit: with PREEMPTED after SIGTERM, with INTERRUPTED after Ctrl-C.
    """
    by = Preemption.last or "SIGTERM"
    if run.is_main:
        print(f"wrote {_named(run, last)}")
        if best is None:
            print(f"stopped by {by}; resume with: toto {run.verb} --resume {run.place}")
        elif best != last:
            print(f"best on validation, and used by `--model {run.place}`: {_named(run, best)}")
    if best is None:
        raise SystemExit(INTERRUPTED if by == CTRL_C else PREEMPTED)


def publish(run: Run, best: Path, push_to: str | None) -> None:
    """Write media.json, the record of the training media that remains when shards are deleted, and push the run."""
    if not run.is_main:
        return
    from training.publish.media_seen import write_media

    try:
        write_media(run.folder, run.folder)
    except (OSError, ValueError) as error:
        print(f"media.json, the record of the training data, was not written: {error}")
    if push_to is not None:
        from training.publish.push import push_folder

        print(f"pushed {push_folder(best, push_to)}")
    close_remote(run)


def close_remote(run: Run) -> None:
    """Upload the rest of a finished run that has a URL, and delete the local folder."""
    if run.remote:
        run.remote.finish()
        run.remote.discard()


def _named(run: Run, path: Path) -> str:
    """A path inside the run, as `place` names the run."""
    return str(join(run.place, *path.relative_to(run.folder).parts))


def _newest_sound(accelerator: Accelerator, folder: Path) -> Path:
    """The newest checkpoint whose checksums are correct, the same in every process; damaged ones are reported."""
    sound = [None]
    if accelerator.is_main_process:
        checkpoint, damaged = checkpoints.newest_sound(folder)
        sound = [str(checkpoint)]
        print("".join(f"{sentence}\n" for sentence in damaged), end="")
    return Path(broadcast_object_list(sound)[0])


def _require_writable(run: Path) -> None:
    """Make the run folder. Raises OSError if it cannot be written."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=run):
            pass
    except OSError as error:
        raise OSError(
            f"The run folder {run} cannot be written ({error.strerror}); name another --output_dir."
        ) from error
