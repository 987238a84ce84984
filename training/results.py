"""Results as dataclasses that are written to JSON and read back as the same class, and the result of a fine-tuning."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache

if typing.TYPE_CHECKING:
    from typing import Self


@dataclass(frozen=True, kw_only=True)
class Record:
    """A JSON object: each field of a subclass is a key of the same name, in the same order.

    A field without a default is always written. If its type allows None, files of earlier versions may lack the key:
    the field is then None, and `lacks` holds its name, so that the record is written as it was read. A field whose
    default is None is written only where it has a value. Keys that this version does not know are kept in `other`.
    """

    lacks: frozenset[str] = field(default=frozenset(), compare=False, repr=False)
    other: dict = field(default_factory=dict)

    @classmethod
    def json_fields(cls) -> dict[str, Field]:
        """The fields that are keys of the JSON object."""
        return {each.name: each for each in fields(cls) if each.name not in ("lacks", "other")}

    @classmethod
    def from_json(cls, content: dict) -> Self:
        """The record of a JSON object. Raises ValueError if a key is missing that every version writes."""
        readers, keys = _readers(cls), cls.json_fields()
        always = {name for name, each in keys.items() if each.default is MISSING}
        known = {
            name: value if value is None or readers[name] is None else readers[name](value)
            for name, value in content.items()
            if name in always or (name in keys and value is not None)
        }
        lacks = frozenset(always - known.keys())
        if needed := sorted(lacks - _admit_none(cls)):
            raise ValueError(f"A {cls.__name__} has no {needed[0]!r}; write the result again with this version.")
        other = {name: value for name, value in content.items() if name not in known}
        return cls(**dict.fromkeys(lacks), **known, lacks=lacks, other=other)

    def to_json(self) -> dict:
        """The JSON object: the keys that this version writes, or those of the file that it was read from."""
        found = {}
        for name, each in self.json_fields().items():
            value = getattr(self, name)
            if name not in self.lacks and not (value is None and each.default is None):
                found[name] = _plain(value)
        return found | self.other


def _plain(value):
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


@cache
def _readers(cls: type[Record]) -> dict[str, Callable | None]:
    """For each field the function that makes its value from JSON; None where JSON's own value is kept."""
    hints = typing.get_type_hints(cls)
    return {name: _reader(hints[name]) for name in cls.json_fields()}


@cache
def _admit_none(cls: type[Record]) -> frozenset[str]:
    hints = typing.get_type_hints(cls)
    return frozenset(name for name in cls.json_fields() if type(None) in typing.get_args(hints[name]))


def _reader(hint) -> Callable | None:
    """`hint` is a record, a list or dict of what can be read, or one of these or None."""
    if isinstance(hint, type) and issubclass(hint, Record):
        return hint.from_json
    found = [each for each in map(_reader, typing.get_args(hint)) if each is not None]
    if not found:
        return None
    (inner,), kind = found, typing.get_origin(hint)
    if kind is list:
        return lambda values: [inner(value) for value in values]
    if kind is dict:
        return lambda values: {key: inner(value) for key, value in values.items()}
    assert kind in (types.UnionType, typing.Union), hint
    return inner


@dataclass(frozen=True, kw_only=True)
class FinetuneSplit(Record):
    """One of the three splits. name: a description in words. clips: their number."""

    name: str
    clips: int | None


@dataclass(frozen=True, kw_only=True)
class FinetuneData(Record):
    """The data of a fine-tuning. kind: "image" or "video". splits, skipped: by part (train, validation, test)."""

    dataset: str
    label_column: str | None
    class_names: list[str] | None
    kind: str | None
    num_frames: int | None
    attention_mode: str
    splits: dict[str, FinetuneSplit] | None
    skipped: dict[str, list[dict]] | None


@dataclass(frozen=True, kw_only=True)
class FinetuneScore(Record):
    """The tested checkpoint, which was the best on validation. Accuracies are fractions, the loss is in nats.

    top5, grid_l1: of classes that are the cells of a grid, the share of clips whose cell is among the five most likely
    ones, and the mean distance to the true cell in steps along x and y.
    """

    step: int | None
    layer: int | None
    head: str | None
    val_accuracy: float | None
    accuracy: float
    ci95: list[float] | None
    loss: float | None
    correct: int
    accuracy_by_class: dict[str, float | None] | None
    top5: float | None = None
    grid_l1: float | None = None


@dataclass(frozen=True, kw_only=True)
class FinetunePredictions(Record):
    """RUN/predictions.json: the source, class number and predicted class number of every test clip."""

    classes: list[str] | None
    sources: list[str]
    labels: list[int]
    predictions: list[int]


@dataclass(frozen=True, kw_only=True)
class FinetuneResult(Record):
    """RUN/results.json of `toto finetune`.

    command: as it was typed. media: what the model had seen (`media_seen.to_json`). settings: all flags. model: what
    was fine-tuned. checkpoint: folder of the tested weights. predictions: only in the files of a study; otherwise they
    are in predictions.json.
    """

    command: str | None
    media: list[dict] | None
    settings: dict | None
    model: str
    checkpoint: str
    data: FinetuneData
    versions: dict | None
    seeds: list[int] | None
    best: FinetuneScore
    n_test: int
    predictions: FinetunePredictions | None = None
