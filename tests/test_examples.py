"""The examples run as they are, from another folder, at tiny sizes: nothing but environment variables differs."""

import ast
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
# Python runs it when it starts: no child of an example (`python -c ...`) finds the project, wherever it is installed.
SITECUSTOMIZE = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("modeling_toto", "tokenization", "training", "evaluation"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
if "-c" in sys.orig_argv:
    sys.meta_path.insert(0, Block())
"""


@pytest.fixture
def run_example(tmp_path, monkeypatch, checkpoint):
    """Runs an example in this process, in an empty folder; returns its names."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MODEL", checkpoint)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))

    def run(name: str, **sizes) -> dict:
        for key, value in sizes.items():
            monkeypatch.setenv(key, str(value))
        return runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")

    yield run
    # Trainer leaves a state behind, which refuses another precision to the next Accelerator of the process.
    AcceleratorState._reset_state(reset_partial_state=True)


def test_features_and_a_probe(run_example, capsys):
    names = run_example("features_and_probe", MAX_PHOTOS=40)
    assert names["features"].pooled.shape == (4, 40, 32) and list(names["probe"].val_accuracies) == [0, 1, 2, 3]
    assert len(names["train"]) == 24 and 0 <= names["probe"].accuracy <= 1
    assert "chosen on validation: layer" in capsys.readouterr().out
    assert Image.open("out/features_and_probe/layers.png").width == 600


def test_pretraining_and_a_continued_clip(run_example, capsys):
    sizes = {"CLIPS": 24, "STEPS": 2, "TOKENS_PER_STEP": 1024}
    names = run_example("pretrain_and_continue", **sizes)
    assert names["frames"].shape == (16, 64, 64, 3) and len(names["losses"]) == 1
    assert (names["run"] / "checkpoints" / "step_000002" / "model.safetensors").is_file()
    assert Image.open("out/pretrain_and_continue/continued.png").size == (16 * 64, 2 * 64)
    again = run_example("pretrain_and_continue", **sizes)  # cells that are run again do the work once
    assert "step 2/2" in capsys.readouterr().out and (again["frames"] == names["frames"]).all()


def test_finetuning_with_trainer_and_peft(run_example, capsys):
    pytest.importorskip("peft")
    names = run_example("finetune_with_trainer_and_peft", MAX_PHOTOS=40, STEPS=2)
    told = capsys.readouterr().out
    assert "all weights: " in told and "LoRA: " in told and len(names["found"]) == 8
    out = Path("out/finetune")
    assert (out / "classifier" / "model.safetensors").is_file()
    # the adapter is small, and has the head
    assert (out / "adapter" / "adapter_model.safetensors").stat().st_size < 40_000
    low_rank = {name for name, _ in names["classifier"].named_parameters() if "lora_A" in name}
    assert len(low_rank) == 6, "q_proj and v_proj of three blocks"


def test_loading_from_a_folder(run_example, capsys):
    run_example("push_and_load")
    told = capsys.readouterr().out
    assert "nothing was pushed" in told and "transformers_modules.model." in told
    assert Image.open("out/push_and_load/continued.png").size == (4 * 32, 32)


def test_pushing_and_loading(checkpoint, tmp_path):
    """With a Hub on this machine; what was pushed loads where the project cannot be imported."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(SITECUSTOMIZE)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_test", "HF_HOME": str(tmp_path / "hf")}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    environment |= {"PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{ROOT}"}
    environment |= {"MODEL": checkpoint, "REPO": "tester/example", "OUT": str(tmp_path / "out")}

    def python(*command) -> subprocess.CompletedProcess:
        command = [sys.executable, *map(str, command)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600)

    assert "No module named 'evaluation'" in python("-c", "import evaluation").stderr
    server = [sys.executable, ROOT / "tests" / "loopback_hub.py"]
    with subprocess.Popen(server, stdout=subprocess.PIPE, text=True) as hub:
        try:
            environment["HF_ENDPOINT"] = hub.stdout.readline().strip()
            done = python(ROOT / "examples" / "push_and_load.py")
        finally:
            hub.terminate()
    assert done.returncode == 0, done.stderr[-5000:]
    assert "/tester/example/commit/" in done.stdout and "transformers_modules.tester.example." in done.stdout
    assert Image.open(tmp_path / "out" / "continued.png").size == (4 * 32, 32)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_a_short_notebook(path):
    text = path.read_text()
    ast.parse(text)
    assert text.startswith("# %% [markdown]\n# # ") and text.count("\n# %%") >= 4
    assert len(text.splitlines()) <= 110


def test_every_example_is_run():
    source = Path(__file__).read_text()
    assert len(EXAMPLES) == 5
    for path in EXAMPLES:
        assert f'"{path.stem}"' in source


def test_tasks_of_datatrove(run_example):
    pytest.importorskip("datatrove")
    names = run_example("tokenize_with_datatrove", MAX_CLIPS=3)
    assert (names["shards"] / "manifest.json").is_file() and len(
        list((names["OUT"] / "log/completions").iterdir())
    ) == 4
