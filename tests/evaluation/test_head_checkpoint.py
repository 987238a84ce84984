"""A bank of heads that was killed resumes bit for bit, and never with another run's file."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from test_heads import RESULTS, same, small_sets

from evaluation.heads import checkpoint as head_checkpoint
from evaluation.heads.bank import HEADS, HeadBank, make_head
from evaluation.heads.stacked import StackedAdamW


class Killed(BaseException):
    pass


@pytest.fixture
def kill(monkeypatch):
    """Saves after every step; kill(n) ends the run in the n-th step from now on, kill(None) lets it continue."""
    monkeypatch.setattr(head_checkpoint, "SAVE_SECONDS", 0)
    step, left = StackedAdamW.step, [None]

    def watched(self, scale):
        if left[0] is not None:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
        step(self, scale)

    monkeypatch.setattr(StackedAdamW, "step", watched)

    def arm(steps):
        left[0] = steps

    return arm


@pytest.mark.parametrize("kind", ["linear", "attention", "cross_attention_mlp"])
def test_killed_again_and_again_it_ends_with_the_same_numbers(kind, kill, tmp_path):
    sets, file = small_sets(), tmp_path / "new" / "bank.safetensors"
    bank = HeadBank(kind, [4, 3], epochs=3)
    whole = bank.run(*sets, items=torch.arange(25), probabilities=True)
    kills = 0
    while True:
        kill(7)  # within an epoch of eight steps
        try:
            resumed = bank.run(*sets, items=torch.arange(25), checkpoint=file, probabilities=True)
            break
        except Killed:
            kills += 1
    assert kills == (3 if kind == "linear" else 6)  # 24 steps once, or for each of two layers
    assert same(resumed, whole) and torch.equal(resumed.test_probabilities, whole.test_probabilities)
    kill(0)  # nothing is left to train
    again = bank.run(*sets, items=torch.arange(25), checkpoint=file, probabilities=True)
    assert same(again, whole)
    assert [path.name for path in file.parent.iterdir()] == ["bank.safetensors"]


@pytest.mark.parametrize("kind", HEADS)
def test_a_finished_file_is_the_result(kind, tmp_path):
    sets, file = small_sets(), tmp_path / "bank.safetensors"
    first = make_head(kind, [4, 3], epochs=1).run(*sets, checkpoint=file)
    assert same(make_head(kind, [4, 3], epochs=1).run(*sets, checkpoint=file), first)


@pytest.mark.parametrize("kind", HEADS)
def test_probabilities_are_kept_only_where_they_are_asked_for(kind, tmp_path):
    sets, items, file = small_sets(), torch.arange(25) % 9, tmp_path / "bank.safetensors"
    head = make_head(kind, [4, 3], epochs=1)
    kept = head.run(*sets, items=items, probabilities=True)
    dropped = head.run(*sets, items=items, checkpoint=file)
    assert dropped.test_probabilities is None and same(dropped, kept)
    with safe_open(file, "pt") as opened:
        assert {name.split(".")[1] for name in opened.keys()} == set(RESULTS)  # noqa: SIM118
    with pytest.raises(ValueError, match="belongs to another run: its probabilities is None, not True"):
        head.run(*sets, items=items, checkpoint=file, probabilities=True)


def test_a_file_of_an_earlier_version_goes_on(kill, tmp_path):
    """Its finished layers also hold probabilities."""
    sets, file = small_sets(), tmp_path / "bank.safetensors"
    bank = HeadBank("attention", [4, 3], epochs=1)
    whole = bank.run(*sets, items=torch.arange(25))
    kill(9)  # in the second of two layers
    with pytest.raises(Killed):
        bank.run(*sets, items=torch.arange(25), checkpoint=file)
    with safe_open(file, "pt") as opened:
        header, tensors = opened.metadata(), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    assert header["finished"] == "1"
    save_file(tensors | {"0.test_probabilities": torch.zeros(1, 2, 25, 4)}, file, metadata=header)
    kill(None)
    resumed = bank.run(*sets, items=torch.arange(25), checkpoint=file)
    assert same(resumed, whole) and resumed.test_probabilities is None


def test_the_file_of_another_run_is_refused(tmp_path):
    sets = small_sets()
    file = tmp_path / "bank.safetensors"
    HeadBank("linear", [4, 3], epochs=1).run(*sets, checkpoint=file)
    with pytest.raises(
        ValueError, match="belongs to another run: its seed is 0, not 1; delete it, or name another file"
    ):
        HeadBank("linear", [4, 3], epochs=1, seed=1).run(*sets, checkpoint=file)
    with pytest.raises(ValueError, match="its epochs is 1, not 2"):
        HeadBank("linear", [4, 3], epochs=2).run(*sets, checkpoint=file)
    with pytest.raises(ValueError, match="its kind is linear, not ridge"):
        make_head("ridge", [4, 3]).run(*sets, checkpoint=file)
    with pytest.raises(ValueError, match="its data is "):  # the untrained twin: same labels and shapes
        sets[0].pooled[0, 0] += 1
        HeadBank("linear", [4, 3], epochs=1).run(*sets, checkpoint=file)
