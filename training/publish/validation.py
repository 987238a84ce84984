"""Validation losses of a model by source, and which of these media it was trained on.

    python -m training.publish.validation --recipe toto_nano_fourth --model checkpoints/toto-nano --output FILE.json

measures them again on the `val_data` of a recipe of `toto pretrain`, outside the run; the training data of a source
that has `val_data` are not read. Cards and reports state the mean over the sources whose validation media the model
was not trained on, as the record of its media (`media_seen`) has it.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tokenization.storage.remote import is_remote
from training.args import DataArgs, ModelArgs, PretrainOptimArgs, PretrainRunArgs, Source
from training.flags import option, parse, require
from training.publish.media_seen import Media, media_seen, public, validated_on
from training.publish.overlap import ProbePart, check_overlap
from training.results import Record

DESCRIPTION = "Measure the loss of a model on the validation rows of every source of a recipe of toto pretrain."


@dataclass(frozen=True)
class ValidationArgs:
    """Which model to measure; the recipe and the other flags are those of toto pretrain."""

    model: str | None = option(None, "Hugging Face folder, run folder or Hub id of a Toto")
    output: str | None = option(None, "result file to write (.json)")

    def __post_init__(self):
        require(self.model is not None, "--model MODEL is missing; name the model to measure.")
        require(self.output is not None, "--output FILE.json is missing; name the file to write.")


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
    """The file that this command writes. loss: of all sources, clean_loss: of those not seen; means by weight.

    clean_loss is None where all were seen.
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


def measure(model: str, data: DataArgs, command: str) -> ValidationResult:
    """The losses of a Toto on the validation rows of every source of a mixture.

    Raises:
        ValueError, FileNotFoundError: no such model, shards or validation rows, or no record of the model's media.
    """
    from modeling_toto import TotoForCausalLM
    from tokenization.processing_toto import TotoProcessor
    from tokenization.shards.format import read_manifest
    from training.engine.device import make_accelerator, versions
    from training.find_model import resolve_model
    from training.next_tokens import validate
    from training.rows.mixture import open_validation
    from training.rows.pixel_rows import token_row

    mixture = [replace(source, data=source.val_data) if source.val_data else source for source in data.mixture()]
    require(bool(mixture), "There are no sources; give a --recipe, or --shards and --val_shards.")
    seen, folder = media_seen(model), resolve_model(model)
    accelerator = make_accelerator()
    net, processor = TotoForCausalLM.from_pretrained(folder), TotoProcessor.from_pretrained(folder)
    for source in mixture:
        made_by = read_manifest(source.data)["tokenizer"]["fingerprint"] if source.is_shards else processor.fingerprint
        require(
            made_by == processor.fingerprint,
            f"{source.data} has codes of the visual tokenizer {made_by}, not of the model's {processor.fingerprint}; "
            "tokenize it with the model's.",
        )
    pixels = (processor.resolution, token_row(processor))
    rows = {s.name: open_validation(s, net.config, *pixels, data.val_rows) for s in mixture}
    empty = next((name for name, each in rows.items() if not len(each)), None)
    require(empty is None, f"The source '{empty}' has no validation rows; name some as its val_data.")
    net = accelerator.prepare(net)
    row, _ = validate(accelerator, net, rows, [source.weight for source in mixture], data.per_device_batch_size)
    found = [judge(s, row["val_losses"][s.name], len(rows[s.name]), seen) for s in data.mixture()]
    return ValidationResult(
        command=command,
        model=model,
        sources=found,
        loss=row["val_loss"],
        clean_loss=clean_loss(found),
        versions=versions(accelerator.device) | {"mixed_precision": accelerator.mixed_precision},
    )


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    types = (ValidationArgs, ModelArgs, DataArgs, PretrainRunArgs, PretrainOptimArgs)
    args, _, data, *_ = parse(types, argv, "python -m training.publish.validation", DESCRIPTION)

    from tokenization.files import write_json

    result = measure(args.model, data, shlex.join(["python", "-m", "training.publish.validation", *argv]))
    for source in result.sources:
        rows = f"{source.rows} rows of {source.dataset}, {source.split}"
        print(f"{source.name:<12} {source.loss:.4f} nats  ({rows}{'; seen: ' + source.seen if source.seen else ''})")
    clean = "none" if result.clean_loss is None else f"{result.clean_loss:.4f}"
    print(f"mean, weighted as in the mixture: {result.loss:.4f}; of media that were not trained on: {clean}")
    write_json(args.output, result.to_json())
    print(f"wrote {args.output}")


if __name__ == "__main__":
    from toto_cli import run

    run(main)
