"""Decoding over keys of fixed lengths draws what ordinary decoding draws; what is recorded for a GPU is few steps."""

import pytest
import torch
from test_decoding_toto import KINDS, adapter, make

from modeling_toto import TotoForCausalLM, graph_toto
from modeling_toto.decoding_toto import FrameWindow
from modeling_toto.graph_toto import StaticStep, StaticWindow, key_length


def seeded():
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Key lengths of 4, 8 and 16, so that short rows pass from one to the next."""
    monkeypatch.setattr(graph_toto, "SHORTEST", 4)
    monkeypatch.setattr(graph_toto, "ROUND", 4)


@pytest.fixture
def lively(small_config) -> TotoForCausalLM:
    """A model whose draws depend on all that it sees."""
    return make(small_config, initializer_range=0.3, tie_word_embeddings=False)


@pytest.fixture
def recorded(monkeypatch) -> list[int]:
    """CUDA without a GPU: a replay runs the recorded call again, into the memory of its first result."""
    found, made = [], StaticStep.__init__

    def on_cuda(self, model, cache):
        made(self, model, cache)
        self.device = torch.device("cuda")

    def record(call, device):
        call()
        result = call()
        found.append(result.data_ptr())
        return (lambda: result.copy_(call())), result

    monkeypatch.setattr(StaticStep, "__init__", on_cuda)
    monkeypatch.setattr(graph_toto, "record", record)
    return found


def test_key_lengths_are_few(monkeypatch):
    monkeypatch.undo()
    assert [key_length(seen, 4160) for seen in (1, 512, 513, 1024, 2049, 4097)] == [512, 512, 1024, 1024, 4096, 4160]
    assert key_length(3, 64) == 64
    assert len({key_length(seen, 4160) for seen in range(1, 4098)}) == 5


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_step_is_that_of_a_growing_cache(small_config, rows, kind):
    model, ids = make(small_config, **KINDS[kind]), rows[:, :-1]
    growing, static = FrameWindow(model, ids), StaticWindow(model, ids)
    for end in range(3, ids.shape[1] + 1):
        if end == 6:  # what the masked places hold does not matter
            for layer in static.cache.layers:
                layer.key_room[:, :, end:] = layer.value_room[:, :, end:] = 1e4
        expected, found = growing.code_logits(end), static.code_logits(end)
        assert expected.std() > 0.01
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert isinstance(static.step, StaticStep)


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 0.7, "top_k": 5}])
@pytest.mark.parametrize(
    ("length", "num_frames", "recompute"), [(1, 6, False), (3, 2, False), (9, 6, False), (9, 6, True)]
)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_draws_are_those_of_ordinary_decoding(
    lively, rows, length, num_frames, recompute, options, device, request
):
    given = {"recompute": recompute, **options}
    expected = lively.generate_frames(rows[:, :length], num_frames, generator=seeded(), graph=False, **given)
    recorded = request.getfixturevalue("recorded") if device == "cuda" else []
    found = lively.generate_frames(rows[:, :length], num_frames, generator=seeded(), graph=True, **given)
    assert torch.equal(found, expected)
    assert len(recorded) == len(set(recorded)) and (0 < len(recorded) <= 3) is (device == "cuda")


@torch.no_grad()
def test_logits_outlive_the_next_replay(lively, rows, recorded):
    ids = rows[:, :-1]
    growing, static = FrameWindow(lively, ids), StaticWindow(lively, ids)
    expected, found = ([window.code_logits(end) for end in range(5, 9)] for window in (growing, static))
    torch.testing.assert_close(torch.stack(found), torch.stack(expected), atol=1e-5, rtol=1e-4)


def test_off_on_a_cpu_by_default(lively, rows, monkeypatch):
    monkeypatch.delattr(StaticStep, "__call__")
    assert lively.generate_frames(rows[:, :5], 1).shape == (2, 9)
    with pytest.raises((TypeError, RuntimeError)):
        lively.generate_frames(rows[:, :5], 1, graph=True)


def test_errors_say_what_to_do(lively, rows):
    for options in ({"parallel": 2}, {"compiled": True}, {"use_cache": False}):
        with pytest.raises(ValueError, match="graph is an option of ordinary decoding with the cache; leave it out"):
            lively.generate_frames(rows[:, :5], 1, graph=True, **options)
    adapter(lively)
    with pytest.raises(ValueError, match=r"linear layers that were replaced .* leave it out, or merge"):
        lively.generate_frames(rows[:, :5], 1, graph=True)
