"""Meta-World behind one small face: starts by seed, the wrist's picture, the expert, and errors in one sentence."""

import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("metaworld")

from evaluation.robot.simulator import open_simulator


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
    drawer.step(np.ones(4))
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


def test_without_a_way_to_render():
    code = (
        "from evaluation.robot.simulator import open_simulator\n"
        "try: open_simulator('drawer-open-v3', resolution=16)\n"
        "except OSError as error: print(error)"
    )
    environment = {**os.environ, "MUJOCO_GL": "glfw", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("DISPLAY", None)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "MuJoCo cannot render here (MUJOCO_GL is glfw" in done.stdout and "Traceback" not in done.stderr


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "metaworld", None)
    with pytest.raises(ValueError, match=r"pip install 'modeling-toto\[robots\]'"):
        open_simulator("drawer-open-v3")
