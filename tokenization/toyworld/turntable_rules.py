"""The rules of `toyworld:turntable`, as they are named behind a dataset: `toyworld:turntable:turn=24,elevation=20`."""

from __future__ import annotations

from dataclasses import dataclass

from tokenization.toyworld.motion_rules import parse_rules

TURNS = (12, 16, 24)  # frames of a full turn: 30, 22.5 and 15 degrees a frame


@dataclass(frozen=True)
class TurntableRules:
    """The rules of `toyworld:turntable`.

    Args:
        turn: frames of a full turn: 12, 16 or 24, which are 30, 22.5 or 15 degrees a frame; 0 draws one of them for
            each clip.
        directions: 2 lets clips turn either way; 1 turns all counterclockwise, seen from above.
        hues: colours that the three parts of an object are drawn from, 3 to 5.
        elevation: harder: degrees by which the camera looks down, 0 to 45. At 0 no top of an object is seen and all
            edges are vertical or horizontal, so that frames are made of about a thousand different tokens; at 20 they
            are made of so many that a small codebook shows them coarsely.
    Raises:
        ValueError: a number is out of its range.
    """

    turn: int = 16
    directions: int = 2
    hues: int = 3
    elevation: int = 0

    def __post_init__(self):
        if self.turn not in (0, *TURNS):
            raise ValueError(f"turn is {self.turn}; it is 12, 16 or 24 frames, or 0 for any of them.")
        if self.directions not in (1, 2):
            raise ValueError(f"directions is {self.directions}; it is 1 or 2.")
        if not 0 <= self.elevation <= 45:
            raise ValueError(f"elevation is {self.elevation}; it is 0 to 45 degrees.")
        if not 3 <= self.hues <= 5:
            raise ValueError(f"hues is {self.hues}; it is 3 to 5.")

    @classmethod
    def parse(cls, text: str) -> TurntableRules:
        """Rules from "name=number,name=number"; those not named have their defaults.

        Raises:
            ValueError: no such rule, not a whole number, or a rule twice.
        """
        return parse_rules(cls, "toyworld:turntable", text)
