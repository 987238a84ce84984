"""The floors are what they are called: pixels in place, filters of unit norm, counts of codes, gradients."""

import numpy as np
import pytest
import torch

from evaluation.backbones.floors import FLOORS, HistogramBackbone, HogBackbone, PixelBackbone, RandomFilterBackbone
from evaluation.backbones.toto import TotoBackbone

CPU = torch.device("cpu")
CLIPS = torch.randint(0, 256, (5, 4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def features(backbone, frames, image: bool = False, max_tokens: int | None = 64):
    grid = backbone.grids(backbone.prepare(frames, image), [0])[0]
    return backbone.summarise(grid, max_tokens)


def test_pixels_keep_every_position():
    pixels = PixelBackbone(CPU)
    vectors, _ = features(pixels, CLIPS[:, :1], image=True)
    assert vectors.shape == (5, 32 * 32 * 3)
    assert torch.equal(vectors.sort(1).values, CLIPS[:, 0].flatten(1).div(255).sort(1).values)
    vectors, tokens = features(pixels, CLIPS)
    assert vectors.shape == (5, 4 * 16 * 16 * 3) and tokens.shape == (5, 4 * 16, 192)
    area = CLIPS.float().div(255).view(5, 4, 16, 2, 16, 2, 3).mean((3, 5)).flatten(1)
    torch.testing.assert_close(vectors.sort(1).values, area.sort(1).values)


def test_pixels_average_larger_frames():
    frames = np.repeat(np.repeat(CLIPS[:, :1].numpy(), 2, axis=2), 2, axis=3)
    assert torch.equal(PixelBackbone(CPU).prepare(frames), CLIPS[:, :1])


def test_random_filters_are_rectified_centred_and_the_same_every_time():
    filters, again = RandomFilterBackbone(CPU), RandomFilterBackbone(CPU)
    assert filters.weights.shape == (2048, 3, 6, 6) and torch.equal(filters.weights, again.weights)
    torch.testing.assert_close(filters.weights.flatten(1).norm(dim=1), torch.ones(2048))
    vectors, tokens = features(filters, CLIPS)
    assert vectors.shape == (5, 4 * 2048) and tokens.shape == (5, 4, 2048) and (vectors >= 0).all()
    flat, _ = features(filters, torch.full_like(CLIPS, 77))
    assert flat.abs().max() < 1e-4  # centred filters see no brightness
    picture = CLIPS[:1, :1]
    patch = picture[0, 0, :6, :6].permute(2, 0, 1).float() / 255
    made = torch.nn.functional.conv2d(picture[0].permute(0, 3, 1, 2).float() / 255, filters.weights)
    torch.testing.assert_close(made[0, :, 0, 0], (filters.weights * patch).sum((1, 2, 3)), rtol=1e-3, atol=1e-4)


def test_histogram_counts_codes(model, processor):
    toto = TotoBackbone(model, processor, device=CPU)
    histogram = HistogramBackbone(toto, CPU)
    assert histogram.reads == toto.reads
    vectors, tokens = features(histogram, CLIPS)
    codes = processor.encode_frames(CLIPS.flatten(0, 1)).view(5, -1)
    expected = torch.stack([row.bincount(minlength=64) for row in codes]).float() / codes.shape[1]
    torch.testing.assert_close(vectors, expected)
    assert tokens.shape == (5, 1, 64)


def test_hog_is_scikit_images():
    from skimage.feature import hog

    vectors, _ = features(HogBackbone(CPU), CLIPS[:, :1])
    expected = hog(CLIPS[0, 0].numpy(), 9, (4, 4), (2, 2), channel_axis=-1)
    assert vectors.shape == (5, 7 * 7 * 36)
    np.testing.assert_allclose(vectors[0].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("name", FLOORS)
def test_floors_have_one_layer_and_a_fingerprint_of_their_own(name, model, processor):
    floors = {key: make(TotoBackbone(model, processor, device=CPU), CPU) for key, make in FLOORS.items()}
    floor = floors[name]
    assert floor.depth == 0 and floor.name == name
    assert [key for key, other in floors.items() if other.fingerprint() == floor.fingerprint()] == [name]
    with pytest.raises(ValueError, match=r"layers 0 \(embeddings\) to 0, not 1"):
        floor.grids(floor.prepare(CLIPS), [1])
