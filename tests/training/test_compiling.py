"""torch.compile in training: when it is the default, where its kernels are kept, and that it keeps the losses."""

import json
import os

import pytest
import torch
from tiny_run import FLAGS
from torch._dynamo.backends.debugging import aot_eager

from training.args import PretrainRunArgs
from training.engine import compiling
from training.flags import parse
from training.pretrain import main

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def triton(monkeypatch):
    monkeypatch.setattr(compiling, "has_triton", lambda device: True)


@pytest.mark.parametrize(
    ("asked", "architecture", "liger", "device", "expected"),
    [
        (None, "llama", False, CUDA, True),
        (None, "patches", False, CUDA, True),
        (None, "llama", False, CPU, False),
        (None, "llama", False, torch.device("mps"), False),
        (None, "llama", True, CUDA, False),
        (None, "mamba", False, CUDA, False),
        (False, "llama", False, CUDA, False),
        (True, "llama", True, CPU, True),
    ],
)
def test_the_default_is_on_with_cuda(asked, architecture, liger, device, expected):
    assert compiling.wants_compile(asked, architecture, liger, device) is expected


def test_a_device_without_triton_is_not_compiled_for(monkeypatch):
    monkeypatch.setattr(compiling, "has_triton", lambda device: False)
    assert not compiling.wants_compile(None, "llama", False, CUDA)
    assert compiling.wants_compile(True, "llama", False, CUDA)  # asked for: torch's own error says what is missing


@pytest.mark.parametrize(
    ("flags", "content", "expected"),
    [
        ([], "", None),
        (["--compile"], "", True),
        (["--compile", "false"], "", False),
        ([], "compile: true", True),
        ([], "compile:", None),
        (["--compile", "false"], "compile: true", False),
    ],
)
def test_flag_and_recipe(flags, content, expected, tmp_path):
    (tmp_path / "r.yaml").write_text(f"max_steps: 3\n{content}\n")
    (args,) = parse((PretrainRunArgs,), ["--recipe", str(tmp_path / "r.yaml"), *flags], "x", "x")
    assert args.compile is expected


def test_the_cache_outlives_the_job(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv(compiling.CACHE, raising=False)
    assert compiling.cache_folder() == tmp_path / "toto" / "inductor"
    assert os.environ[compiling.CACHE] == str(tmp_path / "toto" / "inductor")
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    assert cache_dir() == str(tmp_path / "toto" / "inductor")
    monkeypatch.setenv(compiling.CACHE, "/mine")
    assert str(compiling.cache_folder()) == "/mine"


def test_without_a_writable_home_torch_keeps_its_own(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.delenv(compiling.CACHE, raising=False)
    assert compiling.cache_folder() is None and compiling.CACHE not in os.environ


def test_a_compiled_run_has_the_losses_of_an_eager_one(shards, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(compiling.CACHE, str(tmp_path / "kernels"))
    graphs, kept = [], {}

    def backend(graph, examples):
        graphs.append(graph)
        return aot_eager(graph, examples)

    def compile_with(layer, dynamic):
        layer._compiled_call_impl = torch.compile(layer._call_impl, dynamic=dynamic, backend=backend)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_with)
    for name, flags in (("compiled", ["--compile"]), ("eager", [])):
        run = tmp_path / name
        steps = ["--max_steps", "3", "--logging_steps", "1", "--val_rows", "2", "--report_to", "tensorboard"]
        main([*FLAGS, *steps, *flags, "--shards", str(shards), "--output_dir", str(run)])
        rows = map(json.loads, (run / "metrics.jsonl").open())
        kept[name] = [row.get("loss", row.get("val_loss")) for row in rows]
        told = capsys.readouterr().out
        assert ("blocks are compiled" in told and str(tmp_path / "kernels") in told) is (name == "compiled")
    # all blocks of all steps share one, as do those of the validation; pictures are drawn without
    assert len(graphs) == 2 and len(kept["eager"]) == 4
    assert kept["compiled"] == pytest.approx(kept["eager"], rel=1e-3)
