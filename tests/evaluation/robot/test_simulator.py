"""Meta-World behind one small face: starts by seed, the wrist's picture, the expert, and errors in one sentence."""

import os
import subprocess
import sys

import numpy as np
import pytest
from can_render import require_rendering

from evaluation.robot.simulator import open_simulator

require_rendering()


@pytest.fixture(scope="module")
def drawer():
    simulator = open_simulator("drawer-open-v3", resolution=32)
    yield simulator
    simulator.close()


def test_a_start_depends_on_its_seed_alone(drawer):
    first = drawer.reset(3)
    assert first.image.shape == (32, 32, 3) and first.image.dtype == np.uint8 and first.image.std() > 5
    assert first.state.shape == (8,) and first.environment_state.shape == (39,) and not first.success
    assert np.array_equal(first.state, first.environment_state[[0, 1, 2, 3, 18, 19, 20, 21]])
    other = drawer.reset(1_000_000)
    assert not np.array_equal(other.environment_state, first.environment_state)
    for _ in range(40):  # the drawer is drawn; the next start is as if it had not been
        drawer.step(drawer.expert())
    again = drawer.reset(3)
    assert np.array_equal(again.environment_state, first.environment_state)
    assert np.array_equal(again.image, first.image)
    drawer.step(np.zeros(4))
    assert np.array_equal(first.image, again.image), "an observation's image must not change with the next"


def test_the_expert_succeeds_and_the_rate_is_that_of_the_actions(drawer):
    assert drawer.fps == 40
    observation, steps = drawer.reset(0), 0
    while not observation.success and steps < 100:
        action = drawer.expert()
        assert action.dtype == np.float32 and np.abs(action).max() <= 1
        observation, steps = drawer.step(action), steps + 1
    assert observation.success and steps > 10


def test_bad_input(drawer):
    with pytest.raises(ValueError, match="no task 'drawer-opn-v3'; the closest are drawer-open-v3"):
        open_simulator("drawer-opn-v3")
    with pytest.raises(ValueError, match=r"no camera 'wrist'; it has .*gripperPOV"):
        open_simulator("drawer-open-v3", camera="wrist")
    with pytest.raises(ValueError, match="resolution is 0"):
        open_simulator("drawer-open-v3", resolution=0)
    with pytest.raises(ValueError, match="actions of 4 numbers"):
        drawer.step(np.zeros(3))
    with pytest.raises(ValueError, match="not finite"):
        drawer.step(np.full(4, np.nan))


def test_simulators_side_by_side_and_opened_again(drawer):
    """Opened, closed and rendered in any order; each draws its own scene."""
    before = drawer.reset(1).image
    others = [open_simulator("button-press-topdown-v3", resolution) for resolution in (16, 64, 32)]
    alone = [each.reset(1).image for each in others]
    others[1].close()
    others[1].close()
    with pytest.raises(ValueError, match="is closed"):
        others[1].reset(1)
    with pytest.raises(ValueError, match="is closed"):
        others[1].step(np.zeros(4))
    with pytest.raises(ValueError, match=r"no start yet; call reset\(seed\) first"):
        open_simulator("drawer-open-v3", resolution=16).expert()
    again = open_simulator("drawer-open-v3", resolution=32)
    assert np.array_equal(again.reset(1).image, before) and np.array_equal(drawer.reset(1).image, before)
    assert np.array_equal(others[2].reset(1).image, alone[2]) and not np.array_equal(alone[2], before)
    for each in (others[2], again, others[0]):
        each.close()
    assert np.array_equal(drawer.reset(1).image, before)


def run(code: str, **settings) -> str:
    """What code prints in a process without a display."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL", "PYOPENGL_PLATFORM"):
        environment.pop(name, None)
    environment |= settings
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


TWICE = """
from evaluation.robot.simulator import open_simulator
for _ in range(2):
    try: open_simulator('drawer-open-v3', 16)
    except OSError as error: print(error)
"""
WITHOUT_EGL = """
from OpenGL.platform import ctypesloader
load = ctypesloader.loadLibrary
def without(kind, name, *more, **rest):
    if name == 'EGL': raise OSError('no file libEGL.so')
    return load(kind, name, *more, **rest)
ctypesloader.loadLibrary = without
"""


@pytest.mark.parametrize(
    ("before", "settings"),
    [
        ("", {"MUJOCO_GL": "glfw"}),
        ("import mujoco", {"MUJOCO_GL": "glfw"}),
        (WITHOUT_EGL, {}),
        ("", {"MUJOCO_EGL_DEVICE_ID": "99"}),
    ],
    ids=["no display", "no display, imported before", "no EGL", "no such device"],
)
def test_without_a_way_to_render(before, settings):
    """A sentence each time; MuJoCo itself aborts the process at the second."""
    first, second = run(before + TWICE, **settings).splitlines()
    way = settings.get("MUJOCO_GL", "egl")
    assert first.startswith(f"MuJoCo cannot render here (MUJOCO_GL is {way}: ") and "install EGL" in first
    assert second.startswith("MuJoCo cannot render here")


def test_mujoco_may_have_been_imported_before():
    code = "import mujoco\nfrom evaluation.robot.simulator import open_simulator\n"
    code += "print(open_simulator('drawer-open-v3', 16).reset(0).image.shape)"
    assert run(code) == "(16, 16, 3)\n"
