"""What the parts of `toto robot` pass to one another: single observations and whole episodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass
class Observation:
    """What is there before an action.

    image: uint8 (R, R, 3), of one camera.
    state: float32 (P,), proprioception: all that a policy may know besides the image.
    environment_state: float32 (E,), the simulator's own numbers with objects and goal (for controls only), or None.
    success: whether the task has been done.
    """

    image: np.ndarray
    state: np.ndarray
    environment_state: np.ndarray | None = None
    success: bool = False


@dataclass
class Episode:
    """T observations, each with the action that followed it.

    images: uint8 (T, R, R, 3); (T, 0, 0, 3) where no camera was asked for.
    states: float32 (T, P). actions: float32 (T, A). environment_states: float32 (T, E) or None.
    task: what was to be done, in words or as the simulator's name. success: None if not known.
    """

    images: np.ndarray
    states: np.ndarray
    actions: np.ndarray
    environment_states: np.ndarray | None = None
    task: str = ""
    success: bool | None = None
