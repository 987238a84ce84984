"""The control of permanence: is an object drawn where it would come back, although the prompt never showed it?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from evaluation.continuations.measures import Examiner, Values, found_near, returned_parts, share_of
from evaluation.continuations.reading import read
from evaluation.continuations.truth import OF_CLIPS, OF_OBJECTS, Cases, Truth
from evaluation.metrics import paired_difference, verdict
from evaluation.results import PermanenceControl, Versus
from tokenization.toyworld import MotionWorld


def without_returning(world: MotionWorld, examiner: Examiner) -> Truth:
    """The clip of every return with the object deleted: all frames are painted again without it.

    Returns:
        The truth of E clips of one object each, the deleted one as it would be; only the video is without it.
    """
    truth, objects = examiner.truth, examiner.cases["returned"].objects
    videos = []
    for k in objects:
        own = truth.clip == truth.clip[k]
        shown = truth.number[own] != truth.number[k]
        place, phase = truth.place[own].swapaxes(0, 1), truth.phase[own].T
        videos.append(world.repaint(truth.clip[k], place, phase, shown))
    of_clips = {name: getattr(truth, name)[truth.clip[objects]] for name in OF_CLIPS}
    of_objects = {name: getattr(truth, name)[objects] for name in OF_OBJECTS}
    return replace(truth, **(of_clips | of_objects | {"video": np.stack(videos), "clip": np.arange(len(objects))}))


def compare(examiner: Examiner, drawn: Values, deleted: Truth, frames: np.ndarray) -> PermanenceControl:
    """Returns in drawings of the clips against those in drawings of the clips without the object.

    drawn: of the clips. deleted: of `without_returning`. frames: uint8 (E, G, R, R, 3), drawn after its prompts; those
    after the frame of return do not matter.
    """
    cases, clips = examiner.cases["returned"], examiner.clips_of("returned")
    reading = read(frames, deleted)
    own = Cases(np.arange(len(frames)), cases.frame, cases.frames)
    parts = drawn.events["returned"], returned_parts(reading, own, found_near(reading, deleted))
    shares = [share_of({"right": each["drawn"], "returned": each["right"]}, clips) for each in parts]
    one, other = (each["drawn"] for each in parts)
    difference = paired_difference(one, other, np.ones(len(one)), groups=clips)
    return PermanenceControl(
        with_object=shares[0],
        deleted=shares[1],
        versus=Versus(**difference, verdict=verdict(difference["ci95"])),
    )
