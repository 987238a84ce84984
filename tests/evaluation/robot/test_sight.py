"""What policies see: stored and live frames alike, streams that end, contexts, and bad frames."""

import numpy as np
import pytest
import torch
from fake_world import demonstrate

from evaluation.backbones.load import load_backbone
from evaluation.robot.sight import Frozen, fitted, open_sight, watch, watch_layers
from tokenization.image_processing_toto import resize_and_crop

CLOSE = {"atol": 0.03, "rtol": 0}  # bfloat16 where it is fast, of features with a deviation of 1


@pytest.fixture(scope="module")
def backbone(checkpoint):
    return load_backbone(checkpoint, "cpu")


@pytest.fixture(scope="module")
def episodes():
    found = demonstrate(5, 32)
    noise = np.random.default_rng(0)
    for each in found:  # so that every frame has other codes
        each.images = noise.integers(0, 256, each.images.shape, dtype=np.uint8)
    assert len({len(each.images) for each in found}) > 2
    return found


def sights(backbone):
    return {"1 frame": Frozen(backbone, 2, 1), "3 frames": Frozen(backbone, 2, 3), "pixels": open_sight("pixels")}


@pytest.mark.parametrize("name", ["1 frame", "3 frames", "pixels"])
def test_stored_and_live_frames_are_seen_alike(backbone, episodes, name):
    sight = sights(backbone)[name]
    stored = watch(sight, episodes, streams=1)
    sight.reset()
    live = [sight.see(image[None])[0] for image in episodes[0].images]
    assert stored[0].shape == (len(episodes[0].images), sight.size)
    assert torch.equal(stored[0], torch.stack(live))  # to the bit
    together = watch(sight, episodes, streams=3)  # which drops the episodes that end
    for alone, beside in zip(stored, together, strict=True):
        torch.testing.assert_close(alone.float(), beside.float(), **CLOSE)


def test_streams_that_end_leave_the_others_as_they_were(backbone, episodes):
    sight = Frozen(backbone, 2, 3)
    first = np.stack([each.images[0] for each in episodes])
    second = np.stack([each.images[1] for each in episodes])
    sight.see(first)
    everything = sight.see(second)
    sight.reset()
    sight.see(first)
    sight.keep([3, 1])
    torch.testing.assert_close(sight.see(second[[3, 1]]), everything[[3, 1]], **CLOSE)
    with pytest.raises(ValueError, match="There are 2 streams and 5 frames"):
        sight.see(second)


def test_a_toto_reads_the_last_frames_and_no_more(backbone, episodes):
    images = episodes[0].images
    wanted = backbone.grids(backbone.prepare(images[None, 2:5]), [2])[2][:, -1]  # (1, 4, 4, D): 16 tokens, all kept
    sight = Frozen(backbone, 2, 3)
    made = watch(sight, episodes[:1])[0]
    torch.testing.assert_close(made[4], wanted.flatten(), **CLOSE)
    other = watch(Frozen(backbone, 2, 2), episodes[:1])[0]
    torch.testing.assert_close(made[:2], other[:2], **CLOSE)  # the row is short at first
    assert not torch.allclose(made[4], other[4], atol=0.1)


def test_tokens_are_averaged(backbone, episodes):
    full, few = (watch(Frozen(backbone, 2, 1, tokens), episodes[:1])[0] for tokens in (16, 4))
    averaged = full.view(-1, 2, 2, 2, 2, 32).mean((2, 4)).flatten(1)
    torch.testing.assert_close(few, averaged, **CLOSE)


def test_all_layers_in_one_pass(backbone, episodes):
    found = watch_layers(Frozen(backbone, None, 2), episodes, [0, 2, 3], streams=2)
    assert list(found) == [0, 2, 3]
    for layer, seen in found.items():
        for mine, own in zip(seen, watch(Frozen(backbone, layer, 2), episodes, streams=2), strict=True):
            torch.testing.assert_close(mine, own, **CLOSE)


def test_frames_of_other_sizes_are_fitted_as_clips_are():
    image = np.random.default_rng(0).integers(0, 256, (1, 48, 64, 3), dtype=np.uint8)
    assert np.array_equal(fitted(image, 32)[0], resize_and_crop(image[0], 32))
    for wrong in (image.astype(np.float32), image[0], image[..., :1], image[:, :0]):
        with pytest.raises(ValueError, match="pass one uint8 RGB frame of every stream"):
            fitted(wrong, 32)


def test_any_frozen_backbone_and_what_it_cannot_do(backbone, checkpoint):
    assert (
        open_sight("vision:" + checkpoint, "not read", 1, device="cpu").size == open_sight("toto", checkpoint, 1).size
    )
    for arm in ("proprio", "oracle"):
        blind = open_sight(arm)
        assert blind.resolution is None and blind.see(np.zeros((2, 0, 0, 3), np.uint8)).shape == (2, 0)
    with pytest.raises(ValueError, match="There is no arm 'ears'; choose from toto"):
        open_sight("ears")
    with pytest.raises(ValueError, match="The arm untrained needs --model"):
        open_sight("untrained")
    with pytest.raises(ValueError, match=r"--context_frames is 5; .* reads at most 4 frames"):
        Frozen(backbone, 1, 5)
    with pytest.raises(ValueError, match="to 3, not 4"):
        Frozen(backbone, 4)
