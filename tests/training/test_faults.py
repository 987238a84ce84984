"""What a run does about faults and noise: limits of waiting, the garbage collector, deterministic mode, a profile."""

import gc
import gzip
import json
import os
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml
from tiny_run import FLAGS

import training.engine.loop
from training.engine.device import (
    CHECKPOINT_GROUP,
    CHECKPOINT_LIMIT,
    EVALUATION_LIMIT,
    STEP_LIMIT,
    deterministic,
    limit_collectives,
    make_accelerator,
)
from training.engine.hangs import RECORDER, set_flight_recorder
from training.engine.progress import slowest_rank
from training.pretrain import main


def test_a_run_limits_waiting_freezes_the_collector_and_writes_a_trace(shards, tmp_path, monkeypatch):
    run, limits, seen = tmp_path / "run", [], []

    def note(limit):
        limits.append(limit)
        seen.append((gc.get_freeze_count() > 0, torch.are_deterministic_algorithms_enabled()))

    monkeypatch.setattr(training.engine.loop, "limit_collectives", note)
    flags = [*FLAGS, "--max_steps", "4", "--save_steps", "4", "--eval_steps", "4", "--val_rows", "4"]
    flags += ["--deterministic", "true", "--profile", "2", "--shards", str(shards), "--output_dir", str(run)]
    main(flags)
    assert limits == [STEP_LIMIT, EVALUATION_LIMIT, STEP_LIMIT, CHECKPOINT_LIMIT, STEP_LIMIT]
    assert STEP_LIMIT == timedelta(minutes=10) < CHECKPOINT_LIMIT < EVALUATION_LIMIT
    assert seen == [(True, True)] * 5
    assert gc.get_freeze_count() == 0 and not torch.are_deterministic_algorithms_enabled()
    (trace,) = run.glob("trace_step_*.json.gz")
    with gzip.open(trace) as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {name for name in names if str(name).startswith("ProfilerStep#")} == {"ProfilerStep#2", "ProfilerStep#3"}
    assert "aten::mm" in names
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert recipe["deterministic"] is True and "profile" not in recipe  # a resumed run does not write another trace


def test_too_few_steps_to_profile(shards, tmp_path):
    with pytest.raises(ValueError, match="--profile 3 needs 5 steps, but 4 are left; lower it"):
        main(
            [*FLAGS, "--max_steps", "4", "--profile", "3", "--shards", str(shards), "--output_dir", str(tmp_path / "r")]
        )


def test_limits_reach_the_group_of_processes():
    limit_collectives(STEP_LIMIT)  # without processes, nothing
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1, timeout=EVALUATION_LIMIT)
    try:
        subgroup = dist.new_group([0], timeout=EVALUATION_LIMIT)
        writers = dist.new_group([0], timeout=CHECKPOINT_LIMIT, group_desc=CHECKPOINT_GROUP)
        limit_collectives(STEP_LIMIT)
        for group, limit in ((dist.group.WORLD, STEP_LIMIT), (subgroup, STEP_LIMIT), (writers, CHECKPOINT_LIMIT)):
            assert group._get_backend(torch.device("cpu")).options._timeout == limit
    finally:
        dist.destroy_process_group()


def test_the_flight_recorder_writes_to_the_run_unless_the_user_set_it(tmp_path, monkeypatch):
    for names in RECORDER:
        for name in names[:2]:
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TORCH_NCCL_TRACE_BUFFER_SIZE", "7")
    monkeypatch.setenv("TORCH_NCCL_DUMP_ON_TIMEOUT", "0")
    monkeypatch.setenv("TORCH_FR_DUMP_TEMP_FILE", "")  # so that it is restored
    monkeypatch.delenv("TORCH_FR_DUMP_TEMP_FILE")
    set_flight_recorder(tmp_path)
    assert os.environ["TORCH_FR_DUMP_TEMP_FILE"] == f"{tmp_path}/flight_recorder_rank_"
    assert "TORCH_FR_BUFFER_SIZE" not in os.environ and os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "0"
    os.environ["TORCH_FR_DUMP_TEMP_FILE"] = "of the user"
    set_flight_recorder(tmp_path)
    assert os.environ["TORCH_FR_DUMP_TEMP_FILE"] == "of the user"
    header = Path(torch.__file__).parent / "include/torch/csrc/distributed/c10d"
    known = "".join((header / name).read_text() for name in ("FlightRecorder.hpp", "ProcessGroupNCCL.hpp"))
    assert all(name in known for names in RECORDER[:2] for name in names[:2])


def test_deterministic_refuses_what_is_not(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with deterministic(True):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
            torch.ones(2, 2, 2, 2).put_(torch.tensor([0, 0]), torch.ones(2), accumulate=False)
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("reduction, dtype", [("fp32", None), ("bf16", torch.bfloat16)])
def test_gradients_of_fsdp2_are_reduced_as_asked(reduction, dtype, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    given = {}
    monkeypatch.setattr("training.engine.device.Accelerator", lambda **settings: given.update(settings))
    make_accelerator(reduction)
    policy = given["fsdp_plugin"].mixed_precision_policy
    assert policy.reduce_dtype is dtype and policy.param_dtype is None
    hook = given["kwargs_handlers"][0].comm_hook.value
    assert hook == {"fp32": "no", "bf16": "bf16"}[reduction]


def test_the_slowest_rank():
    found, line = slowest_rank([[0.2, 0.1], [0.9, 0.8], [0.3, 0.1], [0.3, 0.1]], step=1.0)
    assert found == {"rank": 1, "seconds": 0.9, "median": 0.3}
    assert line.startswith("rank 1 is slow: 0.9 s of a step before it meets the others (0.8 s waiting for data)")
    assert slowest_rank([[0.3, 0], [0.35, 0]], step=0.5)[1] is None  # a sixth more
    assert slowest_rank([[0.01, 0], [0.04, 0]], step=1.0)[1] is None  # four times, but little of a step
