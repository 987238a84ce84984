"""`benchmarks/gpu_checks.py` runs whole on a CPU; a check that fails or no longer fits keeps no other from running."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import gpu_checks

SCRIPT = Path(gpu_checks.__file__)


def test_every_check_runs_on_a_cpu(tmp_path):
    output = tmp_path / "new" / "checks.jsonl"
    command = [sys.executable, str(SCRIPT), "--tiny", "--output", str(output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert output.read_text() == done.stdout
    about, *rows = map(json.loads, done.stdout.splitlines())
    assert about["check"] == "machine" and about["device"] == "cpu" and about["versions"]["torch"] == torch.__version__
    assert [row["check"] for row in rows] == list(gpu_checks.CHECKS)
    assert all(set(row) == {"check", "seconds", "values"} for row in rows)
    values = {row["check"]: row["values"] for row in rows}
    assert values["peaks"]["bf16_tflops"]["median"] > 0
    for kind in ("eager", "compiled"):
        of = values[f"train_{kind}"]
        assert of[f"toto_{kind}_tokens_per_second"]["median"] > 0 and of[f"{kind}_toto_over_llama"] > 0
        assert of[f"toto_{kind}_mfu_whole_square_of_measured_peak"] > of[f"toto_{kind}_mfu_of_measured_peak"] > 0
    assert values["train_compiled"]["graph_breaks"] == 0
    assert values["recomputation_1b"]["plain_peak_gb"] > values["recomputation_1b"]["checkpointed_peak_gb"] > 0
    assert {"default_64_ms", "default_66_ms"} < set(values["attention"])
    assert values["loss"]["2^12_peak_gb"] > values["loss"]["2^10_peak_gb"]
    assert values["generate"]["small_model_equal_ids"] == values["generate"]["small_model_equal_ids_recomputed"] == 1
    assert values["generate"]["batch2_graph_codes_per_second"]["median"] > 0
    assert 0.5 < values["dvae"]["bf16_code_agreement"] <= 1 and values["dvae"]["distinct_codes"] > 1
    exact = [value for name, value in values["resume"].items() if name.endswith("is_exact")]
    assert exact == [True] * 3  # on a CPU, where the page promises it
    assert values["probes"]["attention_heads_clips_per_second"]["median"] > 0


@pytest.fixture
def checks(monkeypatch):
    """Three checks, of which the second fails."""
    module = ModuleType("made_checks")

    def fails(setup):
        raise RuntimeError("out of\nmemory")

    module.first = module.last = lambda setup, factor=1: {"tiny": setup.tiny, "factor": factor}
    module.fails = fails
    monkeypatch.setitem(sys.modules, "made_checks", module)
    made = {name: ("made_checks", name, {}, seconds) for name, seconds in (("first", 5), ("fails", 5))}
    monkeypatch.setattr(gpu_checks, "CHECKS", made | {"last": ("made_checks", "last", {"factor": 2}, 5)})


def rows_of(capsys) -> dict[str, dict]:
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {row.pop("check"): row for row in rows}


def test_a_check_that_fails_says_so_and_the_others_go_on(checks, capsys, tmp_path):
    (tmp_path / "all.jsonl").write_text('{"check": "of an earlier run"}\n')
    assert gpu_checks.main(["--tiny", "--output", str(tmp_path / "all.jsonl")]) == 1
    lines = (tmp_path / "all.jsonl").read_text().splitlines()
    assert [json.loads(line)["check"] for line in lines] == ["of an earlier run", "machine", "first", "fails", "last"]
    rows = rows_of(capsys)
    assert rows["fails"]["error"] == "RuntimeError: out of memory" and "values" not in rows["fails"]
    assert rows["first"]["values"] == {"tiny": True, "factor": 1} and rows["last"]["values"]["factor"] == 2


def test_what_no_longer_fits_is_skipped(checks, capsys, monkeypatch):
    monkeypatch.setattr(gpu_checks, "time", SimpleNamespace(perf_counter=lambda: 0.0))
    assert gpu_checks.main(["--tiny", "--minutes", "0.005"]) == 0
    rows = rows_of(capsys)
    assert set(rows) == {"machine", "first", "fails", "last"}
    assert rows["fails"]["skipped"] == "needs about 1 s, and 0 s are left"


def test_some_checks_alone(checks, capsys):
    assert gpu_checks.main(["--tiny", "--only", "last"]) == 0
    assert set(rows_of(capsys)) == {"machine", "last"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_only_tiny_runs():
    with pytest.raises(SystemExit, match="no CUDA device here; run this on a GPU, or pass --tiny"):
        gpu_checks.main([])


@pytest.mark.parametrize("flags", [["--minutes", "0"], ["--rounds", "0"], ["--only", "none"]])
def test_nonsense_is_refused(flags, capsys):
    with pytest.raises(SystemExit):
        gpu_checks.parse(flags)
    assert flags[0].lstrip("-") in capsys.readouterr().err


def test_the_checks_fit_into_ten_minutes():
    assert sum(seconds for *_, seconds in gpu_checks.CHECKS.values()) <= 600
    assert list(gpu_checks.CHECKS)[-1] == "train_compiled"
