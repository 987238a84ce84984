"""The embedded world: endless rendered clips with exact labels, and pictures, both determined by a seed."""

from __future__ import annotations

from tokenization.toyworld.cups import CupsWorld
from tokenization.toyworld.cups_rules import CupsRules
from tokenization.toyworld.motion import MotionWorld
from tokenization.toyworld.motion_rules import MotionRules
from tokenization.toyworld.turntable import TurntableWorld
from tokenization.toyworld.turntable_rules import TurntableRules
from tokenization.toyworld.world import MOTIONS, VARIANTS, EndlessClips, ToyWorld

__all__ = [
    "MOTIONS",
    "CupsRules",
    "CupsWorld",
    "MotionRules",
    "MotionWorld",
    "ToyWorld",
    "TurntableRules",
    "TurntableWorld",
    "open_world",
]


def open_world(
    variant: str = "simple", split: str = "train", seed: int = 0, resolution: int = 64, num_frames: int = 16
) -> EndlessClips:
    """The clips of a variant, named as after "toyworld:".

    "motion:NAME=NUMBER,..." sets rules of MotionRules, "cups:NAME=NUMBER,..." those of CupsRules, and
    "turntable:NAME=NUMBER,..." those of TurntableRules.

    Raises:
        ValueError: unknown variant, split or rule, or a size that the variant does not have.
    """
    name, _, rules = variant.partition(":")
    if name == "motion":
        return MotionWorld(split, MotionRules.parse(rules), seed, resolution, num_frames)
    if name == "cups":
        return CupsWorld(split, CupsRules.parse(rules), seed, resolution, num_frames)
    if name == "turntable":
        return TurntableWorld(split, TurntableRules.parse(rules), seed, resolution, num_frames)
    if variant not in VARIANTS:
        raise ValueError(
            f"toyworld has no variant '{variant}'; it has {', '.join(VARIANTS)}, motion, cups and turntable."
        )
    return ToyWorld(split, variant, seed, resolution, num_frames)
