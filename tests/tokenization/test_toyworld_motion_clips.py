"""Clips of toyworld:motion stay what they are: models and results refer to them by split and index."""

import hashlib

import numpy as np
import pytest

from tokenization.toyworld import open_world

# sha256 of frames, masks, flow and truth of clips 0 to 3
HASHES = {
    "motion": "5dfba80f5e64e89e48b9b5d2c6816ee1231f0c233a101db1df2eff7d8537f87f",
    "motion:pan=100,textured=50,overlap=0": "9a688c49afcba1d5a4dc2625e1131f91796397956cc8650941cf0a79f63592e1",
}


@pytest.mark.parametrize("variant", HASHES)
def test_the_same_seed_gives_the_same_clips_for_ever(variant):
    sha = hashlib.sha256()
    for split in ("train", "validation", "test"):
        for clip in map(open_world(variant, split).clip, range(4)):
            for key in ("video", "masks", "flow", "place", "contact", "visibility", "phase", "sprite", "hue"):
                sha.update(np.ascontiguousarray(clip[key]).astype("<f8").tobytes())
    assert sha.hexdigest() == HASHES[variant]
