"""What is to be recovered from clips of `toyworld:motion`: where its objects are, what they look like, what is asked.

The world is read at its own 64 x 64 pixels, whatever the side of the model's frames. Arrays are over clips (C,),
objects of all clips (O,), all frames (T,) or the drawn ones (G,), which follow P prompt frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import numpy as np

from tokenization.toyworld import MotionWorld, motion, sprites

# Shares of an object's pixels that are seen (paper silent; all are ours): to judge its mask; its identity, place and
# phase; its places at a bounce. Below HIDDEN it counts as hidden, from RETURNED on as back.
MASKED, JUDGED, BOUNCED, HIDDEN, RETURNED = 0.25, 0.75, 0.5, 0.1, 0.6

OF_OBJECTS = ("number", "sprite", "hue", "shade", "period", "moving", "phase", "place", "contact", "visibility", "size",
              "cover")  # fmt: skip
OF_CLIPS = ("video", "masks", "camera", "palette", "labels")


@dataclass(frozen=True)
class Truth:
    """The truth of some clips.

    Fields:
        prompt: P. step: pixels between the places that an object can have. margin: pixels by which an object may stick
            out to the left and right of the frame and still be judged, where a camera pans.
        video uint8 (C, T, 64, 64, 3), masks uint8 (C, T, 64, 64), camera (C, T): as in `MotionWorld`.
        palette (C, K, 3): colours of the clip. labels uint8 (K,) each: what a colour belongs to, as in masks. Both are
            padded with the floor.
        clip (O,): the object's clip. number (O,): in the masks. sprite, hue, shade, period, moving (O,); phase,
            contact, visibility (O, T) and place (O, T, 2): as in `MotionWorld`.
        size (O, T): pixels of the object's picture.
        cover bool (O, G, 64, 64): what something nearer than the object hides.
    """

    prompt: int
    step: int
    margin: int
    video: np.ndarray
    masks: np.ndarray
    camera: np.ndarray
    palette: np.ndarray
    labels: np.ndarray
    clip: np.ndarray
    number: np.ndarray
    sprite: np.ndarray
    hue: np.ndarray
    shade: np.ndarray
    period: np.ndarray
    moving: np.ndarray
    phase: np.ndarray
    contact: np.ndarray
    visibility: np.ndarray
    place: np.ndarray
    size: np.ndarray
    cover: np.ndarray

    @property
    def num_frames(self) -> int:
        """G, the number of drawn frames."""
        return self.video.shape[1] - self.prompt

    def drawn(self, name: str) -> np.ndarray:
        """A field over all frames, cut to the drawn ones."""
        return getattr(self, name)[:, self.prompt :]

    def part(self, start: int, stop: int) -> Truth:
        """The truth of clips start..stop - 1."""
        own = (self.clip >= start) & (self.clip < stop)
        cut = {name: getattr(self, name)[start:stop] for name in OF_CLIPS}
        return replace(self, **cut, clip=self.clip[own] - start, **{n: getattr(self, n)[own] for n in OF_OBJECTS})


def read_truth(world: MotionWorld, count: int, prompt: int, watch: Callable = iter) -> Truth:
    """The truth of the first `count` clips of a world of 64 pixels.

    watch: wraps the indices, such as tqdm.
    """
    found: dict[str, list] = {each.name: [] for each in fields(Truth)}
    rules = world.rules
    for index in watch(range(count)):
        clip = world.clip(index)
        number = np.arange(len(clip["sprite"]))
        own = {name: clip[name] for name in ("sprite", "hue", "shade", "period", "moving")}
        own |= {name: clip[name].T for name in ("phase", "contact", "visibility")}
        own |= {"place": clip["place"].swapaxes(0, 1), "number": number + 1, "clip": 0 * number + index}
        solid = (sprites.pictures() > 0).sum((2, 3))
        own["size"] = solid[own["sprite"][:, None], own["phase"]]
        own["cover"] = _cover(clip, prompt, bool(rules.overlap))
        for name, values in own.items():
            found[name].extend(values)
        palette, labels = _colours(clip, rules.textured > 0)
        for name in ("video", "masks", "camera"):
            found[name].append(clip[name])
        found["palette"].append(palette)
        found["labels"].append(labels)
    most = max(map(len, found["labels"]))
    for name in ("palette", "labels"):
        found[name] = [np.concatenate([each, each[:1].repeat(most - len(each), 0)]) for each in found[name]]
    arrays = {name: np.stack(values) for name, values in found.items() if name not in ("prompt", "step", "margin")}
    step = motion.HALF if rules.half_tokens else motion.TOKEN
    return Truth(prompt=prompt, step=step, margin=motion.TOKEN if rules.pan else 0, **arrays)


def _cover(clip: dict, prompt: int, overlap: bool) -> np.ndarray:
    """Truth.cover of one clip, bool (N, G, 64, 64)."""
    masks, place = clip["masks"][prompt:], clip["place"][prompt:]  # (G, 64, 64), (G, N, 2)
    along = np.arange(masks.shape[1])
    hidden, found = masks == motion.OCCLUDER, np.empty((place.shape[1], *masks.shape), bool)
    for number in reversed(clip["depth_order"]):  # nearest first
        found[number - 1] = hidden
        x, y = (np.abs(along - place[:, number - 1, axis, None] - (sprites.SIDE - 1) / 2) for axis in (0, 1))
        square = (y < sprites.SIDE / 2)[:, :, None] & (x < sprites.SIDE / 2)[:, None]
        hidden = hidden | (square if overlap else masks == number)
    return found


def _colours(clip: dict, textured: bool) -> tuple[np.ndarray, np.ndarray]:
    """The colours (K, 3) of a clip and what each belongs to (K,), as in its masks; the floor is the first."""
    table = motion.palette_of(clip["hue"], clip["shade"], textured)
    floor = [*range(motion.TEXTURE, len(table))] if textured else []
    indices = [motion.FLOOR, motion.LINE, *floor, motion.STONE, motion.JOINT, motion.EDGE]
    labels = [0] * (2 + len(floor)) + [motion.OCCLUDER] * 3
    for number in range(len(clip["hue"])):
        indices += [motion.BODY + 2 * number, motion.BODY + 2 * number + 1]
        labels += [number + 1] * 2
    colours = table[indices]
    if textured:  # some clips have the bare floor
        colours, labels = np.concatenate([colours, [motion.COLOURS[motion.FLOOR]]]), [*labels, 0]
    return colours, np.array(labels, np.uint8)


@dataclass(frozen=True)
class Cases:
    """Cases of an event: the object (E,) of each and the drawn frames that matter, (E,) or bool (E, G)."""

    objects: np.ndarray
    frame: np.ndarray | None = None
    frames: np.ndarray | None = None


def bounces(truth: Truth) -> Cases:
    """Objects whose first contact with a wall among the drawn frames is not in the last one.

    Those count of which at least half is seen both at the contact, `frame`, and one frame later, when the object has
    turned around.
    """
    contact = truth.drawn("contact")[:, :-1]
    seen = truth.drawn("visibility") >= BOUNCED
    if not contact.shape[1]:
        return Cases(np.zeros(0, int), np.zeros(0, int))
    first = contact.argmax(1)
    every = np.arange(len(first))
    objects = np.flatnonzero(contact.any(1) & seen[every, first] & seen[every, first + 1])
    return Cases(objects, first[objects])


def returns(truth: Truth) -> Cases:
    """Objects that something hides at the end of the prompt or later, and that come back within the drawn frames.

    The object was seen in the prompt (RETURNED), is hidden (below HIDDEN, inside the frame) in the last prompt frame or
    a drawn one, and is back (RETURNED) in a later one, `frame`: the first return of each object. `frames`: the drawn
    frames before it in which the object is hidden.
    """
    visibility, last = truth.visibility, truth.prompt - 1
    x = truth.place[..., 0]
    inside = (x >= 0) & (x <= motion.SIDE - sprites.SIDE)
    hidden = (visibility < HIDDEN) & inside
    hidden[:, :last] = False
    since = hidden.cumsum(1) > 0
    back = since & (visibility >= RETURNED)
    objects = np.flatnonzero((visibility[:, : truth.prompt] >= RETURNED).any(1) & back.any(1))
    frame = back.argmax(1)[objects]
    before = np.arange(visibility.shape[1]) < frame[:, None]
    return Cases(objects, frame - truth.prompt, ((visibility[objects] < HIDDEN) & before)[:, truth.prompt :])


def periods(truth: Truth) -> Cases:
    """Objects whose pictures change, and the drawn frames in which they can be judged (JUDGED), `frames`."""
    judged = truth.drawn("visibility") >= JUDGED
    objects = np.flatnonzero((truth.period > 1) & judged.any(1))
    return Cases(objects, frames=judged[objects])
