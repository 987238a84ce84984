"""`toto sweep mup`: finds a known optimum, runs its grid, and resumes where it was stopped."""

import json
import math
import random
import shutil

import pytest
from tiny_run import CONFIG

from training.sweep.mup import MupSweepArgs, best_rate, grid, main, optimum
from training.sweep.run_grid import OUTCOME, Point, run_grid


def bowl(bottom, noise=0.0, seed=0, rates=range(-12, -2)):
    draw = random.Random(seed)
    return {rate: 4 + 0.05 * (rate - bottom) ** 2 + draw.gauss(0, noise) for rate in rates}


@pytest.mark.parametrize("bottom", [-9.3, -7.0, -5.6])
def test_the_bottom_of_a_parabola_is_found(bottom):
    assert best_rate(bowl(bottom)) == pytest.approx(bottom, abs=1e-6)
    runs = [
        {"log2_rate": rate, "seed": seed, "val_loss": loss}
        for seed in range(4)
        for rate, loss in bowl(bottom, 0.02, seed).items()
    ]
    found = optimum(runs)
    assert found["interval"][0] <= found["log2_rate"] <= found["interval"][1]
    assert found["log2_rate"] == pytest.approx(bottom, abs=0.3) and abs(found["lowest"] - bottom) < 1


def test_runs_that_diverged_lift_their_side():
    losses = bowl(-7.0) | {-4: math.inf, -3: math.inf}
    assert best_rate(losses) == pytest.approx(-7.0, abs=0.01)
    found = optimum([{"log2_rate": r, "seed": 0, "val_loss": loss} for r, loss in losses.items()])
    assert found["log2_rate"] == pytest.approx(-7.0, abs=0.01)


def test_an_optimum_outside_the_grid_is_not_invented():
    assert best_rate(bowl(-1.0)) is None and best_rate(bowl(-20.0)) is None
    assert best_rate({-8: math.inf, -7: 3.0, -6: math.inf}) is None


BASE = json.dumps(CONFIG | {"head_dim": 16})
SMALL = ["--config", BASE, "--widths", "16", "32", "--log2_rates", "-9", "-7", "-5", "--seeds", "1"]
SMALL += ["--max_steps", "3", "--warmup_steps", "1", "--tokens_per_step", "256"]


@pytest.fixture(scope="module")
def swept(shards, tmp_path_factory):
    output = tmp_path_factory.mktemp("sweep") / "sweep.json"
    main([*SMALL, "--shards", str(shards), "--output", str(output)])
    return output


def test_the_base_width_is_one_model_in_both_parametrisations(shards):
    args = MupSweepArgs(shards=str(shards), config=BASE, widths=[16, 32], log2_rates=[-9, -7, -5], seeds=1)
    placed = grid(args)
    assert len(placed) == 12 and len({point.name for point, _ in placed}) == 9
    for point, place in placed:
        fields = json.loads(point.flags[point.flags.index("--config") + 1])
        is_mup = place["parametrisation"] == "muP" and place["width"] != 32
        assert (fields.get("mup_base_width") == 32) == is_mup
        assert fields["hidden_size"] == place["width"]


def test_a_sweep_writes_data_and_figure(swept):
    result = json.loads(swept.read_text())
    assert len(result["runs"]) == 12 and all(math.isfinite(run["val_loss"]) for run in result["runs"])
    both = {(r["parametrisation"], r["width"], r["log2_rate"]): r["val_loss"] for r in result["runs"]}
    for rate in (-9, -7, -5):
        assert both["muP", 32, rate] == both["standard", 32, rate]
        assert both["muP", 16, rate] != both["standard", 16, rate]
    assert swept.with_suffix(".png").stat().st_size > 10_000
    assert {row["width"] for row in result["optima"]} == {16, 32}


def test_a_sweep_resumes_where_it_was_stopped(swept, shards, capsys):
    folder = swept.with_name("sweep_runs")
    before = {path.parent.name: path.stat().st_mtime_ns for path in folder.glob(f"*/{OUTCOME}")}
    lost = "muP-16-lr-7-seed0"
    (folder / lost / OUTCOME).unlink()  # as if killed in this run
    losses = json.loads(swept.read_text())["runs"]
    main([*SMALL, "--shards", str(shards), "--output", str(swept)])
    after = {path.parent.name: path.stat().st_mtime_ns for path in folder.glob(f"*/{OUTCOME}")}
    assert [name for name in before if before[name] != after[name]] == [lost]
    assert json.loads(swept.read_text())["runs"] == losses  # it gave the same number again
    assert not list(folder.glob("*/checkpoints"))


def test_a_grid_refuses_other_flags_and_reports_refused_runs(swept, shards, tmp_path):
    flags = [*SMALL, "--max_steps", "4", "--shards", str(shards), "--output", str(swept)]
    with pytest.raises(ValueError, match="was run with other flags; name another folder"):
        main(flags)
    bad = Point("bad", ("--preset", "tiny", "--shards", str(shards), "--max_steps", "1"))
    with pytest.raises(ValueError, match=r"The run bad failed: .*do not fit the model.*bad\.log"):
        run_grid([bad], tmp_path / "runs", 1, "grid")
    shutil.rmtree(tmp_path / "runs")


def test_bad_calls_get_a_sentence(shards):
    with pytest.raises(ValueError, match="--shards DIR"):
        main([])
    with pytest.raises(ValueError, match="--parametrisations has spectral; the parametrisations are muP and standard"):
        main(["--shards", str(shards), "--parametrisations", "spectral"])
