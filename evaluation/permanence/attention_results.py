"""The results of `toto permanence attention`."""

from __future__ import annotations

from dataclasses import dataclass

from training.results import Record


@dataclass(frozen=True, kw_only=True)
class Mean(Record):
    """A mean over occlusions with its 95 % bootstrap interval."""

    mean: float
    ci95: list[float]


@dataclass(frozen=True, kw_only=True)
class Head(Record):
    """A head chosen on one half of the occlusions, and its attention in the other half, as fractions of 1.

    block: from 1. head: from 0. above_matched, above_never: paired differences of `sighting` to the controls.
    """

    block: int
    head: int
    sighting: Mean
    matched: Mean
    never: Mean
    above_matched: Mean
    above_never: Mean


@dataclass(frozen=True, kw_only=True)
class Cost(Record):
    """Loss of the returning object's tokens in nats with some attention blocked; rise: above nothing blocked."""

    loss: Mean
    rise: Mean


@dataclass(frozen=True, kw_only=True)
class AttentionResult(Record):
    """What `toto permanence attention` writes.

    looks, untrained: name of `looking.look` -> mean over the reported half, (blocks, heads). chosen, chosen_untrained:
    best first. costs: name of `blocking.TESTS` or `open` -> loss, over the reported half. above_control: rises of a
    test above its control, paired.
    """

    command: str
    model: str
    dataset: str
    split: str
    query: str
    occlusions: int
    chosen_on: int
    looks: dict[str, list]
    untrained: dict[str, list]
    chosen: list[Head]
    chosen_untrained: list[Head]
    costs: dict[str, Cost]
    above_control: dict[str, Mean]
    seeds: dict[str, int]
    versions: dict
