"""Measures the validation losses of a model by source again, outside its run, for its card.

    python -m training.validation_losses --recipe toto_nano_fourth --model checkpoints/toto-nano --output FILE.json

The rows are those of the `val_data` of a recipe of `toto pretrain`; the training data of such a source are not read.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass, replace

from training.args import DataArgs, ModelArgs, PretrainOptimArgs, PretrainRunArgs
from training.flags import option, parse, require
from training.publish.media_seen import media_seen
from training.publish.validation import ValidationResult, clean_loss, judge

DESCRIPTION = "Measure the loss of a model on the validation rows of every source of a recipe of toto pretrain."


@dataclass(frozen=True)
class ValidationArgs:
    """Which model to measure; the recipe and the other flags are those of toto pretrain."""

    model: str | None = option(None, "Hugging Face folder, run folder or Hub id of a Toto")
    output: str | None = option(None, "result file to write (.json)")

    def __post_init__(self):
        require(self.model is not None, "--model MODEL is missing; name the model to measure.")
        require(self.output is not None, "--output FILE.json is missing; name the file to write.")


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
    args, _, data, *_ = parse(types, argv, "python -m training.validation_losses", DESCRIPTION)

    from tokenization.files import write_json

    result = measure(args.model, data, shlex.join(["python", "-m", "training.validation_losses", *argv]))
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
