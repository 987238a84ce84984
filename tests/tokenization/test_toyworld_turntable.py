"""`toyworld:turntable` keeps its promises: the same clips for ever, exact angles, and no test shape in training."""

import hashlib

import numpy as np
import pytest

from tokenization.sampling import Sampling
from tokenization.sources.open import open_source
from tokenization.toyworld import TurntableRules, TurntableWorld, open_world
from tokenization.toyworld import turntable_objects as objects
from tokenization.toyworld.items import SPLITS

# sha256 of clips 0, 1 and 2; a change of the world changes them, and then trained weights saw another world.
HASHES = {
    ("train", ""): "b22c0bbdf7c991c5508645c465ab20a766a0e0ac17b16a4fb8b2fa5e1c8f97e1",
    ("test", ""): "3fb34e18317b7ccc1f980c43aeee3267e81c8b711c7c03e471eedb579b5e57ed",
    ("validation", "elevation=25,turn=0,hues=5"): "c25e90293e3d6ad70560a13c5aa3ea61078f483ca3233f407d901bfadfc03a93",
}
EVERY = [(split, number) for split in SPLITS for number in range(0, len(objects.owned(split)), 7)]


def world(rules: str = "", split: str = "train", **settings) -> TurntableWorld:
    return TurntableWorld(split, TurntableRules.parse(rules), **settings)


def digest(clips) -> str:
    sha = hashlib.sha256()
    for clip in clips:
        for key in ("video", "masks", "angle", "shape", "hues"):
            sha.update(np.ascontiguousarray(clip[key]).tobytes())
        sha.update(str([clip[key] for key in ("step", "mirrored", "direction", "turn", "clip_id")]).encode())
    return sha.hexdigest()


@pytest.mark.parametrize(("split", "rules"), HASHES)
def test_the_same_seed_gives_the_same_clips_for_ever(split, rules):
    assert digest(world(rules, split).clip(index) for index in range(3)) == HASHES[split, rules]


def test_clips_follow_from_rules_split_seed_and_index_alone():
    one = world("elevation=10")
    again = [one.clip(index) for index in (3, 1, 3)]
    assert digest(again[:1]) == digest(again[2:]) != digest(again[1:2])
    long = world("elevation=10", num_frames=40).clip(3)
    assert np.array_equal(long["video"][:16], again[0]["video"])
    assert digest([world("elevation=10", seed=1).clip(3)]) != digest(again[:1])
    double = world("elevation=10", resolution=128).clip(3)
    assert np.array_equal(double["video"][:, ::2, 1::2], again[0]["video"])
    assert np.array_equal(double["masks"][:, 1::2, ::2], again[0]["masks"])


def test_no_shape_is_in_two_splits_and_every_pair_of_parts_is_in_train():
    shapes = {split: {tuple(shape) for shape in objects.owned(split)} for split in SPLITS}
    assert not shapes["train"] & shapes["validation"] and not shapes["train"] & shapes["test"]
    assert not shapes["validation"] & shapes["test"]
    assert sum(map(len, shapes.values())) == 6**3 and len(shapes["test"]) == 36
    for pair in ((0, 1), (0, 2), (1, 2)):
        assert len({tuple(shape[k] for k in pair) for shape in shapes["train"]}) == 36
    for split in SPLITS:
        one = world(split=split)
        assert {tuple(one.clip(index)["shape"]) for index in range(60)} <= shapes[split]


@pytest.mark.parametrize("rules", ["", "turn=12", "turn=24,directions=1", "turn=0", "elevation=40"])
def test_the_angle_is_that_of_the_frame(rules):
    one = world(rules, "test")
    for index in range(4):
        clip = one.clip(index)
        moved = np.diff(clip["angle"].astype(float)) % 360
        assert np.array_equal(moved, np.full(15, clip["step"] % 360))
        assert abs(clip["step"]) == 360 / int(one.label_names["turn"][clip["turn"]])
        assert clip["direction"] == (clip["step"] < 0)
        assert ((clip["angle"] >= 0) & (clip["angle"] < 360)).all()
        for turns in (-360, 0, 720):
            assert np.array_equal(one.views(index, clip["angle"] + turns), clip["video"])
        assert not np.array_equal(one.views(index, clip["angle"] + 7.5), clip["video"])
    if "directions=1" in rules:
        assert {one.clip(index)["direction"] for index in range(12)} == {0}
    if rules == "turn=0":
        assert {one.clip(index)["turn"] for index in range(24)} == {0, 1, 2}


def corners(shape, angle: float, elevation: float, mirrored: bool):
    """Pixels (x, y) of the corners of each part as real numbers: (3, 8), (3, 8)."""
    low, high = objects.boxes(shape, mirrored).transpose(1, 0, 2)[..., None]  # (3, 3, 1)
    grid = np.array(np.meshgrid((0, 1), (0, 1), (0, 1))).reshape(3, -1)
    x, y, z = (low + (high - low) * grid).transpose(1, 0, 2)
    turn, tilt = np.radians([angle, elevation])
    across, away = x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)
    up = z * np.cos(tilt) + away * np.sin(tilt)
    return across + 31.5, 56 - elevation // 3 - 0.5 - up


@pytest.mark.parametrize("elevation", [0, 20, 45])
@pytest.mark.parametrize("mirrored", [False, True])
def test_parts_are_where_geometry_puts_their_corners(elevation, mirrored):
    angles = np.arange(0, 720, 31)
    for split, number in EVERY:
        shape = objects.owned(split)[number]
        solids = objects.boxes(shape, mirrored)
        for part in range(3):  # each alone, so that nothing hides it
            seen = objects.render(solids[part : part + 1], angles, elevation) > 0
            for picture, angle in zip(seen, angles / 2, strict=True):
                x, y = corners(shape, angle, elevation, mirrored)
                rows, columns = np.flatnonzero(picture.any(1)), np.flatnonzero(picture.any(0))
                across = columns[0] - x[part].min(), x[part].max() - columns[-1]
                down = rows[0] - y[part].min(), y[part].max() - rows[-1]
                assert min(across) > -0.001 and max(across) < 1.001  # edges are vertical
                assert min(down) > -0.001 and max(down) < 1.4  # a corner may be too thin for a pixel's centre


def test_objects_are_inside_the_frame_at_every_view():
    for split, number in EVERY:
        for elevation in (0, 20, 30, 45):
            solids = objects.boxes(objects.owned(split)[number], False)
            seen = objects.render(solids, np.arange(0, 720, 45), elevation) > 0
            assert seen.any((1, 2)).all()
            assert not seen[:, [0, -1]].any() and not seen[:, :, [0, -1]].any()


def test_a_mirrored_object_turns_the_other_way():
    angles = np.arange(15, 720, 45)  # but for those at which a side is seen from straight ahead
    for split, number in EVERY:
        shape = objects.owned(split)[number]
        one, other = (objects.render(objects.boxes(shape, mirrored), turn, 20) for mirrored, turn in
                      ((False, angles), (True, 360 - angles)))  # fmt: skip
        flipped = other[:, :, ::-1]
        part = [np.where(each > 0, (each.astype(int) - 1) // objects.SHADES + 1, 0) for each in (one, flipped)]
        same = part[0] == part[1]  # but for pixels whose centre an edge passes through
        assert same.mean() > 0.998
        sides = same & (one > 0) & ((one - 1) % 3 > 0)
        lit = [(each[sides] - 1) % 3 == 1 for each in (one, flipped)]
        assert (lit[0] != lit[1]).all()  # the light comes from the left in both


def test_nearer_parts_hide_farther_ones():
    boxes = np.array([[[-10, -10, 0], [10, -5, 8]], [[-10, 5, 0], [10, 10, 8]]])  # in front of each other along y
    parts = (objects.render(boxes, [0, 360, 1], 0).astype(int) - 1) // objects.SHADES
    front = parts[:, 52, 28:36]
    assert (front[0] == 0).all() and (front[1] == 1).all() and (front[2] == 0).all()


def test_few_tokens_make_the_frames_without_elevation():
    made = np.concatenate([world().clip(index)["video"][::4] for index in range(60)])
    tokens = made.reshape(-1, 8, 8, 8, 8, 3).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 192)
    assert len(np.unique(tokens, axis=0)) < 900


def test_it_is_read_as_a_dataset():
    sampling = Sampling(num_frames=4, resolution=64)
    source = open_source("toyworld:turntable:turn=12", "validation", sampling, limit=3)
    read = list(source)
    assert len(read) == 3 and source.kind == "video"
    assert np.array_equal(read[1].frames, world("turn=12", "validation", num_frames=4).clip(1)["video"])
    assert set(read[0].labels) == {"direction", "turn"} and read[0].labels["turn"] == 0


@pytest.mark.parametrize(
    ("variant", "sentence"),
    [
        ("turntable:speed=3", "toyworld:turntable does not know the rule 'speed=3'; write name=number"),
        ("turntable:turn=20", "turn is 20; it is 12, 16 or 24 frames, or 0"),
        ("turntable:directions=3", "directions is 3; it is 1 or 2"),
        ("turntable:elevation=46", "elevation is 46; it is 0 to 45 degrees"),
        ("turntable:hues=2", "hues is 2; it is 3 to 5"),
    ],
)
def test_wrong_rules_are_one_sentence(variant, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        open_world(variant)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_wrong_sizes_splits_and_angles_are_one_sentence():
    with pytest.raises(ValueError, match="toyworld:turntable needs a multiple of 64 pixels"):
        world(resolution=96)
    with pytest.raises(ValueError, match="toyworld has no split 'dev'"):
        world(split="dev")
    with pytest.raises(ValueError, match="not multiples of half a degree"):
        world().views(0, [0.25])
