"""Whether a model is tested on media that it was trained on; such scores are refused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import PurePosixPath

from training.publish.media_seen import ALIASES, Media, from_json, identify

OTHER_NAMES = {"k400": "kinetics400", "k600": "kinetics600", "ilsvrc2012": "imagenet1k", "in1k": "imagenet1k"}


# What a result says of itself where --allow_seen was given.
SEEN = "test items may be among those that the model was trained on"


@dataclass(frozen=True)
class ProbePart:
    """A part (train, validation, test) of what a probe read. items: None if the result does not list them."""

    part: str
    dataset: str
    split: str
    items: frozenset[str] | None = None


@dataclass(frozen=True)
class Overlap:
    """A medium that a probe also read. items: the shared ones, sorted; empty if not known."""

    media: Media
    tested: ProbePart
    items: tuple[str, ...]
    reason: str


def check_overlap(seen: Iterable[Media], tested: Iterable[ProbePart]) -> list[Overlap]:
    """Media that a probe also read, in any of its parts; only in the part that it trained on is this allowed.

    Two media are the same if they are the same split of the same dataset and, where both sides list their items, have
    items in common, or if `ALIASES` says so. Different splits of a dataset count as different media.
    """
    parts = list(tested)
    return [overlap for media in seen for part in parts for overlap in _overlaps(media, part)]


def _overlaps(media: Media, tested: ProbePart) -> Iterator[Overlap]:
    if (_plain(media.dataset), media.split) == (_plain(tested.dataset), tested.split):
        if media.items is None or tested.items is None:
            yield Overlap(media, tested, (), "the same split; not all items are listed, so the whole split counts")
        elif both := _shared(media.items, tested.items):
            yield Overlap(media, tested, both, "the same items")
    for alias in ALIASES:
        if fnmatch(_plain(tested.dataset), alias.tests) and fnmatch(media.dataset, alias.dataset):
            names = media.items or ()
            items = tuple(sorted(name for name in names if fnmatch(PurePosixPath(name).name, alias.items)))
            if items or (media.items is None and alias.dataset != "*"):
                yield Overlap(media, tested, items, alias.reason)
                return  # one reason is enough


def _plain(name: str) -> str:
    """The name in one spelling: ImageNet-1k, imagenet_1k and in1k -> imagenet1k."""
    plain = re.sub(r"[-_ ]", "", name.lower())
    return OTHER_NAMES.get(plain, plain)


def _shared(seen: frozenset[str], tested: frozenset[str]) -> tuple[str, ...]:
    """The tested items that were seen, also if one side has longer paths than the other."""
    ends = {end for name in seen for end in _ends(name)}
    return tuple(sorted(name for name in tested if name in ends or any(end in seen for end in _ends(name))))


def _ends(name: str) -> Iterator[str]:
    """a/b/c -> a/b/c, b/c, c."""
    parts = name.split("/")
    return ("/".join(parts[first:]) for first in range(len(parts)))


def require_no_overlap(model: str, seen: Iterable[Media], tested: Iterable[ProbePart]) -> None:
    """Refuse a score on media that the model was trained on.

    Raises:
        ValueError: there is an overlap; names the model, the medium, the test set and the first shared items.
    """
    for overlap in check_overlap(seen, (part for part in tested if part.part == "test")):
        media, test, items = overlap.media, overlap.tested, overlap.items
        shared = f", {len(items):,} items such as {', '.join(items[:3])}" if items else ""
        raise ValueError(
            f"{model} was trained on {media.dataset} ({media.split}) and is scored on {test.dataset} ({test.split}): "
            f"{overlap.reason}{shared}. Test on other media, or train without these; as a control, toto probe and toto "
            "finetune take --allow_seen."
        )


def require_unseen(model: str, media: list[dict] | None, dataset: str, words: str) -> None:
    """`require_no_overlap` before anything is computed.

    Args:
        media: of `media_on_record`; a model without a record is not refused. words: the split that is tested, see
            `split_in`.
    """
    if (seen := from_json(media)) is not None:
        require_no_overlap(model, seen, [ProbePart("test", *identify(dataset, split_in(words)))])


def split_in(words: str) -> str:
    """The split in a description: "test", "carved from train (seed 0)", "test: from train (seed 0)" of fine-tuning."""
    return re.fullmatch(r"(?:\w+: )?(?:(?:carved )?from )*(.*?)(?: \(.*\))*", words)[1]
