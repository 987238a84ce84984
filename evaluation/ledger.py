"""The ledger: which media each model was trained on (`training.media`), and the refusal of a score on any of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import PurePosixPath

from evaluation.reading import short_names
from training.media import ALIASES, Media, from_json, identify, media_seen, of_split

OTHER_NAMES = {"k400": "kinetics400", "k600": "kinetics600", "ilsvrc2012": "imagenet1k", "in1k": "imagenet1k"}


@dataclass(frozen=True)
class ProbePart:
    """A part (train, validation, test) of what a probe read. items: None where the result does not keep them."""

    part: str
    dataset: str
    split: str
    items: frozenset[str] | None = None


@dataclass(frozen=True)
class Overlap:
    """A medium that is also (in) what was read by a probe. items: the shared ones, sorted; empty where not known."""

    media: Media
    tested: ProbePart
    items: tuple[str, ...]
    reason: str


def media_of_result(result: dict) -> list[Media] | None:
    """What the model of a result saw: as the result says under "media", or else as the model's folder says."""
    return from_json(result["media"]) if "media" in result else media_seen(result["model"])


def media_tested(result: dict) -> list[ProbePart]:
    """What a result of `toto probe` or `toto finetune` trained, chose and tested on.

    Test items are known where a probe was told to keep its predictions.
    Raises:
        ValueError: no such result.
    """
    if "splits" not in result.get("data", {}):
        raise ValueError("A result without data.splits does not say what was tested; write it again with toto probe.")
    tasks = result.get("tasks", {}).values()
    items = next((task["predictions"]["items"] for task in tasks if "predictions" in task), None)
    found = []
    for part, about in result["data"]["splits"].items():
        # In words: "test", "carved from train (seed 0)"; of a fine-tuning "test: test", "test: from train (seed 0)".
        words = about["split"] if "split" in about else about["name"]
        carved = re.fullmatch(r"(?:\w+: )?(?:(?:carved )?from )*(.*?)(?: \(.*\))*", words)
        dataset, split = identify(result["data"]["dataset"], carved[1])
        kept = None if items is None or part != "test" else of_split(items, carved[1], split)
        found.append(ProbePart(part, dataset, split, kept))
    return found


def check_overlap(seen: Iterable[Media], tested: Iterable[ProbePart]) -> list[Overlap]:
    """Media that are also what a probe read, the part that it trained on too (which is no fault).

    The same split of the same data set, and there the same items where both sides know them; and `ALIASES`. Different
    splits of a data set are taken to be different media.
    """
    parts = list(tested)
    return [overlap for media in seen for part in parts for overlap in _overlaps(media, part)]


def _overlaps(media: Media, tested: ProbePart) -> Iterator[Overlap]:
    if (_plain(media.dataset), media.split) == (_plain(tested.dataset), tested.split):
        if media.items is None or tested.items is None:
            yield Overlap(media, tested, (), "the same split; not all items are on record, so it counts whole")
        elif both := _shared(media.items, tested.items):
            yield Overlap(media, tested, both, "the same items")
    for alias in ALIASES:
        if fnmatch(_plain(tested.dataset), alias.tests) and fnmatch(media.dataset, alias.dataset):
            names = media.items or ()
            items = tuple(sorted(name for name in names if fnmatch(PurePosixPath(name).name, alias.items)))
            if items or (media.items is None and alias.dataset != "*"):
                yield Overlap(media, tested, items, alias.reason)
                return  # once is enough


def _plain(name: str) -> str:
    """ImageNet-1k is imagenet1k is imagenet_1k is in1k."""
    plain = re.sub(r"[-_ ]", "", name.lower())
    return OTHER_NAMES.get(plain, plain)


def _shared(seen: frozenset[str], tested: frozenset[str]) -> tuple[str, ...]:
    """The tested items that were seen, also where one side was named from a folder further up."""
    ends = {end for name in seen for end in _ends(name)}
    return tuple(sorted(name for name in tested if name in ends or any(end in seen for end in _ends(name))))


def _ends(name: str) -> Iterator[str]:
    """a/b/c -> a/b/c, b/c, c."""
    parts = name.split("/")
    return ("/".join(parts[first:]) for first in range(len(parts)))


def require_no_overlap(model: str, seen: Iterable[Media], tested: Iterable[ProbePart]) -> None:
    """Refuse a score on media that the model was trained on.

    Raises:
        ValueError: the model, the medium, the test set and the first items that they share.
    """
    for overlap in check_overlap(seen, (part for part in tested if part.part == "test")):
        media, test, items = overlap.media, overlap.tested, overlap.items
        shared = f", {len(items):,} items such as {', '.join(items[:3])}" if items else ""
        raise ValueError(
            f"{model} was trained on {media.dataset} ({media.split}) and is scored on {test.dataset} ({test.split}): "
            f"{overlap.reason}{shared}. Leave this result out, test on other media, or train without these."
        )


def ledger_rows(
    models: dict[str, list[Media] | None], tested: dict[str, list[ProbePart]] | None = None
) -> list[dict[str, object]]:
    """Rows of the ledger's table: model, medium, split, kind, items, tokens, epochs, read_by_probes.

    Args:
        models: name -> `media_seen`. tested: name -> what the probes of that model read, of all its results.
    Returns:
        A row a medium; items is None where they are not on record. read_by_probes: parts such as ["train"]. A model
        without a record has one row, whose medium is "not recorded".
    """
    rows = []
    for name, seen in models.items():
        parts = (tested or {}).get(name, [])
        for media in seen if seen is not None else [Media("not recorded", "")]:
            read = sorted({overlap.tested.part for overlap in check_overlap([media], parts)})
            items = None if media.items is None else len(media.items)
            row = {"model": name, "medium": media.dataset, "split": media.split, "kind": media.kind, "items": items}
            rows.append(row | {"tokens": media.tokens, "epochs": media.epochs, "read_by_probes": read})
    return rows


def check_media(results: dict[str, dict]) -> list[dict]:
    """The rows of the ledger of all models that results, by name, are of (`ledger_rows`).

    Raises:
        ValueError: a result on test media that its model was trained on.
    """
    models = list(dict.fromkeys(result.get("model", name) for name, result in results.items()))
    seen, tested = {}, {}
    for name, result in results.items():
        model = result.get("model", name)
        seen[model] = media_of_result(result) if "model" in result else None
        if seen[model] is not None:
            parts = media_tested(result)
            require_no_overlap(f"The model of {name} ({model})", seen[model], parts)
            tested[model] = tested.get(model, []) + parts
    names = dict(zip(models, short_names(models, models), strict=True))
    return ledger_rows({names[m]: seen[m] for m in models}, {names[m]: parts for m, parts in tested.items()})
