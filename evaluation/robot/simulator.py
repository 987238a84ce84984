"""Meta-World tasks as `toto robot` uses them: starts by seed, one camera, a scripted expert.

Published benchmarks draw 50 starts per seed; here every seed is one start, drawn from the task's whole space (ours).
"""

from __future__ import annotations

import atexit
import difflib
import importlib
import os
import sys
import warnings
from dataclasses import dataclass

import numpy as np

from evaluation.robot.observations import Observation

EXTRA = "Simulated robots need Meta-World; pip install 'modeling-toto[robots]'."
GRIPPER = ("hand_x", "hand_y", "hand_z", "opening")
STATE_NAMES = (*GRIPPER, *(f"previous_{name}" for name in GRIPPER))
ACTION_NAMES = ("delta_x", "delta_y", "delta_z", "grip")
ENVIRONMENT_NAMES = tuple(f"number_{k}" for k in range(39))
# Of the simulator's 39 numbers, those of the gripper now and one step before; the others hold objects and goal.
OF_GRIPPER = [0, 1, 2, 3, 18, 19, 20, 21]
STEPS_PER_SECOND = 80  # of the library
_failure: str | None = None  # why no renderer could be made in this process
HORIZON = 500  # the library's own steps, after which its benchmarks end an episode


@dataclass(frozen=True)
class TaskFacts:
    """words: the task as an instruction. analogue: the task of the paper that it stands next to."""

    words: str
    analogue: str


TASKS = {
    "drawer-open-v3": TaskFacts("open the drawer", "cabinet"),
    "pick-place-v3": TaskFacts("pick up the puck and bring it to the goal", "pick"),
    "button-press-topdown-v3": TaskFacts("press the button from above", "easy control"),
}


def open_simulator(task: str, resolution: int = 128, camera: str = "gripperPOV", action_repeat: int = 2) -> Simulator:
    """A simulator of a task, by the library's name of it; close it after use.

    Args:
        task: a key of TASKS or any other Meta-World v3 task.
        resolution: side of the images in pixels.
        camera: name of a camera of the task's scene; gripperPOV looks from the wrist.
        action_repeat: steps of the library (80 per second) for which an action is held.
    Raises:
        ValueError: an unknown task or camera, the extra is missing, or a number is below 1.
        OSError: MuJoCo cannot render here.
    """
    return Simulator(task, resolution, camera, action_repeat)


class Simulator:
    """One scene. Observations hold the image, the gripper's 8 numbers and, for controls, all 39 numbers."""

    state_size, action_size, environment_size = len(STATE_NAMES), len(ACTION_NAMES), len(ENVIRONMENT_NAMES)

    def __init__(self, task: str, resolution: int, camera: str, action_repeat: int):
        self.renderer = None
        for name, value in (("resolution", resolution), ("action_repeat", action_repeat)):
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        kinds, experts = _library()
        if task not in kinds:
            near = difflib.get_close_matches(task, kinds, n=3, cutoff=0.4) or list(TASKS)
            raise ValueError(f"There is no task '{task}'; the closest are {', '.join(near)}.")
        self.task, self.camera, self.action_repeat = task, camera, action_repeat
        self.environment = kinds[task]()
        self.model, self.data = self.environment.model, self.environment.data
        cameras = [self.model.camera(index).name for index in range(self.model.ncam)]
        if camera not in cameras:
            raise ValueError(f"The scene of {task} has no camera '{camera}'; it has {', '.join(cameras)}.")
        self._observe_goal()
        self.fps = max(1, round(1 / (self.environment.dt * action_repeat)))
        self._expert = experts[task]()
        self._numbers: np.ndarray | None = None
        # Before the renderer is made: without these a frame takes ten times as long on a CPU.
        self.model.vis.quality.shadowsize = self.model.vis.quality.offsamples = 0
        self.model.vis.global_.offwidth = self.model.vis.global_.offheight = resolution
        self.renderer = _renderer(self.model, resolution)
        # Registered after MuJoCo's own clean-up of EGL and so called before it, which avoids errors at exit.
        atexit.register(self.close)

    def _observe_goal(self) -> None:
        """Let the 39 numbers hold the goal, which the experts need; starts are drawn here and not by the library."""
        environment = self.environment
        environment._partially_observable = False
        environment.__dict__.pop("sawyer_observation_space", None)  # cached for a hidden goal
        environment._set_task_called, environment.seeded_rand_vec = True, True
        environment.max_path_length = 10**9

    def reset(self, seed: int) -> Observation:
        """Start anew; object and goal depend on `seed`, any integer, alone.

        Raises:
            ValueError: it is closed.
        """
        self._require_open()
        environment = self.environment
        environment.np_random = np.random.default_rng([abs(seed), int(seed < 0)])
        environment._freeze_rand_vec = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            environment.reset_model()
            # The hand is settled while the scene is the one before. With the start drawn, settle it in its own scene.
            environment._freeze_rand_vec = True
            self._numbers, _ = environment.reset()
        return self._observation(False)

    def step(self, action: np.ndarray) -> Observation:
        """Hold an action, float (A,) in [-1, 1], for `action_repeat` steps, or until the task is done.

        Raises:
            ValueError: an action of another length or not finite, no `reset` before, or it is closed.
        """
        self._require_start()
        action = np.asarray(action, np.float32)
        if action.shape != (self.action_size,):
            raise ValueError(f"{self.task} takes actions of {self.action_size} numbers, not of shape {action.shape}.")
        if not np.isfinite(action).all():
            raise ValueError(f"The action {action.tolist()} is not finite.")
        success = False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(self.action_repeat):
                self._numbers, _, _, _, info = self.environment.step(np.clip(action, -1, 1))
                success = bool(info["success"])
                if success:
                    break
        return self._observation(success)

    def expert(self) -> np.ndarray:
        """The action of the library's script in the present state, clipped to [-1, 1]: float32 (A,)."""
        self._require_start()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that its actions will be clipped
            return np.clip(self._expert.get_action(self._numbers), -1, 1).astype(np.float32)

    def _require_open(self) -> None:
        if self.renderer is None:
            raise ValueError("The simulator is closed; open another one.")

    def _require_start(self) -> None:
        self._require_open()
        if self._numbers is None:
            raise ValueError("The simulator has no start yet; call reset(seed) first.")

    def _observation(self, success: bool) -> Observation:
        self.renderer.update_scene(self.data, camera=self.camera)
        numbers = self._numbers.astype(np.float32)
        return Observation(self.renderer.render().copy(), numbers[OF_GRIPPER], numbers, success)

    def close(self) -> None:
        """Free the renderer and the scene, some 80 MB; a second call does nothing."""
        if self.renderer is not None:
            atexit.unregister(self.close)
            self.renderer.close()
            self.renderer = self.environment = self.model = self.data = None


def _library() -> tuple[dict, dict]:
    """(name -> class of the task, name -> class of its expert)."""
    _import_mujoco()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from metaworld import ALL_V3_ENVIRONMENTS
            from metaworld.policies import ENV_POLICY_MAP
    except ModuleNotFoundError as error:
        raise ValueError(EXTRA) from error
    return ALL_V3_ENVIRONMENTS, ENV_POLICY_MAP


def _import_mujoco() -> None:
    """Import MuJoCo so that it draws without a display where there is none.

    MuJoCo reads MUJOCO_GL once, when it is imported, which another package may have done before; what it chose then is
    replaced.
    """
    has_display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform == "linux" and not (has_display or os.environ.get("MUJOCO_GL")):
        os.environ["MUJOCO_GL"] = "egl"
    way = os.environ.get("MUJOCO_GL", "").lower()
    try:
        from mujoco import gl_context

        if way in ("egl", "osmesa"):
            gl_context.GLContext = importlib.import_module(f"mujoco.{way}").GLContext
    except ModuleNotFoundError as error:
        if error.name == "mujoco":
            raise ValueError(EXTRA) from error
        raise OSError(_no_rendering(error)) from error
    except (ImportError, AttributeError, RuntimeError, OSError) as error:  # of PyOpenGL, without the library of EGL
        raise OSError(_no_rendering(error)) from error


def _renderer(model, resolution: int):
    """A renderer of square images.

    MuJoCo must not be asked for a renderer while there is no context of OpenGL: the first time is an error, and the
    second aborts the process. So a context is made and given back before.
    """
    import mujoco

    global _failure
    if _failure is not None:
        raise OSError(_failure)
    made = mujoco.gl_context.GLContext
    made._context = None  # otherwise one that could not be made complains when it is deleted
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # GLFW's own words, when there is no display
            context = made(resolution, resolution)
        if not context._context:
            raise RuntimeError("no display")
        context.free()
        return mujoco.Renderer(model, resolution, resolution)
    except (ImportError, AttributeError, RuntimeError, OSError, mujoco.FatalError) as error:
        _failure = _no_rendering(error)
        raise OSError(_failure) from error


def _no_rendering(error: Exception) -> str:
    way = os.environ.get("MUJOCO_GL", "not set")
    return (
        f"MuJoCo cannot render here (MUJOCO_GL is {way}: {' '.join(str(error).split())}); install EGL (libegl1 and a "
        "driver such as Mesa), or set MUJOCO_GL to egl, osmesa or glfw, whichever this machine has."
    )
