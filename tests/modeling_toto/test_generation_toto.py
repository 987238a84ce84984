"""Drawn frames do not depend on the cache, hold codes only, repeat with the seed, and continue beyond the context."""

import pytest
import torch

from modeling_toto import TotoConfig, TotoForCausalLM
from modeling_toto.generation_toto import draw


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("options", [{}, {"temperature": 0}, {"temperature": 0.7, "top_k": 5}, {"top_p": 0.8}])
def test_cached_equals_uncached(small_model, rows, options):
    prompt = rows[:, :5]
    cached = small_model.generate_frames(prompt, 3, generator=seeded(), **options)
    uncached = small_model.generate_frames(prompt, 3, generator=seeded(), use_cache=False, **options)
    assert torch.equal(cached, uncached)
    assert cached.shape == (2, 5 + 3 * 4) and torch.equal(cached[:, :5], prompt)


def test_only_codes_are_drawn(small_model, rows):
    with torch.no_grad():  # a model that would rather say anything but a code
        small_model.lm_head.weight[:64] *= 50
    drawn = small_model.generate_frames(rows[:, :1].repeat(8, 1), 4, generator=seeded())[:, 1:]
    assert drawn.min() >= 64 and drawn.max() < small_model.config.vocab_size


def test_greedy_is_what_the_logits_say(small_model, rows):
    ids = small_model.generate_frames(rows[:, :1], 1, temperature=0)
    logits = small_model(ids).logits[:, :-1, 64:]
    assert torch.equal(logits.argmax(-1) + 64, ids[:, 1:])


def test_seeds(small_model, rows):
    prompt = rows[:, :5]
    first = small_model.generate_frames(prompt, 2, generator=seeded(3))
    assert torch.equal(first, small_model.generate_frames(prompt, 2, generator=seeded(3)))
    assert not torch.equal(first, small_model.generate_frames(prompt, 2, generator=seeded(4)))


def test_training_mode_and_gradient_checkpointing_do_not_matter(small_model, rows):
    prompt = rows[:, :5]
    expected = small_model.generate_frames(prompt, 2, temperature=0)
    small_model.gradient_checkpointing_enable()
    small_model.train()
    assert torch.equal(small_model.generate_frames(prompt, 2, temperature=0), expected)
    assert small_model.training


def test_draw_follows_the_distribution():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().repeat(20000, 1)

    def frequencies(**options):
        return torch.bincount(draw(logits, generator=seeded(), **options), minlength=4) / 20000

    for options, expected in [
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.75}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.01}, [1, 0, 0, 0]),
        ({"temperature": 0.5}, [0.25 / 0.365, 0.09 / 0.365, 0.0225 / 0.365, 0.0025 / 0.365]),
    ]:
        torch.testing.assert_close(
            frequencies(**options), torch.tensor(expected, dtype=torch.float32), atol=0.015, rtol=0
        )


def test_progress_is_a_bar_on_stderr(small_model, rows, capsys):
    small_model.generate_frames(rows[:, :1], 2, progress=True)
    captured = capsys.readouterr()
    assert "2/2" in captured.err and "tok/s" in captured.err and not captured.out


@pytest.fixture
def lively(small_config):
    """A model of 4 frames whose draws depend on all that it sees."""

    def make(**changes):
        torch.manual_seed(0)
        config = {**small_config.to_dict(), "initializer_range": 0.3, "tie_word_embeddings": False, **changes}
        return TotoForCausalLM(TotoConfig(**config)).eval()

    return make


@pytest.mark.parametrize("drop_frames", [1, 2, 3])
@pytest.mark.parametrize("options", [{"temperature": 0}, {"top_k": 20}])
def test_beyond_the_context(lively, rows, drop_frames, options):
    model, prompt = lively(), rows[:, :9]
    options = options | {"drop_frames": drop_frames}
    kept = model.generate_frames(prompt, 9, generator=seeded(), **options)
    afresh = model.generate_frames(prompt, 9, generator=seeded(), recompute=True, **options)
    assert kept.shape == (2, 9 + 9 * 4) and torch.equal(kept[:, :9], prompt)
    assert kept[:, 1:].min() >= 64
    # within the context nothing differs; beyond it the states that were kept remember what was dropped
    assert torch.equal(kept[:, :17], afresh[:, :17]) and not torch.equal(kept, afresh)
    uncached = model.generate_frames(prompt, 9, generator=seeded(), use_cache=False, **options)
    assert torch.equal(afresh, uncached)


def test_a_quarter_of_the_context_leaves_by_default(lively, rows):
    model = lively(num_frames=9, max_position_embeddings=38)
    ids = model.generate_frames(rows[:, :17], 9, temperature=0)
    two, three = (model.generate_frames(rows[:, :17], 9, temperature=0, drop_frames=drop) for drop in (2, 3))
    assert torch.equal(ids, two) and not torch.equal(ids, three)


def test_a_frame_beyond_the_context_continues_the_frames_before_it(lively, rows):
    model = lively()
    ids = model.generate_frames(rows[:, :9], 9, temperature=0, recompute=True)
    last_seen = torch.cat([ids[:, :1], ids[:, -16:-4]], dim=1)  # start and 3 frames: with the new one, 4
    assert torch.equal(model.generate_frames(last_seen, 1, temperature=0)[:, -4:], ids[:, -4:])


def test_with_one_layer_the_kept_states_are_exact(lively, rows):
    """Its keys and values know only their own id and position, so nothing of the dropped frames is left in them."""
    model = lively(num_hidden_layers=1)
    kept, afresh = (
        model.generate_frames(rows[:, :17], 8, generator=seeded(), recompute=recompute) for recompute in (False, True)
    )
    assert torch.equal(kept, afresh)
    scores = (model.score_frames(kept, recompute=recompute) for recompute in (False, True))
    torch.testing.assert_close(*scores, atol=1e-5, rtol=1e-5)


def test_scores_are_the_models_losses(lively, rows):
    model = lively()
    long = torch.cat([rows[:, :17], rows[:, 5:17]], dim=1)  # 7 frames
    losses = model(rows[:, :17], labels=rows[:, :17]).token_losses[:, 1:].unflatten(1, (4, 4)).mean(-1)
    for recompute in (False, True):
        scores = model.score_frames(long, recompute=recompute)
        assert scores.shape == (2, 7)
        torch.testing.assert_close(scores[:, :4], losses, atol=1e-5, rtol=1e-5)
    for frame in (4, 5, 6):  # recomputed: the loss of a row of its own, start and the 3 frames before
        row = torch.cat([long[:, :1], long[:, 1 + (frame - 3) * 4 : 1 + (frame + 1) * 4]], dim=1)
        last = model(row, labels=row).token_losses[:, -4:].mean(-1)
        torch.testing.assert_close(scores[:, frame], last, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(scores, model.score_frames(long), atol=1e-3)
    fewer = model.score_frames(long, drop_frames=3, recompute=True)
    row = torch.cat([long[:, :1], long[:, 13:21]], dim=1)  # after 3 frames left, one is seen
    torch.testing.assert_close(fewer[:, 4], model(row, labels=row).token_losses[:, -4:].mean(-1), atol=1e-5, rtol=1e-5)


def test_scores_judge_what_is_drawn(lively, rows):
    """Drawing sees at every step what scoring sees in one pass: greedy codes are the likeliest ones of the scores."""
    model = lively()
    ids = model.generate_frames(rows[:, :5], 8, temperature=0)
    scores = model.score_frames(ids)
    for position in (20, 30, 35):
        for row in range(2):
            other = ids.clone()
            other[row, position] = 64 + (other[row, position] - 64 + 1) % 32
            frame = (position - 1) // 4
            if position % 4 == 0:  # the frame's last code changes nothing else in the frame
                assert model.score_frames(other)[row, frame] > scores[row, frame]


def test_models_that_cannot_draw_say_so(lively, rows):
    with pytest.raises(ValueError, match="full attention predicts no next token"):
        lively(attention_mode="full").generate_frames(rows[:, :5], 1)
    prefix = lively(attention_mode="prefix", prefix_length=5)
    expected = prefix.generate_frames(rows[:, :5], 3, temperature=0, use_cache=False)
    assert torch.equal(prefix.generate_frames(rows[:, :5], 3, temperature=0), expected)
    with pytest.raises(ValueError, match=r"prefix_length is 5, .* 1 ids .*; keep the prefix within the prompt"):
        prefix.generate_frames(rows[:, :1], 1)
    with pytest.raises(ValueError, match="use attention_mode='causal'"):
        prefix.generate_frames(rows[:, :5], 4)


def test_errors_say_what_to_do(small_model, rows):
    with pytest.raises(ValueError, match="only whole frames can be dropped, but the prompt has 6 ids; pass"):
        small_model.generate_frames(rows[:, :6], 4)
    with pytest.raises(ValueError, match="5 frames but the model sees 4; pass a start token and the last 4"):
        small_model.generate_frames(torch.cat([rows[:, :17], rows[:, 1:5]], 1), 1)
    for drop_frames in (0, 4):
        with pytest.raises(ValueError, match=f"drop_frames is {drop_frames}, .*context of 4 frames; set 1 to 3"):
            small_model.generate_frames(rows[:, :5], 4, drop_frames=drop_frames)
    with pytest.raises(ValueError, match="add_end_token=False"):
        small_model.generate_frames(torch.cat([rows[:, :5], torch.full((2, 1), 2)], 1), 1)
    with pytest.raises(ValueError, match="top_p=0"):
        small_model.generate_frames(rows[:, :5], 1, top_p=0.0)
    with pytest.raises(ValueError, match="num_frames is 0; set 1 or more"):
        small_model.generate_frames(rows[:, :5], 0)
    with pytest.raises(ValueError, match="start token and whole frames of 4"):
        small_model.score_frames(rows)
