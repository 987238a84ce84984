"""Generated frames do not depend on the cache, hold codes only, and repeat with the seed."""

import pytest
import torch

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
    assert "2/2" in captured.err and not captured.out


def test_errors_say_what_to_do(small_model, rows):
    with pytest.raises(ValueError, match="at most 3 frames"):
        small_model.generate_frames(rows[:, :5], 4)
    with pytest.raises(ValueError, match="add_end_token=False"):
        small_model.generate_frames(torch.cat([rows[:, :5], torch.full((2, 1), 2)], 1), 1)
    with pytest.raises(ValueError, match="top_p=0"):
        small_model.generate_frames(rows[:, :5], 1, top_p=0.0)
    with pytest.raises(ValueError, match="at least one"):
        small_model.generate_frames(rows[:, :5], 0)
