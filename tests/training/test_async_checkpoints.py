"""Checkpoints that a thread writes: those of their step, whole or not at all, and reported if they fail."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from test_distributed import two_ranks
from tiny_run import FLAGS

from training import find_model
from training.engine import checkpoints
from training.engine.loop import _Loop
from training.engine.moments import load_tensors, own_part
from training.engine.snapshot import Snapshot
from training.pretrain import main

STEPS = ["--max_steps", "6", "--save_steps", "2", "--logging_steps", "1", "--val_rows", "2", "--learning_rate", "1e-2"]


def losses(run):
    return [row["loss"] for row in map(json.loads, (run / "metrics.jsonl").open()) if "loss" in row]


def files(run):
    """ "step/file" -> bytes, without the files that have times."""
    folder = run / "checkpoints"
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if path.name not in ("loop.json", find_model.SUMS)}


@pytest.fixture(scope="module")
def flags(shards):
    return [*FLAGS, *STEPS, "--shards", str(shards), "--output_dir"]


@pytest.fixture(scope="module")
def at_once(flags, tmp_path_factory):
    run = tmp_path_factory.mktemp("at_once") / "run"
    main([*flags, str(run), "--async_checkpoints", "false"])
    return run


def hold_writes(monkeypatch, ready):
    """Threads write once `ready(step)`, or after two minutes."""
    write = Snapshot.write

    def held(self, *args):
        until = time.time() + 120
        while not ready(self.step) and time.time() < until:
            time.sleep(0.01)
        write(self, *args)

    monkeypatch.setattr(Snapshot, "write", held)


def test_a_checkpoint_is_that_of_its_step_though_the_training_went_on(flags, at_once, tmp_path, monkeypatch, capsys):
    run, taken, take_step = tmp_path / "run", [], _Loop.take_step

    def noted(self, preemption):
        found = take_step(self, preemption)
        taken.append(self.step)
        return found

    monkeypatch.setattr(_Loop, "take_step", noted)
    changed = []

    def ready(step):
        changed.append((step, max(taken) > step))
        return max(taken) >= min(step + 2, 6)

    hold_writes(monkeypatch, ready)
    main([*flags, str(run)])
    assert (2, True) in changed and (4, True) in changed
    assert files(run) == files(at_once) and losses(run) == losses(at_once)
    told = capsys.readouterr()
    assert "waiting for the checkpoint of step 2, which is still being written" in told.out + told.err

    for step in (4, 6):
        checkpoints._drop(run / "checkpoints" / f"step_{step:06d}")
    monkeypatch.undo()
    main(["--resume", str(run)])
    assert files(run) == files(at_once) and losses(run) == losses(at_once)


def test_a_failed_thread_ends_the_training_at_the_next_step_with_its_sentence(flags, tmp_path, monkeypatch):
    run, sums, take_step = tmp_path / "run", checkpoints._checksums, _Loop.take_step

    def full(folder):
        if "step_000004" in folder.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return sums(folder)

    def wait_for_it(self, preemption):
        if self.step == 4:
            self.writer._thread.join()
        return take_step(self, preemption)

    monkeypatch.setattr(checkpoints, "_checksums", full)
    monkeypatch.setattr(_Loop, "take_step", wait_for_it)
    told = r"The disk is full and checkpoint .*step_000004 could not be written; .*the last checkpoint is .*step_000002"
    with pytest.raises(OSError, match=told):
        main([*flags, str(run)])
    assert len(losses(run)) == 5
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_000002"]


def test_ctrl_c_leaves_a_whole_checkpoint(flags, tmp_path, monkeypatch):
    run, take_step, interrupted = tmp_path / "run", _Loop.take_step, []

    def interrupt(self, preemption):
        if self.step == 2:
            interrupted.append(True)
            raise KeyboardInterrupt
        return take_step(self, preemption)

    monkeypatch.setattr(_Loop, "take_step", interrupt)
    hold_writes(monkeypatch, lambda step: interrupted and not time.sleep(0.3))
    with pytest.raises(KeyboardInterrupt):
        main([*flags, str(run)])
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_000002"]
    assert checkpoints.newest_sound(run)[0].name == "step_000002"


SLOW = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from training.engine import checkpoints
from training.pretrain import main
flush = checkpoints._flush

def slow(folder):
    flush(folder)
    if "step_000004" in folder.name:
        Path(sys.argv[2]).write_text("all but renamed")
        time.sleep(600)

checkpoints._flush = slow
main(sys.argv[3:])
"""


def test_a_kill_during_the_write_leaves_the_checkpoint_before(flags, at_once, tmp_path):
    run, marker = tmp_path / "run", tmp_path / "marker"
    root = str(Path(__file__).resolve().parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, root, str(marker), *flags, str(run)], stdout=subprocess.DEVNULL
    )
    until = time.time() + 300
    while not marker.exists() and process.poll() is None and time.time() < until:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (run / "checkpoints" / ".step_000004.partial" / "model.safetensors").is_file()
    assert [path.name for path in find_model.steps(run)] == ["step_000002"]
    main(["--resume", str(run)])
    assert files(run) == files(at_once) and losses(run) == losses(at_once)


def test_sharded_checkpoints_are_the_same_bytes_by_either_way(shards, tmp_path):
    found = []
    for name in ("true", "false"):
        run = tmp_path / name
        steps = [*FLAGS, *STEPS, "--max_steps", "4", "--shards", str(shards), "--output_dir", str(run)]
        two_ranks("fsdp2", *steps, "--async_checkpoints", name)
        found.append(files(run))
    assert found[0] == found[1]
    assert sum("/optimizer/part-" in name for name in found[0]) == 4  # of two ranks and two steps


def test_every_tensor_is_in_one_part_and_read_again(tmp_path):
    tensors = {f"tensor {k}": torch.randn(k % 5 + 1, 7) for k in range(20)} | {"step": torch.tensor(3.0)}
    parts = [own_part(tensors, rank, 3) for rank in range(3)]
    names = [name for part in parts for name in part.tensors]
    assert sorted(names) == sorted(tensors)
    sizes = [sum(tensor.numel() for tensor in part.tensors.values()) for part in parts]
    assert max(sizes) < 1.3 * min(sizes)
    for part in parts:
        part.write(tmp_path / "moments")
    read = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    load_tensors(tmp_path / "moments", read, distributed=False)
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_moments_of_earlier_versions_are_read(tmp_path):
    import torch.distributed.checkpoint as dcp

    tensors = {"weight:exp_avg": torch.randn(4, 3), "weight:step": torch.tensor(7.0)}
    writer = dcp.HuggingFaceStorageWriter(str(tmp_path), save_distributed=True)
    dcp.save(dict(tensors), storage_writer=writer, no_dist=True)
    read = {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    load_tensors(tmp_path, read, distributed=False)
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_a_copy_is_a_copy_and_tied_weights_stay_tied():
    weight = torch.arange(6.0).view(2, 3)
    named = {"embedding": weight, "head": weight, "transposed": weight.t()}
    part = own_part({"moment": weight.t()})
    state = {"best": {"step": 1}}
    copied = Snapshot(1, named, {"optimizer": part}, state, {1}).copied(torch.device("cpu"))
    expected = weight.clone()
    weight.zero_()
    state["best"]["step"] = 2
    assert copied.state == {"best": {"step": 1}} and copied.spared == {1}
    assert torch.equal(copied.weights["embedding"], expected) and torch.equal(
        copied.weights["transposed"], expected.t()
    )
    assert copied.weights["embedding"] is copied.weights["head"]
    assert torch.equal(copied.parts["optimizer"].tensors["moment"], expected.t())
