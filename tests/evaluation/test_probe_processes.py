"""A probe that is killed resumes and ends with the same numbers; two processes find what one finds."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from evaluation.probe.command import main

FLAGS = ("--dataset", "toyworld", "--num_frames", "4", "--max_train", "150", "--max_eval", "60")
FLAGS += ("--heads", "linear", "attention", "--label_column", "motion", "--baselines", "pixels", "--epochs", "4")


# A probe that hangs after its first part of features.
HANG = """
import time
from evaluation.backbones import extraction
from evaluation.probe.command import main
close = extraction._Part.close
def hang(*given):
    close(*given)
    time.sleep(600)
extraction._Part.close = hang
main()
"""


def flags(checkpoint: str, folder) -> list[str]:
    folder.mkdir(exist_ok=True)
    where = ("--output", str(folder / "probe.json"), "--feature_cache", str(folder / "cache"))
    return ["--model", checkpoint, *where, *FLAGS]


@pytest.fixture(scope="module")
def whole(checkpoint, tmp_path_factory) -> dict:
    """The labels' results of a probe that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    main(flags(checkpoint, folder))
    return json.loads((folder / "probe.json").read_text())["tasks"]


def test_killed_while_features_are_made(checkpoint, whole, tmp_path):
    command = [sys.executable, "-c", HANG, *flags(checkpoint, tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not any(tmp_path.glob("cache/*/parts/*.json")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert any(tmp_path.glob("cache/*/parts/*.json")) and not (tmp_path / "probe.json").exists()
    main(flags(checkpoint, tmp_path))
    assert json.loads((tmp_path / "probe.json").read_text())["tasks"] == whole


@pytest.mark.parametrize("more", [(), ("--stream",)], ids=["kept", "streamed"])
def test_two_processes(more, checkpoint, whole, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [sys.executable, *launcher, "-m", "evaluation.probe", *flags(checkpoint, tmp_path), *more]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    made = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr[-3000:]
    two = json.loads((tmp_path / "probe.json").read_text())["tasks"]["motion"]
    rows = zip(two["layers"], whole["motion"]["layers"], strict=True)
    assert all(abs(ours["accuracy"] - theirs["accuracy"]) < 0.05 for ours, theirs in rows)  # sums in another order
