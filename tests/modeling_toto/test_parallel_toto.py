"""Parallel decoding draws what ordinary decoding draws, in fewer forwards, and its step compiles once."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from test_decoding_toto import KINDS, adapter, make
from torch._dynamo.backends.debugging import aot_eager

from modeling_toto import TotoForCausalLM, parallel_toto
from modeling_toto.parallel_toto import ParallelWindow, WindowStep
from tokenization import TotoProcessor
from tokenization.sequences import video_rows
from tokenization.toyworld import open_world

SHIPPED = Path(__file__).parents[2] / "checkpoints" / "toto-motion"


def seeded():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def lively(small_config) -> TotoForCausalLM:
    """A model whose draws depend on all that it sees."""
    return make(small_config, initializer_range=0.3, tie_word_embeddings=False)


@pytest.fixture
def forwards(monkeypatch) -> list:
    """The ids given in each forward."""
    made, step = [], WindowStep.__call__

    def counted(self, ids, *places):
        made.append(ids.clone())
        return step(self, ids, *places)

    monkeypatch.setattr(WindowStep, "__call__", counted)
    return made


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "whole_room"])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_a_window_is_the_plain_forward_at_every_rows_own_place(small_config, rows, kind, compiled, monkeypatch):
    monkeypatch.setattr(parallel_toto, "compiled_forward", lambda: parallel_toto.forward)
    model, ids = make(small_config, **KINDS[kind]), rows[:, :-1]
    window = ParallelWindow(model, ids, width=3, compiled=compiled)
    window.plain_logits(12, 1)
    first = torch.tensor([4, 9])
    for layer in window.cache.layers:  # what rejected drafts leave behind
        for memory in (layer.key_room, layer.value_room):
            memory[0, :, 4:] = memory[1, :, 9:12] = 1e4
    places = first[:, None] + torch.arange(3)
    found = WindowStep(model, window.cache, 3, compiled)(ids.gather(1, places), first, 12)
    whole = model(ids).logits[..., 64:]
    assert whole.std() > 0.01
    torch.testing.assert_close(found, whole[torch.arange(2)[:, None], places], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("options", [{"temperature": 0}, {}, {"temperature": 0.7, "top_k": 5}, {"top_p": 0.8}])
@pytest.mark.parametrize(
    ("length", "num_frames", "recompute"), [(1, 6, False), (3, 2, False), (5, 3, False), (9, 6, False), (9, 6, True)]
)
def test_the_draws_are_those_of_ordinary_decoding(lively, rows, length, num_frames, recompute, options):
    prompt, options = rows[:, :length], {"recompute": recompute, **options}
    generator = seeded()
    expected = lively.generate_frames(prompt, num_frames, generator=generator, **options)
    for parallel in (1, 2, 3, 4):
        own = seeded()
        found = lively.generate_frames(prompt, num_frames, generator=own, parallel=parallel, **options)
        assert torch.equal(found, expected), parallel
        assert torch.equal(own.get_state(), generator.get_state())


def test_a_prefix(small_config, rows):
    model = make(small_config, initializer_range=0.3, attention_mode="prefix", prefix_length=5)
    expected = model.generate_frames(rows[:, :5], 3, temperature=0)
    assert torch.equal(model.generate_frames(rows[:, :5], 3, temperature=0, parallel=3), expected)


@pytest.mark.parametrize("temperature", [0, 1])
def test_the_shipped_model(temperature, forwards):
    model, processor = TotoForCausalLM.from_pretrained(SHIPPED).eval(), TotoProcessor.from_pretrained(SHIPPED)
    world = open_world("motion", "test", num_frames=8)
    frames = np.stack([world.clip(index)["video"] for index in range(2)])
    prompt = video_rows(np.stack([processor.encode_frames(clip) for clip in frames]), end=False)
    expected, found = (
        model.generate_frames(prompt, 1, temperature=temperature, generator=seeded(), parallel=parallel)
        for parallel in (None, 16)
    )
    assert torch.equal(found, expected)
    assert len(forwards) < 0.5 * model.config.tokens_per_frame


def test_sampling_follows_the_models_distribution(small_config):
    """The joint frequencies of three codes against their exact probabilities, by a chi-square test."""
    sizes = {"vocab_size": 64 + 3, "tokens_per_frame": 3, "grid_size": None}
    model = make(small_config, **sizes, initializer_range=0.3, tie_word_embeddings=False)
    prompt, count = torch.tensor([[1, 64, 66, 65]]), 20_000
    every = torch.tensor(list(itertools.product(range(3), repeat=3)))  # (27, 3)
    with torch.no_grad():
        logits = model(torch.cat([prompt.repeat(27, 1), 64 + every], dim=1)).logits[:, 3:-1, 64:] / 3
    expected = count * logits.log_softmax(-1).gather(2, every[..., None]).sum(dim=(1, 2)).exp()
    assert expected.sum() == pytest.approx(count, rel=1e-4) and 20 < expected.min() < expected.max() / 4
    drawn = model.generate_frames(prompt.repeat(count, 1), 1, temperature=3, generator=seeded(), parallel=3)[:, 4:] - 64
    counted = torch.bincount(drawn @ torch.tensor([9, 3, 1]), minlength=27)
    assert ((counted - expected).square() / expected).sum() < 54.1  # 26 degrees of freedom: once in 1,000 seeds


@pytest.mark.parametrize(("parallel", "least"), [(1, 4), (2, 2), (3, 2), (4, 1)])
def test_confirmed_drafts_save_forwards(small_model, rows, parallel, least, forwards):
    with torch.no_grad():
        small_model.lm_head.weight.zero_()  # draws code 0 always, which is also what stands in frame before the first
    ids = small_model.generate_frames(rows[:, :1], 3, temperature=0, parallel=parallel)
    assert (ids[:, 1:] == 64).all()
    assert len(forwards) == 3 * least


def test_the_first_drafts_are_the_frame_before(lively, rows, forwards):
    lively.generate_frames(rows[:, :9], 1, temperature=0, parallel=4)
    assert torch.equal(forwards[0], rows[:, [8, 5, 6, 7]])


def test_one_compilation_serves_all_lengths(lively, rows, monkeypatch):
    graphs = []

    def backend(graph, examples):
        graphs.append(graph)
        return aot_eager(graph, examples)

    torch._dynamo.reset()
    compile_once = torch.compile(parallel_toto.forward, fullgraph=True, dynamic=False, backend=backend)
    monkeypatch.setattr(parallel_toto, "compiled_forward", lambda: compile_once)
    for options in ({"temperature": 0}, {"top_k": 5}):
        for length, num_frames in ((5, 3), (9, 1), (3, 2), (9, 9)):
            expected, found = (
                lively.generate_frames(rows[:, :length], num_frames, generator=seeded(), compiled=compiled, **options)
                for compiled in (False, True)
            )
            assert torch.equal(found, expected)
    assert len(graphs) == 1  # one place at a time
    found = lively.generate_frames(rows[:, :9], 9, generator=seeded(), compiled=True, parallel=3, **options)
    assert torch.equal(found, expected)
    assert len(graphs) == 2  # three at a time


def test_errors_say_what_to_do(lively, rows):
    for parallel in (0, 5):
        with pytest.raises(ValueError, match=f"parallel is {parallel}; set 1 to 4, the tokens of a frame, or None"):
            lively.generate_frames(rows[:, :5], 1, parallel=parallel)
    for options in ({"parallel": 2}, {"compiled": True}):
        with pytest.raises(ValueError, match="need the cache; leave use_cache at True"):
            lively.generate_frames(rows[:, :5], 1, use_cache=False, **options)
    adapter(lively)
    with pytest.raises(ValueError, match=r"linear layers that were replaced .* leave both out, or merge the adapters"):
        lively.generate_frames(rows[:, :5], 1, parallel=2)
