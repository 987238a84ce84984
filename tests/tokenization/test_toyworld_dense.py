"""Exact depth and classes of the pixels of toyworld:motion."""

import numpy as np

from tokenization.toyworld import MotionRules, MotionWorld, dense, motion


def test_depth_follows_the_order_and_the_occluder_is_nearest():
    world = MotionWorld("train", MotionRules(min_objects=3, max_objects=5, occluders=100), num_frames=4)
    for index in range(5):
        clip = world.clip(index)
        for time in range(4):
            metres, masks = dense.depth(clip, time), clip["masks"][time]
            assert metres.dtype == np.float32 and metres.shape == masks.shape
            assert set(metres[masks == motion.OCCLUDER]) == {1.0} and set(metres[masks == 0]) <= {6.0}
            seen = [float(metres[masks == k][0]) for k in clip["depth_order"] if (masks == k).any()]
            assert seen == sorted(seen, reverse=True) and all(1 < each < 6 for each in seen)  # farthest first


def test_classes_are_the_hues_of_what_is_seen():
    world = MotionWorld("test", MotionRules(min_objects=2), num_frames=3)
    for index in range(5):
        clip = world.clip(index)
        assert world.hues(index) == clip["hue"].tolist()
        classes, masks = dense.classes(clip, 2), clip["masks"][2]
        assert not classes[(masks == 0) | (masks == motion.OCCLUDER)].any()
        for number, hue in enumerate(clip["hue"]):
            assert set(classes[masks == number + 1]) <= {hue + 1}
