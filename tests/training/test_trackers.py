"""`--report_to`: settings of every type, several trackers, figures and pictures; a missing package is named."""

import importlib
import json

import numpy as np
import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from accelerate.tracking import register_tracker_class as register
from tiny_run import FLAGS, VQGAN

from training.engine import trackers
from training.pretrain import main as pretrain
from training.train_tokenizer import main as train_tokenizer

AVAILABLE = {str(name) for name in get_available_trackers()}
STEPS = ["--max_steps", "4", "--save_steps", "4", "--eval_steps", "2", "--logging_steps", "1"]
# Where no account and no network are needed.
OFFLINE = {"WANDB_MODE": "offline", "SWANLAB_MODE": "offline", "CLEARML_OFFLINE_MODE": "1", "COMET_START_ONLINE": "0"}


class Recorder(GeneralTracker):
    """A tracker as strict as TensorBoard is with settings; it keeps what it is given."""

    name = "recorder"
    requires_logging_directory = False
    runs = []

    def __init__(self, run_name, **kwargs):
        super().__init__()
        self.settings, self.rows, self.pictures, self.is_finished = None, [], [], False

    @property
    def tracker(self):
        return self

    def start(self):
        self.runs.append(self)

    def store_init_configuration(self, values):
        assert all(isinstance(value, (bool, int, float, str)) for value in values.values()), values
        self.settings = values

    def log(self, values, step=None, **kwargs):
        assert all(isinstance(value, (int, float)) for value in values.values()), values
        self.rows.append({"step": step, **values})

    def log_images(self, values, step=None, **kwargs):
        self.pictures += [(step, name, np.asarray(picture)) for name, found in values.items() for picture in found]

    def finish(self):
        self.is_finished = True


class Second(Recorder):
    name = "second"


@pytest.fixture
def recorders(monkeypatch):
    monkeypatch.setattr(Recorder, "runs", [])
    for kind in (Recorder, Second):
        if kind.name not in LOGGER_TYPE_TO_CLASS:
            register(kind)
    yield Recorder.runs
    for kind in (Recorder, Second):
        LOGGER_TYPE_TO_CLASS.pop(kind.name)


def test_two_trackers_get_settings_figures_and_frames(shards, tmp_path, recorders):
    run = tmp_path / "run"
    pretrain([*FLAGS, *STEPS, "--shards", str(shards), "--output_dir", str(run), "--report_to", "recorder,second"])
    assert [type(each) for each in recorders] == [Recorder, Second]
    logged = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    for each in recorders:
        assert each.is_finished and each.settings["sources"] == "[]" and each.settings["init_from"] == "null"
        assert each.settings["learning_rate"] == 3e-4
        assert [row["loss"] for row in each.rows if "loss" in row] == [row["loss"] for row in logged if "loss" in row]
        assert [(step, name) for step, name, _ in each.pictures] == [(step, "continued/train") for step in (2, 4)]
        picture = each.pictures[0][2]
        assert picture.shape == (2 * 32, 4 * 32, 3) and picture.dtype == np.uint8
        assert np.array_equal(picture[:32, :64], picture[32:, :64])  # the prompt
        assert not np.array_equal(picture[:32, 64:], picture[32:, 64:])


def test_trackers_change_nothing(shards, tmp_path, recorders):
    found = []
    for name, flags in (("with", ["--report_to", "recorder"]), ("without", [])):
        pretrain([*FLAGS, *STEPS, "--shards", str(shards), "--output_dir", str(tmp_path / name), *flags])
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").open()]
        found.append([row.get("loss", row.get("val_loss")) for row in rows])
    assert found[0] == found[1]


def test_reconstructions_of_a_tokenizer(tmp_path, recorders):
    flags = ["--model", json.dumps(VQGAN), "--dataset", "toyworld", "--batch_size", "4", "--eval_frames", "8"]
    train_tokenizer([*flags, *STEPS, "--output_dir", str(tmp_path / "run"), "--report_to", "recorder"])
    (each,) = recorders
    assert [(step, name) for step, name, _ in each.pictures] == [(step, "reconstructions/toyworld") for step in (2, 4)]
    assert each.pictures[0][2].ndim == 3 and each.is_finished
    assert [row["step"] for row in each.rows if "toyworld/val_psnr" in row] == [2, 4]
    assert [row["step"] for row in each.rows if "loss" in row] == [1, 2, 3, 4]


def test_a_tracker_that_cannot_start_says_why(shards, tmp_path, recorders, monkeypatch):
    def start(self):
        raise RuntimeError("no account")

    def finish(self):
        raise AttributeError("not started")

    monkeypatch.setattr(Second, "start", start)
    monkeypatch.setattr(Second, "finish", finish)
    with pytest.raises(RuntimeError, match="no account"):
        flags = ["--shards", str(shards), "--output_dir", str(tmp_path / "run"), "--report_to", "second"]
        pretrain([*FLAGS, *STEPS, *flags])


def test_names(monkeypatch):
    monkeypatch.setattr(trackers, "get_available_trackers", lambda: ["wandb", "mlflow"])
    assert trackers.tracker_names(None) == trackers.tracker_names("none") == []
    assert trackers.tracker_names("wandb, mlflow") == trackers.tracker_names(["wandb", "mlflow"]) == ["wandb", "mlflow"]
    assert trackers.tracker_names("all") == ["mlflow", "wandb"]
    with pytest.raises(ValueError, match=r"--report_to tensorboard: .* not installed; pip install -U tensorboard\."):
        trackers.tracker_names("wandb,tensorboard")
    with pytest.raises(ValueError, match=r"comet_ml: .* pip install -U comet-ml\."):
        trackers.tracker_names("comet_ml")
    with pytest.raises(ValueError, match=r"tensorbord: Accelerate has no such tracker; choose from .*tensorboard"):
        trackers.tracker_names("tensorbord")
    monkeypatch.setattr(trackers, "get_available_trackers", list)
    with pytest.raises(ValueError, match="no tracker is installed; pip install tensorboard"):
        trackers.tracker_names("all")


@pytest.mark.parametrize("name", sorted({*LOGGER_TYPE_TO_CLASS} - {"recorder", "second"}))
def test_every_installed_tracker_starts(name, shards, tmp_path, monkeypatch):
    if name not in AVAILABLE:
        pytest.skip(f"{name} is not installed")
    monkeypatch.chdir(tmp_path)
    for key, value in OFFLINE.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    run = tmp_path / "run"
    pretrain([*FLAGS, *STEPS, "--shards", str(shards), "--output_dir", str(run), "--report_to", name])
    if name != "tensorboard":
        return
    accumulators = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    events = accumulators.EventAccumulator(str(run / "toto")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Images("continued/train")] == [2, 4]
