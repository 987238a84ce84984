"""What a folder of episodes was recorded with, and what is read of it: simulator, camera, size of the frames."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from evaluation.robot.train_args import TrainArgs
from training.flags import require

if TYPE_CHECKING:
    from evaluation.robot.episodes.reading import Episodes
    from evaluation.robot.sight import Sight


def recorded_settings(folder: Episodes) -> dict | None:
    """The settings of the `toto robot collect` that recorded a folder, or None."""
    from evaluation.robot.collect import RECORD

    file = folder.folder / RECORD
    return json.loads(file.read_text())["settings"] if file.is_file() else None


def simulator_facts(args: TrainArgs, folder: Episodes, recorded: dict | None) -> dict | None:
    """{"task", "action_repeat"} of the simulator of the episodes; None if they are of a real robot.

    Raises:
        ValueError: --task differs from that of the recording.
    """
    from evaluation.robot.simulator import STEPS_PER_SECOND

    if recorded is not None:
        task = recorded["task"]
        require(args.task in (None, task), f"--task is {args.task}, and {folder.folder} was recorded in {task}.")
        return {"task": task, "action_repeat": recorded["action_repeat"]}
    if args.task is None:
        return None
    return {"task": args.task, "action_repeat": max(1, round(STEPS_PER_SECOND / folder.fps))}


def frames_of(args: TrainArgs, folder: Episodes, sight: Sight, recorded: dict | None) -> tuple[str | None, int | None]:
    """(camera, side in pixels) of the frames to read; (None, None) for an arm that sees none.

    Raises:
        ValueError: no such camera, or several and none is named.
    """
    from evaluation.robot.episodes.layout import camera_name

    if sight.resolution is None:
        return None, None
    listed = ", ".join(folder.cameras) or "none"
    if args.camera is None:
        require(
            len(folder.cameras) == 1,
            f"{folder.folder} has {len(folder.cameras)} cameras ({listed}); name one of them with --camera.",
        )
    camera = args.camera or folder.cameras[0]
    short = camera_name(camera)
    require(short in folder.cameras, f"{folder.folder} has no camera '{camera}'; it has {listed}.")
    return short, args.resolution or (recorded or {}).get("resolution") or sight.resolution
