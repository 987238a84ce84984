"""Health of a run: what is logged is what happened; infinite steps change nothing and are limited."""

import json
import time
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from tiny_run import CONFIG, FLAGS
from torch.distributed.tensor import Replicate, Shard
from torch.utils._python_dispatch import TorchDispatchMode

import training.next_tokens
from modeling_toto import TotoConfig, TotoForCausalLM
from training import find_model
from training.architectures import flops_per_token
from training.args import OptimArgs, PretrainOptimArgs
from training.engine.device import fast_autocast
from training.engine.loop import _Loop
from training.engine.optim import make_optimizer, set_learning_rate
from training.engine.progress import Clock, peak_memory, update_ratios
from training.pretrain import main
from training.rows.mixture import RowStream
from training.rows.shard_rows import validation_rows

CONFIG = TotoConfig.from_preset("tiny", **CONFIG)
STEPS = ["--max_steps", "8", "--save_steps", "4", "--logging_steps", "1"]


def rows_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").open()]


def test_update_ratios_are_how_far_the_step_went():
    torch.manual_seed(0)
    model = TotoForCausalLM(CONFIG)
    optimizer = make_optimizer(model, OptimArgs())
    ids = torch.randint(64, 96, (2, 66))
    for rate in (1e-3, 4e-3):
        set_learning_rate(optimizer, rate)
        model(input_ids=ids, labels=ids).loss.backward()
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
        found = update_ratios(model, optimizer)
        assert set(found) == {"embedding", "attention", "mlp", "norm"}
        for part, sign in (("attention", "self_attn"), ("mlp", ".mlp."), ("embedding", "embed_tokens")):
            parts = [(before[n], p.detach()) for n, p in model.named_parameters() if sign in n]
            moved = sum((new - old).square().sum() for old, new in parts) ** 0.5
            size = sum(new.square().sum() for _, new in parts) ** 0.5
            assert found[part] == pytest.approx((moved / size).item(), rel=2e-3)


class Readings(TorchDispatchMode):
    """The number of times that the host reads a number from a tensor."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("optim", [OptimArgs(), PretrainOptimArgs(optimizer="muon")], ids=["adamw", "muon"])
def test_update_ratios_read_no_number_of_a_parameter(optim):
    """On a GPU each reading waits for the device. The table of all parts is copied whole, which is no such reading."""
    model = TotoForCausalLM(CONFIG)
    optimizer = make_optimizer(model, optim)
    ids = torch.randint(64, 96, (2, 66))
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    with Readings() as readings:
        float(torch.ones(()))
        assert readings.count == 1
        assert len(update_ratios(model, optimizer)) == 4
    assert readings.count == 1


def test_update_ratios_of_sharded_weights_are_summed_once(monkeypatch):
    """HSDP: sums go over the processes that share a copy, not over the copies. The other process has not moved."""
    model = torch.nn.Linear(4, 4, bias=False)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 4)).sum().backward()
    optimizer.step()
    alone = update_ratios(model, optimizer)["other"]
    model.weight.device_mesh = SimpleNamespace(get_group=lambda dim: f"group {dim}")
    model.weight.placements = (Replicate(), Shard(0))
    exchanged = []

    def all_reduce(table, group):
        exchanged.append((group, table.shape))
        table[:, 1] *= 4  # weights of three times the square elsewhere

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    assert update_ratios(model, optimizer)["other"] == pytest.approx(alone / 2)
    assert exchanged == [("group 1", (1, 2))]


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory):
    run = tmp_path_factory.mktemp("healthy") / "run"
    main([*FLAGS, *STEPS, "--shards", str(shards), "--output_dir", str(run)])
    return run


def test_the_log_adds_up(run):
    trained = [row for row in rows_of(run) if "loss" in row]
    last = trained[-1]
    assert last["flops"] / last["tokens"] == flops_per_token(CONFIG)
    assert [row["tokens"] for row in trained] == [256 * step for step in range(1, 9)]
    assert 0 < last["data_wait"] < 1 and last["skipped_steps"] == 0
    assert 50 < last["peak_memory_mb"] <= peak_memory(torch.device("cpu"))
    assert last["sources"]["train"]["rows"] == 8 * 4 and last["sources"]["train"]["share"] == 1
    assert all(row["sources"]["train"]["loss"] == pytest.approx(row["loss"]) for row in trained)


def test_loss_maps_are_the_models_losses_at_every_place(run, shards):
    maps = json.loads((run / "loss_maps.json").read_text())
    assert (maps["num_frames"], maps["grid"], maps["step"]) == (4, [4, 4], 8)
    rows = validation_rows(shards, None, CONFIG)
    with torch.no_grad(), fast_autocast(torch.device("cpu")):
        nats = TotoForCausalLM.from_pretrained(find_model.latest(run))(rows, labels=rows).token_losses[:, 1:-1].mean(0)
    assert maps["sources"]["train"] == pytest.approx(nats.tolist(), rel=1e-4)
    last = rows_of(run)[-1]
    assert last["val_frame_losses"] == pytest.approx(nats.view(4, 16).mean(1).tolist(), rel=1e-4)
    assert last["val_losses"] == {"train": pytest.approx(last["val_loss"])}


def infinite_at(monkeypatch, steps):
    """The loss of these steps becomes infinite."""
    real, calls = training.next_tokens.losses, []

    def losses(model, rows, device, accumulation):
        found = real(model, rows, device, accumulation)
        if model.training:
            calls.append(0)
            if len(calls) in steps:
                found.loss, found.token_losses = found.loss * torch.inf, found.token_losses * torch.inf
        return found

    monkeypatch.setattr(training.next_tokens, "losses", losses)


def test_infinite_steps_are_skipped_counted_and_change_nothing(run, shards, tmp_path, monkeypatch):
    infinite_at(monkeypatch, (3, 4))
    flags = [*FLAGS, *STEPS, "--shards", str(shards), "--max_skipped_steps", "2"]
    main([*flags, "--output_dir", str(tmp_path / "run")])
    rows = [row for row in rows_of(tmp_path / "run") if "val_loss" not in row]
    assert [row["step"] for row in rows if "loss" not in row] == [3, 4]
    assert [row["skipped_steps"] for row in rows] == [0, 0, 1, 2, 2, 2, 2, 2]
    before = [row["loss"] for row in rows_of(run) if "loss" in row]
    assert [row["loss"] for row in rows[:2]] == before[:2]
    # Step 5 starts from the weights of step 2: its loss is none of a model that was moved by an infinite gradient.
    assert rows[4]["loss"] == pytest.approx(before[2], abs=0.3)
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        assert "NaN" not in line and "Infinity" not in line


def test_too_many_infinite_steps_end_the_run(shards, tmp_path, monkeypatch):
    infinite_at(monkeypatch, (5, 6, 7))
    flags = [*FLAGS, *STEPS, "--shards", str(shards), "--max_skipped_steps", "2"]
    with pytest.raises(
        ValueError,
        match=r"not finite at step 7 .*in the 2 steps before; lower --learning_rate.*last checkpoint is .*step_000004",
    ):
        main([*flags, "--output_dir", str(tmp_path / "run")])


def test_a_run_that_waits_for_its_data_says_so_once(shards, tmp_path, capsys, monkeypatch):
    """Rows are as late as the step before them took, however busy the machine is."""
    take, before = RowStream.take, []

    def late(self, count):
        if before:
            time.sleep(time.perf_counter() - before[-1])
        rows = take(self, count)
        before.append(time.perf_counter())
        return rows

    monkeypatch.setattr(RowStream, "take", late)
    main([*FLAGS, *STEPS, "--shards", str(shards), "--output_dir", str(tmp_path / "run")])
    assert capsys.readouterr().out.count("The data is too slow for the device") == 1


def test_minutes_become_steps_once(monkeypatch):
    monkeypatch.setattr("training.engine.loop.broadcast_object_list", lambda values: values)
    clock = Clock(None, 1.0, 1.0, 1)
    clock.seconds, clock.last, clock.taken = 30.0, 2.0, 2  # what is left of two minutes takes 45 steps more
    assert clock.steps_in(120) == 45 and clock.steps_in(20) == 1
    loop = _Loop.__new__(_Loop)
    loop.clock, loop.args, loop.bar = clock, SimpleNamespace(max_minutes=2), SimpleNamespace(total=100)
    loop.step, loop.max_steps, loop.is_budgeted = 4, 100, False
    loop._budget()  # the first steps are slower
    assert loop.max_steps == 100
    loop.step = 5
    loop._budget()
    assert loop.max_steps == loop.bar.total == 50 and loop.is_budgeted
    clock.last = 20.0
    loop._budget()
    assert loop.max_steps == 50


def test_sources_that_end_end_the_run(shards, tmp_path, capsys):
    source = json.dumps({"data": str(shards), "at_end": "stop"})
    flags = [*FLAGS, *STEPS, "--max_steps", "100", "--sources", source, "--output_dir", str(tmp_path / "run")]
    main(flags)
    steps = rows_of(tmp_path / "run")[-1]["step"]
    assert steps < 100 and f"The data end after step {steps}" in capsys.readouterr().out
    assert find_model.latest(tmp_path / "run").name == f"step_{steps:06d}"
    with pytest.raises(ValueError, match="The sources end before they fill one step"):
        main([*FLAGS, "--tokens_per_step", "65536", "--sources", source, "--output_dir", str(tmp_path / "other")])
