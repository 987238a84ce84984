"""`toyworld:cups` keeps its promises: the same clips for ever, an exact truth, and no test object in training."""

import hashlib
import time
from itertools import combinations

import numpy as np
import pytest

from tokenization.sampling import Sampling
from tokenization.sources.open import open_source
from tokenization.toyworld import CupsRules, CupsWorld, cups, motion, open_world, sprites
from tokenization.toyworld.cups import CELLS, CONTAINED, MOVED, OCCLUDED, STRATA, VISIBLE
from tokenization.toyworld.items import SPLITS

FIELDS = ("video", "masks", "cells", "cup_cells", "place", "visibility", "carrier", "hue", "picture")
LABELS = ("last_seen", "cell", "stratum", "cups", "clip_id", "index")
CROWDED = "max_cups=4,posts=100,travels=100,again=100"
# sha256 of clips 0 to 3; a change of the world changes them, and then published results are of another world.
HASHES = {
    ("train", ""): "c3864a7045496f248c29ac28d50da1c462b468063de6e89839b6db850e5cf61f",
    ("validation", ""): "96546681b88b4bf57309f800cc59940704f1e87c6e5a2d9d42e28d0919f0f528",
    ("test", ""): "63d8d211b1c78b641f1033354ce58aa7452a26f6762c6b7b29f444e3d5d5107e",
    ("train", CROWDED): "3c44438ad2177dcdd53f90f0fea0f0d1234e390596a9e32755913363a7deaf1d",
}


def digest(clips) -> str:
    sha = hashlib.sha256()
    for clip in clips:
        for key in FIELDS:
            sha.update(np.ascontiguousarray(clip[key]).tobytes())
        sha.update(str([clip[key] for key in LABELS]).encode())
    return sha.hexdigest()


def world(rules: str = "", split: str = "train", **settings) -> CupsWorld:
    return CupsWorld(split, CupsRules.parse(rules), **settings)


@pytest.fixture(scope="module", params=["", CROWDED])
def clips(request):
    return [world(request.param, split).clip(index) for split in SPLITS for index in range(80)]


@pytest.mark.parametrize(("split", "rules"), HASHES)
def test_the_same_seed_gives_the_same_clips_for_ever(split, rules):
    assert digest(world(rules, split).clip(i) for i in range(4)) == HASHES[split, rules]


def test_clips_follow_from_rules_split_seed_and_index_alone():
    def make(rules="", split="validation", seed=0, index=5):
        return world(rules, split, seed=seed).clip(index)

    again = digest([make()])
    world(CROWDED).clip(0)  # what was drawn before does not matter
    assert digest([make()]) == again
    for other in (make(split="test"), make(seed=1), make(index=6)):
        assert not np.array_equal(other["video"], make()["video"])


def test_the_truth_is_what_the_masks_show(clips):
    for clip in clips:
        token = motion.TOKEN
        x, y = clip["cells"] % CELLS, clip["cells"] // CELLS
        for t, mask in enumerate(clip["masks"]):
            shown = np.argwhere(mask == cups.OBJECT)
            assert bool(len(shown)) == (clip["visibility"][t] > 0)
            if len(shown):
                assert clip["visibility"][t] == 1
                assert (shown // token == [y[t] + 1, x[t] + 1]).all()
            under = clip["cup_cells"][t] == clip["cells"][t]
            assert clip["carrier"][t] == (under.argmax() + 1 if under.any() else 0)
            for number, cell in enumerate(clip["cup_cells"][t]):
                there = np.argwhere(mask == cups.OBJECT + 1 + number) // token
                assert (there == [cell // CELLS + 1, cell % CELLS + 1]).all()
        seen = np.flatnonzero(clip["visibility"])
        assert seen[0] == 0 and clip["last_seen"] == clip["cells"][seen[-1]]
        assert clip["cell"] == clip["cells"][-1] and (clip["place"][:, 0, 0] == (x + 1) * token).all()
        assert clip["cups"] == clip["cup_cells"].shape[1] - 1


def test_strata_are_what_they_say(clips):
    assert {clip["stratum"] for clip in clips} == set(range(4))
    for clip in clips:
        hidden, is_under = clip["visibility"][-1] == 0, clip["carrier"][-1] > 0
        knows = clip["last_seen"] == clip["cell"]
        wanted = {VISIBLE: (0, 0, 1), OCCLUDED: (1, 0, 0), CONTAINED: (1, 1, 1), MOVED: (1, 1, 0)}[clip["stratum"]]
        assert (hidden, is_under, knows) == wanted
        # hidden for a while, and carried by the one cup that came over it
        if clip["stratum"] != VISIBLE:
            assert (clip["visibility"][-3:] == 0).all()
        assert len(set(clip["carrier"]) - {0}) == int(is_under)
        if clip["stratum"] == OCCLUDED:
            assert clip["masks"][-1, (clip["cell"] // CELLS + 1) * 8, (clip["cell"] % CELLS + 1) * 8] == motion.OCCLUDER


@pytest.mark.parametrize("frames", [12, 16, 32])
@pytest.mark.parametrize("stratum", range(4))
def test_clips_end_as_they_were_drawn(frames, stratum):
    names = ("visible", "occluded", "contained", "moved")
    rules = ",".join(f"{name}={int(number == stratum)}" for number, name in enumerate(names))
    made = [world(rules, num_frames=frames).clip(index) for index in range(40)]
    assert {clip["stratum"] for clip in made} == {stratum}
    assert len({clip["cell"] for clip in made}) > 12


def test_the_motion_of_cups_does_not_tell_the_stratum(clips):
    """Cups are never in one cell, and those without the object travel too, before and after the middle."""
    before, after = [], []
    for clip in clips:
        for a, b in combinations(clip["cup_cells"].T, 2):
            assert (a != b).all()
        for number, path in enumerate(clip["cup_cells"].T):
            if number + 1 != clip["carrier"][-1]:
                before.append((path[:8] != path[0]).any())
                after.append((path[9:] != path[9]).any())
    assert np.mean(before) > 0.3 and np.mean(after) > 0.2
    carriers = [clip["carrier"][-1] for clip in clips if clip["carrier"][-1]]
    assert {1, 2, 3} <= set(carriers)


def test_all_cells_occur():
    counts = np.bincount([world().clip(index)["cell"] for index in range(600)], minlength=CELLS**2)
    assert counts.min() > 3 and counts.max() < 60


def test_no_object_of_a_split_is_in_another():
    pairs = {split: set(map(tuple, cups.owned(split).tolist())) for split in SPLITS}
    for one, other in combinations(SPLITS, 2):
        assert not pairs[one] & pairs[other]
    new = {picture for picture, _ in pairs["test"]} - {picture for picture, _ in pairs["train"]}
    assert len(new) == 4 and min(map(len, pairs.values())) > 20
    heads = len(sprites.HEADS)
    for split in SPLITS:
        for clip in (world(split=split).clip(index) for index in range(20)):
            assert (int(clip["picture"][0]), int(clip["hue"][0])) in pairs[split]
            assert {picture % heads for picture in clip["picture"][1:]} <= set(cups.BOXES)
            assert len(set(clip["hue"])) == len(clip["hue"])


def patches(video: np.ndarray) -> set[bytes]:
    split = video.reshape(len(video), 8, 8, 8, 8, 3).swapaxes(2, 3).reshape(-1, 192)
    return {patch.tobytes() for patch in split}


def test_every_token_is_one_of_toyworld_motion():
    """So a tokenizer made for that world shows this one."""
    known = open_world("motion:min_objects=5,max_objects=5", num_frames=1)
    known = set().union(*(patches(known.clip(index)["video"]) for index in range(1200)))
    found = set().union(*(patches(world(num_frames=16).clip(index)["video"]) for index in range(60)))
    assert len(found) > 60 and found <= known


def test_sizes_and_lengths():
    small, large = (world(resolution=resolution).clip(3) for resolution in (64, 128))
    for key in ("video", "masks"):
        assert np.array_equal(small[key].repeat(2, 1).repeat(2, 2), large[key])
    assert np.array_equal(2 * small["place"], large["place"])
    for frames in (1, 2, 3, 7):
        clip = world(num_frames=frames).clip(1)
        assert len(clip["video"]) == frames and clip["cell"] == clip["cells"][-1]
    for settings in ({"resolution": 96}, {"num_frames": 0}):
        with pytest.raises(ValueError, match="toyworld:cups needs a multiple of 64"):
            world(**settings)


def test_rules():
    assert open_world("cups:max_cups=4,posts=0").rules == CupsRules(max_cups=4, posts=0)
    bare = [open_world("cups:posts=0,occluded=0").clip(index) for index in range(20)]
    assert not any((clip["masks"] == motion.OCCLUDER).any() for clip in bare)
    for text, why in (
        ("max_cups=5", "1 to 4 cups"),
        ("posts=101", "percentage"),
        ("visible=0,occluded=0,contained=0,moved=0", "all 0"),
        ("cup=2", "toyworld:cups does not know the rule 'cup=2'"),
    ):
        with pytest.raises(ValueError, match=why):
            CupsRules.parse(text)
    with pytest.raises(ValueError, match="motion, cups and turntable"):
        open_world("saucers")


def test_labels_of_a_source():
    source = open_source("toyworld:cups", "test", Sampling(num_frames=16, resolution=64), limit=3)
    assert source.label_names["stratum"] == list(STRATA) and len(source.label_names["cell"]) == 36
    for index, clip in enumerate(source):
        truth = world(split="test").clip(index)
        assert clip.labels == {"cell": truth["cell"], "stratum": truth["stratum"], "cups": truth["cups"]}
        x, y = map(int, source.label_names["cell"][clip.labels["cell"]].split(","))
        assert truth["cell"] == x + 6 * y and np.array_equal(clip.frames, truth["video"])


def test_it_is_fast():
    made = world()
    made.clip(0)
    began = time.process_time()
    for index in range(60):
        made.clip(index)
    assert 60 * 16 / (time.process_time() - began) > 3000
