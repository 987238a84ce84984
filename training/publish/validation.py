"""Validation losses of a model by source, and which of these media it was trained on.

Cards state the mean over the sources whose validation media the model was not trained on, as the record of its media
(`media_seen`) has it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from tokenization.storage.remote import is_remote
from training.args import DataArgs, Source
from training.flags import require
from training.publish.media_seen import Media, public, validated_on
from training.publish.overlap import ProbePart, check_overlap
from training.results import Record


@dataclass(frozen=True, kw_only=True)
class SourceLoss(Record):
    """A source of a mixture on validation rows.

    weight: its share of the training tokens. dataset, split: of the validation media. rows: None if not recorded.
    loss: nats per code token. seen: why these media count as training media; None if the model was not trained on them.
    """

    name: str
    weight: float
    dataset: str
    split: str
    rows: int | None
    loss: float
    seen: str | None


@dataclass(frozen=True, kw_only=True)
class ValidationResult(Record):
    """The file that `python -m training.validation_losses` writes.

    loss: of all sources; clean_loss: of those not seen, None where all were. Means by weight, in nats per code token.
    """

    command: str
    model: str
    sources: list[SourceLoss]
    loss: float
    clean_loss: float | None
    versions: dict


def judge(source: Source, loss: float, rows: int | None, seen: Sequence[Media] | None) -> SourceLoss:
    """A source with the loss on its validation rows.

    seen: of `media_seen`.
    Raises:
        FileNotFoundError: its validation shards no longer exist. ValueError: the media of the model are not recorded.
    """
    require(seen is not None, "The media of the model are not recorded, so its validation media cannot be judged.")
    given, media = validated_on(source)
    found = check_overlap(seen, [ProbePart("validation", media.dataset, media.split, media.items)])
    reason = found[0].reason if found else None
    fields = {"dataset": public(given), "split": media.split, "rows": rows, "loss": loss, "seen": reason}
    return SourceLoss(name=source.name, weight=source.weight, **fields)


def mean_loss(sources: Sequence[SourceLoss]) -> float | None:
    """The mean by the shares in the mixture; None without sources."""
    total = sum(source.weight for source in sources)
    return sum(source.weight * source.loss for source in sources) / total if sources else None


def clean_loss(sources: Sequence[SourceLoss]) -> float | None:
    """`mean_loss` of the sources whose validation media the model was not trained on."""
    return mean_loss([source for source in sources if source.seen is None])


def _holds_out_unlisted_items(source: Source) -> bool:
    """Whether it validates on one item in 20 of its own, whose names are not at hand: of a URL, or of pixels."""
    has_own = source.val_data or source.val_split or source.is_toyworld
    return not has_own and (is_remote(source.data) or not source.is_shards)


def of_run(metrics: dict, recipe: dict, seen: Sequence[Media] | None) -> list[SourceLoss]:
    """The sources of a run with the losses of a validation row of metrics.jsonl; empty if these cannot be judged.

    recipe: of the run, with all its settings; its sources are mappings, or JSON as flags have them. seen: of
    `media_seen`.
    """
    losses = metrics.get("val_losses") or {}
    settings = {key: recipe[key] for key in ("shards", "val_shards", "sources") if recipe.get(key)}
    given = [each if isinstance(each, str) else json.dumps(each) for each in settings.pop("sources", [])]
    if seen is None or not losses or ("shards" in settings and "val_shards" not in recipe):
        return []
    mixture = DataArgs(**settings, sources=given).mixture()
    if any(map(_holds_out_unlisted_items, mixture)):
        return []
    try:
        return [judge(source, losses[source.name], None, seen) for source in mixture if source.name in losses]
    except FileNotFoundError:  # the validation shards are gone
        return []
