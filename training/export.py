"""`toto export`: writes a Toto checkpoint as a plain Llama folder, which loads without this project."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from training.args import option, parse, require, require_choice

DESCRIPTION = (
    "Write a Toto checkpoint as a plain LlamaForCausalLM folder with the same logits, with muP folded into the weights "
    "and without code, for servers that support Llama and accept ids instead of text. Its README.md lists the ids."
)
FORMATS = ("llama",)
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ExportArgs:
    """The checkpoint to export, and the format and folder to write."""

    model: str | None = option(
        None, "Hub id, Hugging Face folder or run folder (its newest checkpoint; of a fine-tuning the tested one)"
    )
    output: str | None = option(None, "folder to write; must be new or empty")
    to: str = option("llama", "the format: llama")
    dtype: str | None = option(None, "float32, bfloat16 or float16 (default: the checkpoint's)")

    def __post_init__(self):
        require_choice(self, "to", FORMATS)
        require_choice(self, "dtype", DTYPES)
        require(self.model is not None, "No checkpoint is named; pass --model MODEL.")
        require(self.output is not None, "No folder to write is named; pass --output DIR.")


def main(argv: list[str] | None = None) -> None:
    (args,) = parse((ExportArgs,), argv, "toto export", DESCRIPTION)
    output = Path(args.output)
    occupied = output.exists() and (not output.is_dir() or any(output.iterdir()))
    require(not occupied, f"{output} is not empty; choose another --output.")

    import torch

    from modeling_toto import TotoConfig, TotoForCausalLM
    from modeling_toto.export import write_llama
    from training.engine.checkpoints import resolve_model

    path = resolve_model(args.model)
    kind = TotoConfig.get_config_dict(path)[0].get("model_type")
    require(kind == "toto", f"{args.model} is not a Toto: its model_type is {kind!r}.")
    model, report = TotoForCausalLM.from_pretrained(path, dtype="auto", output_loading_info=True)
    require(
        not report["missing_keys"],
        f"{args.model} is not a complete next-token model ({', '.join(sorted(report['missing_keys']))} missing); "
        "export a checkpoint of toto pretrain.",
    )
    source = Path(args.model).resolve().name if Path(args.model).is_dir() else args.model
    write_llama(model, output, source, args.dtype and getattr(torch, args.dtype))
    print(f"wrote {output}: a LlamaForCausalLM of {model.num_parameters() / 1e6:.1f} M parameters (ids: README.md)")


if __name__ == "__main__":
    from toto_cli import run

    run(main)
