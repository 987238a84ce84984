"""Skips tests that render where the machine cannot; tried in another process, as failing drivers may abort it."""

import functools
import os
import subprocess
import sys

import pytest

CODE = "import mujoco; mujoco.Renderer(mujoco.MjModel.from_xml_string('<mujoco/>'), 16, 16).render()"


def require_rendering() -> None:
    """Skip the module or test that calls it, unless Meta-World is installed and MuJoCo renders without a display."""
    if reason := why_not():
        pytest.skip(reason, allow_module_level=True)


@functools.cache
def why_not() -> str | None:
    pytest.importorskip("metaworld")
    environment = {"MUJOCO_GL": "egl", **os.environ}
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment, check=False)
    if done.returncode == 0:
        return None
    return f"MuJoCo cannot render here: {(done.stderr.strip().splitlines() or [f'exit {done.returncode}'])[-1]}"
