"""The ledger: which media each model was trained on; scores on any of these are refused."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import PurePosixPath

from evaluation.report.reading import short_names
from evaluation.results import ProbeResult, Split
from training.publish.media_seen import ALIASES, Media, from_json, identify, media_seen, of_split
from training.results import FinetuneResult

OTHER_NAMES = {"k400": "kinetics400", "k600": "kinetics600", "ilsvrc2012": "imagenet1k", "in1k": "imagenet1k"}


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


def media_of_result(result: ProbeResult | FinetuneResult) -> list[Media] | None:
    """What the model of a result was trained on: from the result, or the model's folder if it lacks "media"."""
    return media_seen(result.model) if "media" in result.lacks else from_json(result.media)


def media_tested(result: ProbeResult | FinetuneResult) -> list[ProbePart]:
    """The data on which a result of `toto probe` or `toto finetune` was trained, selected and tested.

    Test items are known if the probe kept its predictions (--predictions).
    Raises:
        ValueError: not such a result.
    """
    if result.data is None or result.data.splits is None:
        raise ValueError("The result has no data.splits, so its test data are unknown; write it again with toto probe.")
    tasks = result.tasks.values() if isinstance(result, ProbeResult) else ()
    items = next((task.predictions.items for task in tasks if task.predictions is not None), None)
    found = []
    for part, about in result.data.splits.items():
        # In words: "test", "carved from train (seed 0)"; of a fine-tuning "test: test", "test: from train (seed 0)".
        words = about.split if isinstance(about, Split) else about.name
        carved = re.fullmatch(r"(?:\w+: )?(?:(?:carved )?from )*(.*?)(?: \(.*\))*", words)
        dataset, split = identify(result.data.dataset, carved[1])
        kept = None if items is None or part != "test" else of_split(items, carved[1], split)
        found.append(ProbePart(part, dataset, split, kept))
    return found


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
            f"{overlap.reason}{shared}. Leave this result out, test on other media, or train without these."
        )


def ledger_rows(
    models: dict[str, list[Media] | None], tested: dict[str, list[ProbePart]] | None = None
) -> list[dict[str, object]]:
    """The rows of the ledger: model, medium, split, kind, items, tokens, epochs, read_by_probes.

    Args:
        models: name -> `media_seen`. tested: name -> what all probes of that model read.
    Returns:
        A row per medium; items is None if they are not listed. read_by_probes: parts such as ["train"]. A model
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


def check_media(results: dict[str, ProbeResult | FinetuneResult]) -> list[dict]:
    """The ledger (`ledger_rows`) of the models of results. results: by name.

    Raises:
        ValueError: a result was tested on media that its model was trained on.
    """
    models = list(dict.fromkeys(result.model or name for name, result in results.items()))
    seen, tested = {}, {}
    for name, result in results.items():
        model = result.model or name
        seen[model] = media_of_result(result) if result.model else None
        if seen[model] is not None:
            parts = media_tested(result)
            require_no_overlap(f"The model of {name} ({model})", seen[model], parts)
            tested[model] = tested.get(model, []) + parts
    names = dict(zip(models, short_names(models, models), strict=True))
    return ledger_rows({names[m]: seen[m] for m in models}, {names[m]: parts for m, parts in tested.items()})
