"""The sprites of `toyworld:motion`: 16 x 16 pictures of two tones, which of them belongs to which split, and colours.

A creature is one of 12 left halves of a head, one of 12 right halves, and one of 6 pairs of feet, whose four pictures
make it walk. A spinner is a disc with light quarters, which turns by quarters, or with pointers, which turns by
eighths. All are made of tokens of 8 x 8 pixels that many sprites share, so that a creature held out of training is
new only as a whole; and there are too many for a small model to learn by heart which are in training.
"""

from __future__ import annotations

import functools

import numpy as np

from tokenization.toyworld.items import SPLITS

SIDE = 16  # pixels of a sprite's side: two tokens
PHASES = 8  # pictures a sprite may have; those with fewer repeat them

# Left halves in pixels of 2 x 2, mirrored for right halves: ' ' transparent, '#' the body, 'o' the detail.
HEADS = (
    "   #|  ##| #o#|####",
    "  ##| ###|#oo#|####",
    "####|####|#o##|####",
    "#  #|## #|####|##o#",
    "#   | #  | ###|##o#",
    "  # |  # |####|#oo#",
    " ###|####|oo##|oo##",
    "   o|   #| ###|#o##",
    "## #|####| #o#| ###",
    "  oo| ###|##o#| ###",
    "o   |##  |####|#o##",
    "   #|####| o##|####",
)
# Whole lower halves, four pictures of a walk each.
FEET = (
    ("########|#o####o#|##    ##|##    ##", "########|#o####o#| ##  ## |##    ##",
     "########|#o####o#|  ####  |  #  #  ", "########|#o####o#| ##  ## | #    # "),
    (" ###### |########|# #  # #|# #  # #", " ###### |########| # ## # |# #  # #",
     " ###### |########|# #  # #| # ## # ", " ###### |########| # ## # | # ## # "),
    ("########| #oooo# |  #  #  | ##  ## ", "########| #oooo# | #  #   |##  ##  ",
     "########| #oooo# |  ####  |  ####  ", "########| #oooo# |   #  # |  ##  ##"),
    ("########|########|oo#  #oo|oo    oo", "########|########|#o#  #o#|oo    oo",
     "########|########|o##  ##o|o#    #o", "########|########|##o  o##|#o    o#"),
    ("###oo###|###oo###|# #### #|  #  #  ", "###oo###|###oo###|#  ##  #| #    # ",
     "###oo###|###oo###| ##  ## |#      #", "###oo###|###oo###|  #### |   ##   "),
    (" ###### | #o##o# | ###### |#  ##  #", " ###### | #o##o# | ###### | #    # ",
     " ###### | ##oo## | ###### |  #  #  ", " ###### | ##oo## | ###### |   ##   "),
)  # fmt: skip
# Discs that turn by quarters: which quarters are light, clockwise from the upper right, before the first turn.
WHEELS = {"wheel": (1, 0, 0, 0), "half": (1, 1, 0, 0), "three": (1, 1, 1, 0)}
# Discs that turn by eighths: where their pointers are, in eighths clockwise from up.
DIALS = {"dial": (0,), "needle": (0, 4), "clock": (0, 3)}
SPINNERS = (*WHEELS, *DIALS)
TURNS = (4, 4, 4, 8, 4, 8)  # pictures of a spinner until it looks as at first
NUM_CREATURES = len(HEADS) ** 2 * len(FEET)
NUM_SPRITES = NUM_CREATURES + len(SPINNERS)

# The body's colour; the detail is a tint of it, so that each pixel of an object shows its hue.
HUES = {
    "red": (214, 56, 56),
    "amber": (226, 152, 30),
    "green": (52, 164, 84),
    "blue": (66, 118, 228),
    "violet": (170, 78, 206),
}
# Added to all channels of a hue: each split has its own; train has one, so that a codebook spends no code on shades.
SHADES = {"train": (0,), "validation": (-4,), "test": (4,)}


def _picture(rows: str) -> np.ndarray:
    """Rows of ' ', '#' and 'o', separated by '|' -> uint8 0, 1, 2, each pixel doubled."""
    lines = rows.split("|")
    width = max(map(len, lines))
    small = np.array([[" #o".index(c) for c in line.ljust(width)] for line in lines], dtype=np.uint8)
    return small.repeat(2, axis=0).repeat(2, axis=1)


def _disc() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x and y, twice the distance from the centre so that they are integers, and whether a pixel is on the disc."""
    y, x = np.mgrid[:SIDE, :SIDE] * 2 - (SIDE - 1)
    return x, y, x * x + y * y <= 15 * 15


def _wheel(light: tuple[int, ...], phase: int) -> np.ndarray:
    """A disc with light quarters, turned clockwise by `phase` quarters."""
    x, y, disc = _disc()
    quarter = np.where(y < 0, np.where(x > 0, 0, 3), np.where(x > 0, 1, 2))
    inner = x * x + y * y <= 11 * 11  # the rim stays dark, so that a light quarter is a token of its own
    shown = np.array(light)[(quarter - phase) % 4]
    return np.where(disc, 1 + shown * inner, 0).astype(np.uint8)


def _dial(pointers: tuple[int, ...], phase: int) -> np.ndarray:
    """A disc with pointers, turned clockwise by `phase` eighths."""
    x, y, disc = _disc()
    found = np.zeros((SIDE, SIDE), dtype=bool)
    for pointer in pointers:
        eighth = (pointer + phase) % 8
        step_x, step_y = ((0, -1), (1, -1), (1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1))[eighth]
        along, across = x * step_x + y * step_y, x * step_y - y * step_x
        # only the quarters that it points to, so that pointers share their tokens
        ahead = (x * step_x >= 0) & (y * step_y >= 0) & (along > 0)
        found |= ahead & (abs(across) <= (4 if step_x and step_y else 3))
    return np.where(disc, 1 + found, 0).astype(np.uint8)


def parts(creature):
    """The left and right halves of a creature's head, and its feet: indices into HEADS, HEADS and FEET. Arrays too."""
    heads, feet = divmod(creature, len(FEET))
    return *divmod(heads, len(HEADS)), feet


@functools.cache
def pictures() -> np.ndarray:
    """All sprites: uint8 (NUM_SPRITES, PHASES, 16, 16), 0 transparent, 1 body, 2 detail."""
    table = np.zeros((NUM_SPRITES, PHASES, SIDE, SIDE), dtype=np.uint8)
    heads = [_picture(head) for head in HEADS]
    walks = np.array([[_picture(picture) for picture in walk] for walk in FEET])  # (feet, 4, 8, 16)
    for sprite in range(NUM_CREATURES):
        left, right, feet = parts(sprite)
        table[sprite, :, :8] = np.concatenate([heads[left], heads[right][:, ::-1]], axis=1)
        table[sprite, :, 8:] = walks[feet, np.arange(PHASES) % 4]
    for number, name in enumerate(SPINNERS):
        for phase in range(PHASES):
            turned = _dial(DIALS[name], phase) if name in DIALS else _wheel(WHEELS[name], phase)
            table[NUM_CREATURES + number, phase] = turned
    table.setflags(write=False)
    return table


@functools.cache
def owned(split: str) -> tuple[np.ndarray, np.ndarray]:
    """The (sprite, hue) pairs of a split, creatures and spinners: int64 (N, 2) each.

    No creature has the same hue in two splits. A sixth of them is kept for validation and one for test, in all hues;
    of the others each split has its own combinations with hues. Every part is trained on in every hue. All splits have
    all spinners: they are so few that a model learns by heart which are in training, and fails on the others.
    """
    number = SPLITS.index(split)
    creatures = []
    for hue in range(len(HUES)):
        for sprite in range(NUM_CREATURES):
            left, right, feet = parts(sprite)
            # other feet for each pair of halves, so that all pairs of parts are trained on
            kept_for = {4: 1, 5: 2}.get((left + right + feet) % 6)
            by_hue = {0: 1, 1: 2}.get((left + 3 * right + 2 * feet + hue) % len(HUES), 0)
            if number == (by_hue if kept_for is None else kept_for):
                creatures.append((sprite, hue))
    spinners = [(NUM_CREATURES + number, hue) for hue in range(len(HUES)) for number in range(len(SPINNERS))]
    return np.array(creatures), np.array(spinners)


def tones(hue: int, shade: int) -> np.ndarray:
    """The colours of body and detail: uint8 (2, 3)."""
    body = np.array(tuple(HUES.values())[hue]) + shade
    return np.stack([body, (2 * body + 3 * 255) // 5]).astype(np.uint8)
