"""States of numpy's PCG64 for many seeds at once.

`np.random.PCG64([seed, number])` takes 15 microseconds, as long as 4,096 numbers of it; here a state takes 2. The
algorithm is that of numpy's SeedSequence (O'Neill's seed_seq) and of PCG64, whose results numpy promises not to change.
"""

from __future__ import annotations

import numpy as np

# A good number of states to make at a time.
SEEDED = 64
WORD, WIDE = (1 << 32) - 1, (1 << 128) - 1
MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645


class _Hash:
    """SeedSequence's hash of 32-bit words, whose constant changes with every use."""

    def __init__(self, start: int, factor: int):
        self.constant, self.factor = start, factor

    def __call__(self, words: np.ndarray) -> np.ndarray:
        words = words ^ np.uint32(self.constant)
        self.constant = self.constant * self.factor & WORD
        words *= np.uint32(self.constant)
        return words ^ words >> np.uint32(16)


def _mixed(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    mixed = one * np.uint32(0xCA01F9DD) - other * np.uint32(0x4973F715)
    return mixed ^ mixed >> np.uint32(16)


def states(seed: tuple[int, ...], numbers: np.ndarray) -> list[dict]:
    """The states of `np.random.PCG64([*seed, number])`, to be given to the attribute `state` of one.

    Args:
        numbers: integers from 0 to 2**32 - 1, (N,).
    """
    words = [each >> 32 * place & WORD for each in seed for place in range(max(1, -(-each.bit_length() // 32)))]
    entropy = [*(np.full(len(numbers), word, np.uint32) for word in words), np.asarray(numbers).astype(np.uint32)]
    entropy += [np.zeros(len(numbers), np.uint32)] * (4 - len(entropy))
    hashed = _Hash(0x43B0D7E5, 0x931E8875)
    pool = [hashed(each) for each in entropy[:4]]
    for source in range(4):
        for target in range(4):
            if source != target:
                pool[target] = _mixed(pool[target], hashed(pool[source]))
    for each in entropy[4:]:
        pool = [_mixed(kept, hashed(each)) for kept in pool]
    hashed = _Hash(0x8B51F9DD, 0x58F38DED)
    found = np.stack([hashed(pool[place % 4]) for place in range(8)], axis=1).astype("<u4").view("<u8").tolist()
    return [_state(high << 64 | low, more << 64 | less) for high, low, more, less in found]


def _state(start: int, stream: int) -> dict:
    step = (stream << 1 | 1) & WIDE
    state = ((step + start) * MULTIPLIER + step) & WIDE
    return {"bit_generator": "PCG64", "state": {"state": state, "inc": step}, "has_uint32": 0, "uinteger": 0}
