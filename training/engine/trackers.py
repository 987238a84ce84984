"""Accelerate's trackers (TensorBoard, Weights & Biases, ...): which are wanted, their start, figures and pictures."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from accelerate.utils import LoggerType
from PIL import Image

from training.flags import require

# Accelerate's names that differ from the package's.
PACKAGES = {"comet_ml": "comet-ml"}


def tracker_names(report_to: str | list[str] | None) -> list[str]:
    """The trackers that `--report_to` names, separated by commas or blanks: "tensorboard,wandb"; [] without any.

    Raises:
        ValueError: Accelerate has no such tracker, or its package is not installed.
    """
    text = report_to if isinstance(report_to, str) else " ".join(report_to or ())
    names = list(dict.fromkeys(text.replace(",", " ").split()))
    if names == ["none"]:
        return []
    available = {str(name) for name in get_available_trackers()}
    if "all" in names:
        require(
            bool(available),
            "--report_to all: no tracker is installed; pip install tensorboard, or another one.",
        )
        return sorted(available)
    for name in names:
        require(
            name in LOGGER_TYPE_TO_CLASS,
            f"--report_to {name}: Accelerate has no such tracker; choose from {', '.join(LOGGER_TYPE_TO_CLASS)}, all.",
        )
        require(
            name in available or name not in LoggerType,  # a tracker of the caller, registered with Accelerate
            f"--report_to {name}: the package is too old for Accelerate, or it is not installed; pip install -U "
            f"{PACKAGES.get(name, name)}.",
        )
    return names


def start_trackers(accelerator: Accelerator, folder: Path, settings: dict) -> None:
    """Start the accelerator's trackers with the settings of a run; those that write files write them into `folder`.

    Every tracker stores numbers, booleans and text only; None and lists become text.
    """
    if not accelerator.log_with:
        return
    plain = {
        key: value if isinstance(value, (bool, int, float, str)) else json.dumps(value, default=str)
        for key, value in settings.items()
    }
    places = {"dvclive": {"dir": str(folder / "dvclive"), "save_dvc_exp": False}}
    if "MLFLOW_TRACKING_URI" not in os.environ:
        places["mlflow"] = {"logging_dir": str(folder / "mlruns")}
    try:
        accelerator.init_trackers("toto", config=plain, init_kwargs=places)
    except BaseException:
        accelerator.trackers.clear()  # ending one that has not started would hide this error behind another
        raise


def log_pictures(accelerator: Accelerator, pictures: dict[str, Image.Image], step: int) -> None:
    """Send pictures, by name, to the trackers, each of which has a call of its own; the first process does."""
    for tracker in accelerator.trackers if accelerator.is_main_process else ():
        for name, picture in pictures.items():
            if tracker.name == "tensorboard":
                tracker.log_images({name: np.asarray(picture)[None]}, step=step, dataformats="NHWC")
            elif tracker.name in ("aim", "clearml"):
                tracker.log_images({name: picture}, step=step)
            elif tracker.name == "comet_ml":
                tracker.tracker.log_image(picture, name=name, step=step)
            elif tracker.name == "dvclive":
                tracker.tracker.log_image(f"{name}.png", picture)
            elif tracker.name == "mlflow":
                import mlflow

                mlflow.log_image(picture, key=name.replace("/", "-"), step=step)
            elif tracker.name == "trackio":
                import trackio

                tracker.log({name: trackio.Image(picture)}, step=step)
            elif hasattr(tracker, "log_images"):
                tracker.log_images({name: [picture]}, step=step)
