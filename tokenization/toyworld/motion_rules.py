"""The rules of `toyworld:motion`, as they are named behind a dataset: `toyworld:motion:pan=100,max_objects=5`."""

from __future__ import annotations

from dataclasses import dataclass, fields

from tokenization.toyworld import sprites


@dataclass(frozen=True)
class MotionRules:
    """The rules of `toyworld:motion`. Chances are percentages.

    Args:
        min_objects, max_objects: objects of a clip, each of its own hue; at most five.
        rest: chance of an object to stand still.
        directions: 4 (along the walls) or 8 (diagonals as well) ways to move.
        pause: frames that an object stays at a wall before it turns around. With 2, places repeat after 16 frames, and
            no frame of a row of 16 shows where an object is later; with 0 they repeat after 12.
        occluders: chance of a clip to have a post or a wall in front of everything.
        spinners: chance of an object to be a spinner, which turns by a quarter or an eighth each frame.
        walkers: chance of a creature to walk: to cycle through 2 to 4 pictures.
        overlap: 1 lets objects hide what is behind their transparent pixels as well, up to the edges of their tokens,
            so that an overlap makes no new token; 0 shows it.
        half_tokens: harder: chance of an object to move by half a token each frame.
        pan: harder: chance of a clip to be seen by a camera that pans over a wider room, a token each frame.
        textured: harder: chance of a clip to have a textured floor.
    Raises:
        ValueError: a number is out of its range.
    """

    min_objects: int = 1
    max_objects: int = 3
    rest: int = 25
    directions: int = 8
    pause: int = 2
    occluders: int = 50
    spinners: int = 25
    walkers: int = 50
    overlap: int = 1
    half_tokens: int = 0
    pan: int = 0
    textured: int = 0

    def __post_init__(self):
        if not 1 <= self.min_objects <= self.max_objects <= len(sprites.HUES):
            raise ValueError(
                f"min_objects is {self.min_objects} and max_objects {self.max_objects}; toyworld:motion has 1 to "
                f"{len(sprites.HUES)} objects."
            )
        if self.directions not in (4, 8) or self.overlap not in (0, 1):
            raise ValueError(
                f"directions is {self.directions} and overlap {self.overlap}; directions is 4 or 8, overlap 0 or 1."
            )
        if not 0 <= self.pause <= 16:
            raise ValueError(f"pause is {self.pause}; it is 0 to 16 frames.")
        for name in ("rest", "occluders", "spinners", "walkers", "half_tokens", "pan", "textured"):
            if not 0 <= getattr(self, name) <= 100:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a percentage, 0 to 100.")

    @classmethod
    def parse(cls, text: str) -> MotionRules:
        """Rules from "name=number,name=number"; those not named have their defaults.

        Raises:
            ValueError: no such rule, not a whole number, or a rule twice.
        """
        return parse_rules(cls, "toyworld:motion", text)


def parse_rules(kind: type, world: str, text: str):
    """The dataclass `kind` from "name=number,name=number"; `world` is named in errors, which are those of `parse`."""
    known = [field.name for field in fields(kind)]
    given = {}
    for part in filter(None, text.split(",")):
        name, value = (side.strip() for side in part.partition("=")[::2])
        if name not in known or name in given or not value.isdecimal():
            raise ValueError(
                f"{world} does not know the rule {part!r}; write name=number, each name once, of {', '.join(known)}."
            )
        given[name] = int(value)
    return kind(**given)
