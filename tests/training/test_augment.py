"""Augmentation: what is mixed has the shares that its target says, all frames are treated alike, and draws repeat."""

import numpy as np
import pytest

from training.finetune_args import AugmentArgs
from training.rows.augment import OPERATIONS, Augment, crop_box, mix

RNG = np.random.default_rng(0)
CLIP = RNG.integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
BLACK, WHITE = np.zeros((2, 32, 32, 3), np.uint8), np.full((2, 32, 32, 3), 255, np.uint8)
TARGETS = np.array([1.0, 0.0], np.float32), np.array([0.0, 1.0], np.float32)


def test_sizes_and_repeatable_draws():
    augment = Augment(32, 0.3, True, 2, 9)
    once, again = (augment(CLIP, np.random.default_rng(7)) for _ in range(2))
    assert once.shape == (3, 32, 32, 3) and once.dtype == np.uint8
    assert np.array_equal(once, again)
    assert not np.array_equal(once, augment(CLIP, np.random.default_rng(8)))


@pytest.mark.parametrize("seed", range(6))
def test_all_frames_of_a_clip_are_treated_alike(seed):
    still = np.repeat(CLIP[:1], 4, axis=0)
    made = Augment(32, 0.3, True, 3, 10)(still, np.random.default_rng(seed))
    assert all(np.array_equal(frame, made[0]) for frame in made)


def test_nothing_asked_changes_nothing():
    assert np.array_equal(Augment(40, None, False, 0, 9)(CLIP, RNG), CLIP)


def test_a_flip_is_a_mirror_image_and_comes_half_of_the_time():
    augment = Augment(40, None, True, 0, 9)
    made = [augment(CLIP, np.random.default_rng(seed)) for seed in range(200)]
    mirrored = [np.array_equal(clip, CLIP[:, :, ::-1]) for clip in made]
    assert all(np.array_equal(clip, CLIP) for clip, is_mirrored in zip(made, mirrored, strict=True) if not is_mirrored)
    assert 70 < sum(mirrored) < 130


def test_crops_keep_their_bounds():
    for seed in range(300):
        left, top, right, bottom = crop_box(40, 0.2, np.random.default_rng(seed))
        assert 0 <= left < right <= 40 + 1e-9 and 0 <= top < bottom <= 40 + 1e-9
        assert 0.2 - 1e-9 <= (right - left) * (bottom - top) / 1600 <= 1 + 1e-9
        assert 0.74 < (right - left) / (bottom - top) < 1.34


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_works_at_both_ends_and_most_do_nothing_at_zero(name):
    from PIL import Image

    picture = Image.fromarray(CLIP[0])
    for level in (-1.0, 0.0, 1.0):
        made = OPERATIONS[name](picture, level)
        assert made.size == picture.size and made.mode == "RGB"
    if name not in ("autocontrast", "equalize"):
        assert np.array_equal(np.asarray(OPERATIONS[name](picture, 0.0)), CLIP[0])
        if name != "identity":
            assert not np.array_equal(np.asarray(OPERATIONS[name](picture, 1.0)), CLIP[0])


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_the_target_has_the_shares_of_the_pixels(mixup, cutmix):
    shares = []
    for seed in range(50):
        clip, target = mix((BLACK, WHITE), TARGETS, mixup, cutmix, np.random.default_rng(seed))
        assert clip.shape == BLACK.shape and clip.dtype == np.uint8
        assert target.sum() == pytest.approx(1)
        assert clip.mean() / 255 == pytest.approx(target[1], abs=0.003)
        assert np.array_equal(clip[0], clip[1])
        shares.append(target[1])
        if not mixup:
            assert set(np.unique(clip)) <= {0, 255}  # cut, not blended
    assert min(shares) < 0.2 and max(shares) > 0.6  # a box at the edge loses a part


def test_ids_cannot_be_blended():
    with pytest.raises(ValueError, match="only ids, which cannot be blended; use --augment crop"):
        AugmentArgs(augment="none", mixup=0.8)
