"""Frames become normalised patches in raster order, and come back exactly."""

import pytest
import torch

from tokenization import Patches


@pytest.fixture
def frames():
    return torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(0))


def test_the_papers_sizes():
    patches = Patches(8).encode(torch.rand(1, 16, 3, 128, 128))
    assert patches.values.shape == (1, 16, 16, 16, 192)
    assert patches.mean.shape == patches.variance.shape == (1, 16, 16, 16, 1)


@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_the_inverse_gives_the_frames_back(frames, patch_size):
    tokenizer = Patches(patch_size)
    patches = tokenizer.encode(frames)
    back = tokenizer.decode(patches.values, patches.mean, patches.variance)
    torch.testing.assert_close(back, frames, atol=1e-6, rtol=0)
    video = frames[:, None].repeat(1, 5, 1, 1, 1) * torch.linspace(0.2, 1, 5).view(1, 5, 1, 1, 1)
    patches = tokenizer.encode(video)
    back = tokenizer.decode(patches.values, patches.mean, patches.variance)
    torch.testing.assert_close(back, video, atol=1e-6, rtol=0)


def test_patches_stand_in_raster_order(frames):
    """Against a loop: rows of patches from the top, patches from the left, pixels row by row, RGB last."""
    patches = Patches(4).encode(frames)
    rows = patches.values.flatten(-3, -2)
    for b in range(2):
        expected = []
        for top in range(0, 12, 4):
            for left in range(0, 20, 4):
                pixels = [frames[b, :, y, x] for y in range(top, top + 4) for x in range(left, left + 4)]
                patch = torch.cat(pixels)
                centred = patch - patch.sum() / 48
                expected.append(centred / (centred.square().sum() / 47 + 1e-6) ** 0.5)
        torch.testing.assert_close(rows[b], torch.stack(expected), atol=1e-5, rtol=1e-5)


def test_each_patch_has_mean_0_and_variance_1(frames):
    values = Patches(4).encode(frames).values
    torch.testing.assert_close(values.mean(-1), torch.zeros(2, 3, 5), atol=1e-5, rtol=0)
    torch.testing.assert_close(values.var(-1), torch.ones(2, 3, 5), atol=1e-3, rtol=0)


def test_a_flat_patch_is_finite():
    patches = Patches(4).encode(torch.full((1, 3, 8, 8), 0.7))
    assert patches.values.abs().max() < 1e-3 and not patches.variance.any()
    back = Patches(4).decode(patches.values, patches.mean, patches.variance)
    torch.testing.assert_close(back, torch.full((1, 3, 8, 8), 0.7))


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (torch.zeros(1, 3, 8, 10), "multiples of 4"),
        (torch.zeros(1, 2, 3, 8, 10), "multiples of 4"),
        (torch.zeros(3, 8, 8), r"shape \(B, 3, H, W\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "must be floats"),
        (torch.full((1, 3, 8, 8), 255.0), r"within \[0, 1\]"),
        (torch.full((1, 3, 8, 8), float("nan")), "finite"),
        (torch.zeros(1, 3, 8, 8).numpy(), "torch tensor"),
    ],
)
def test_wrong_frames_are_refused(pixels, words):
    with pytest.raises(ValueError, match=words):
        Patches(4).encode(pixels)


def test_wrong_patches_are_refused(frames):
    patches = Patches(4).encode(frames)
    with pytest.raises(ValueError, match=r"\(\.\.\., h, w, 48\), got \(2, 15, 48\)"):
        Patches(4).decode(patches.values.flatten(1, 2), patches.mean, patches.variance)
    with pytest.raises(ValueError, match=r"mean and variance must have the shape \(2, 3, 5, 1\)"):
        Patches(4).decode(patches.values, patches.mean[0], patches.variance)
    for size in (0, 2.0):
        with pytest.raises(ValueError, match="patch_size must be a positive integer"):
            Patches(size)
