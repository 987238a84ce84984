"""The rules of `toyworld:cups`, as they are named behind a dataset: `toyworld:cups:max_cups=4,posts=0`."""

from __future__ import annotations

from dataclasses import dataclass

from tokenization.toyworld import sprites
from tokenization.toyworld.motion_rules import parse_rules


@dataclass(frozen=True)
class CupsRules:
    """The rules of `toyworld:cups`. Chances are percentages.

    Args:
        visible, occluded, contained, moved: how often a clip ends with the object in sight, behind a post, under a cup
            that stays, and under a cup that moves on; weights, of which at least one is above 0.
        min_cups, max_cups: cups of a clip, each of its own hue; at most four.
        posts: chance of a post in the clips that do not need one.
        travels: chance of a cup without the object to travel once before the middle of the clip, as a cup does that
            covers the object.
        again: chance of a cup without the object to travel after the middle, as a cup does that carries the object.
    Raises:
        ValueError: a number is out of its range.
    """

    visible: int = 1
    occluded: int = 1
    contained: int = 1
    moved: int = 1
    min_cups: int = 2
    max_cups: int = 3
    posts: int = 50
    travels: int = 75
    again: int = 50

    def __post_init__(self):
        if not sum(self.weights):
            raise ValueError("visible, occluded, contained and moved are all 0; set at least one of them above 0.")
        if not 1 <= self.min_cups <= self.max_cups < len(sprites.HUES):
            raise ValueError(
                f"min_cups is {self.min_cups} and max_cups {self.max_cups}; toyworld:cups has 1 to "
                f"{len(sprites.HUES) - 1} cups."
            )
        for name in ("posts", "travels", "again"):
            if not 0 <= getattr(self, name) <= 100:
                raise ValueError(f"{name} is {getattr(self, name)}; it is a percentage, 0 to 100.")

    @property
    def weights(self) -> tuple[int, int, int, int]:
        """Of the strata, in the order of `cups.STRATA`."""
        return self.visible, self.occluded, self.contained, self.moved

    @classmethod
    def parse(cls, text: str) -> CupsRules:
        """Rules from "name=number,name=number"; see `parse_rules`."""
        return parse_rules(cls, "toyworld:cups", text)
