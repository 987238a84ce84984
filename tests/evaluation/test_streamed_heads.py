"""Heads on features that are computed again: the numbers of kept features, resumed, in passes, by several processes."""

import contextlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_head_checkpoint import (
    Killed,
    kill,  # noqa: F401  (a fixture)
)
from two_ranks_streamed import NAMES, banks, streamed_data

from evaluation.backbones import contract
from evaluation.backbones.contract import Features
from evaluation.backbones.feature_stream import FeatureStream, Wanted
from evaluation.backbones.load import load_backbone
from evaluation.heads import shares as sharing
from evaluation.heads import streamed
from evaluation.heads.bank import HeadBank
from evaluation.heads.shares import passes_over, shares
from evaluation.heads.streamed import StreamedData, train_streamed


@pytest.fixture
def data(checkpoint, monkeypatch) -> StreamedData:
    monkeypatch.setattr(contract, "fast_autocast", lambda device: contextlib.nullcontext())  # float32 on any CPU
    return streamed_data(load_backbone(checkpoint, torch.device("cpu")))


def same(a, b) -> bool:
    return all(torch.equal(getattr(a[kind], name), getattr(b[kind], name)) for kind in a for name in NAMES)


def test_the_numbers_are_those_of_kept_features(data, tmp_path):
    found = train_streamed(data, banks(), tmp_path / "state")
    sets = []
    for inputs in data.inputs:
        made = data.job.run(inputs.read(torch.arange(len(inputs))))
        pooled, tokens = (torch.stack([made[layer][k] for layer in data.job.layers]) for k in (0, 1))
        sets.append(Features(data.job.layers, pooled, tokens))
    for kind, bank in banks().items():
        labelled = (sets[0], data.labels[0], sets[1], data.labels[1], sets[2])
        kept = bank.run(*labelled, items=data.items, probabilities=True)
        assert torch.equal(found[kind].choice, kept.choice) and found[kind].settings == kept.settings
        assert kept.val_accuracy.max() > 0.5  # there is something to learn
        for name in NAMES:
            torch.testing.assert_close(getattr(found[kind], name), getattr(kept, name), rtol=1e-3, atol=1e-4)


def test_probabilities_are_written_only_where_they_are_asked_for(data, tmp_path):
    kept = train_streamed(data, banks(), tmp_path / "kept")
    dropped = train_streamed(replace(data, probabilities=False), banks(), tmp_path / "dropped")
    for kind, chosen in dropped.items():
        assert chosen.test_probabilities is None
        assert torch.equal(chosen.test_predictions, kept[kind].test_probabilities.argmax(-1))
    names = {name.rpartition(".")[2] for name in load_file(tmp_path / "dropped" / "pass-0.safetensors")}
    assert names == {"choice", "val_accuracy", "val_loss", "test_predictions"}
    with pytest.raises(ValueError, match="belongs to another run: its probabilities is None, not True"):
        train_streamed(data, banks(), tmp_path / "dropped")


def test_killed_again_and_again_it_ends_with_the_same_numbers(data, kill, tmp_path, monkeypatch):  # noqa: F811
    whole = train_streamed(data, banks(), tmp_path / "whole")
    monkeypatch.setattr(streamed, "CHECK_STEPS", 1)
    monkeypatch.setattr(sharing, "SAVE_SECONDS", 0)
    monkeypatch.setattr(sharing, "SAVING_SHARE", 0)
    moments, kills = [], 0
    add = streamed.Moments.add
    monkeypatch.setattr(streamed.Moments, "add", lambda self, part: moments.append(1) or add(self, part))
    while True:
        kill(60)  # of 192 updates, 6 heads in each step of three epochs and 3 in each of two
        try:
            resumed = train_streamed(data, banks(), tmp_path / "state")
            break
        except Killed:
            kills += 1
    assert kills == 3 and len(moments) == 6, "statistics are not computed again"
    assert same(resumed, whole)
    kill(0)  # nothing is left to train
    assert same(train_streamed(data, banks(), tmp_path / "state"), whole)
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["pass-0.safetensors", "plan.json"]


def test_memory_for_one_layer_at_a_time_gives_the_same_numbers(data, tmp_path, monkeypatch, capsys):
    whole = train_streamed(data, banks(), tmp_path / "whole")
    assert "in 1 pass of 5 epochs, 431 clips through the backbone" in capsys.readouterr().out  # 6 x 61 + 40 + 25
    monkeypatch.setattr(sharing, "free_memory", lambda device: 1)
    monkeypatch.setattr(streamed, "free_memory", lambda device: 1)
    one_by_one = train_streamed(data, banks(), tmp_path / "state")
    assert "in 3 passes of 5 epochs, 1,293 clips" in capsys.readouterr().out
    assert same(one_by_one, whole)
    assert len(list((tmp_path / "state").glob("pass-*.safetensors"))) == 3


def test_the_state_of_another_run_is_refused(data, tmp_path):
    train_streamed(data, banks(), tmp_path)
    for other, key in (
        (replace(data, inputs=[data.inputs[0].take(torch.arange(61).flip(0)), *data.inputs[1:]]), "inputs"),
        (replace(data, labels=[data.labels[0].flip(0), data.labels[1]]), "labels"),
        (replace(data, job=replace(data.job, max_tokens=8)), "features"),
    ):
        with pytest.raises(ValueError, match=f"plan.json belongs to another run: its {key} is "):
            train_streamed(other, banks(), tmp_path)


def test_every_setting_is_trained_once_and_evenly():
    given = {"linear": HeadBank("linear", [2]), "attention": HeadBank("attention", [2])}  # 12 and 8 settings
    for world in (1, 2, 3, 8, 64):
        found = shares(given, [0, 4, 5], world)
        for kind, bank in given.items():
            slots = [[(s.layer, k) for s in own if s.kind == kind for k in range(s.start, s.stop)] for own in found]
            flat = [slot for own in slots for slot in own]
            assert sorted(flat) == [(layer, k) for layer in (0, 4, 5) for k in range(len(bank.settings))]
            assert max(map(len, slots)) - min(map(len, slots)) <= 1
    assert [len({share.layer for share in own}) for own in shares(given, [0, 4, 5], 3)] == [1, 1, 1]


def test_layers_that_do_not_fit_are_trained_in_several_passes():
    sizes = {0: 10, 1: 10, 2: 10, 3: 10}
    assert passes_over([0, 1, 2, 3], sizes, 40) == [[0, 1, 2, 3]]
    assert passes_over([0, 1, 2, 3], sizes, 39) == [[0, 1], [2, 3]]
    assert passes_over([0, 1, 2, 3], sizes, 0) == [[0], [1], [2], [3]]


@pytest.mark.parametrize("batch_size", [2, 8])
def test_features_of_a_batch_are_those_of_its_clips(data, batch_size):
    stream = FeatureStream(data.job, batch_size, torch.device("cpu"))
    rows, wanted = torch.tensor([7, 3, 20]), [Wanted(1, False), Wanted(3, True)]
    (found,) = stream.batches(data.inputs[0], [rows], [wanted])
    made = data.job.run(data.inputs[0].read(rows))
    assert list(found) == wanted and found[wanted[1]].dtype == torch.float16
    torch.testing.assert_close(found[wanted[0]], made[1][0])
    torch.testing.assert_close(found[wanted[1]], made[3][1], rtol=1e-2, atol=2e-3)
    found[wanted[0]].mul(torch.ones(1, requires_grad=True)).sum().backward()  # not of inference mode


def test_blocks_above_the_deepest_layer_do_not_run(data, monkeypatch):
    stream, ran = FeatureStream(data.job, 8, torch.device("cpu")), []
    hook = data.job.backbone.blocks[1].register_forward_hook(lambda *a: ran.append(1))
    list(stream.batches(data.inputs[0], [torch.arange(4)], [[Wanted(1, False)]]))
    hook.remove()
    assert not ran


def launch(checkpoint: str, folder: Path, *more: str) -> int:
    """Train on two processes; the exit status."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(Path(__file__).with_name("two_ranks_streamed.py")), checkpoint, str(folder), *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return subprocess.run(command, env=environment, capture_output=True, check=False, timeout=300).returncode


def test_two_processes_end_with_the_numbers_of_one(data, checkpoint, tmp_path):
    """Killed after some updates as well; one process then goes on."""
    alone = train_streamed(data, banks(), tmp_path / "alone")
    assert launch(checkpoint, tmp_path / "two") == 0
    first, second = (load_file(tmp_path / "two" / f"{rank}.safetensors") for rank in (0, 1))
    for kind in alone:
        for name in NAMES:
            assert torch.equal(first[f"{kind}.{name}"], second[f"{kind}.{name}"])
            torch.testing.assert_close(first[f"{kind}.{name}"], getattr(alone[kind], name), rtol=1e-3, atol=1e-4)
    assert launch(checkpoint, tmp_path / "killed", "40") != 0
    state = tmp_path / "killed" / "state" / "pass-0"
    assert len(list(state.glob("*-[01].safetensors"))) >= 2 and (state / "state.json").is_file()
    resumed = train_streamed(data, banks(), tmp_path / "killed" / "state")
    for kind in alone:
        for name in NAMES:
            torch.testing.assert_close(getattr(resumed[kind], name), getattr(alone[kind], name), rtol=1e-3, atol=1e-4)
