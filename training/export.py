"""`toto export`: writes a Toto checkpoint as a plain Llama folder, which loads without this project."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from training.flags import option, parse, require

DESCRIPTION = (
    "Write a Toto checkpoint as a plain LlamaForCausalLM folder with the same logits, for servers that support Llama "
    "and accept token ids. muP is folded into the weights, and the folder holds no code; its README.md lists the ids."
)
FORMATS = ("llama",)
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ExportArgs:
    """The checkpoint, the output folder and its format."""

    model: str | None = option(
        None, "Hub id, Hugging Face folder or run folder (its newest checkpoint; for a fine-tuning the tested one)"
    )
    output: str | None = option(None, "folder to write; must be new or empty")
    to: str = option("llama", "format: llama")
    dtype: str | None = option(None, "float32, bfloat16 or float16 (default: the checkpoint's)")

    def __post_init__(self):
        require(self.to in FORMATS, f"--to {self.to} is unknown; choose {', '.join(FORMATS)}.")
        require(self.dtype in (None, *DTYPES), f"--dtype {self.dtype} is unknown; choose {', '.join(DTYPES)}.")
        require(self.model is not None, "No checkpoint is given; add --model MODEL.")
        require(self.output is not None, "No output folder is given; add --output DIR.")


def main(argv: list[str] | None = None) -> None:
    (args,) = parse((ExportArgs,), argv, "toto export", DESCRIPTION)
    output = Path(args.output)
    occupied = output.exists() and (not output.is_dir() or any(output.iterdir()))
    require(not occupied, f"{output} is not empty; choose another --output.")

    import torch

    from modeling_toto import TotoConfig, TotoForCausalLM
    from modeling_toto.export import write_llama
    from training.find_model import resolve_model

    path = resolve_model(args.model)
    kind = TotoConfig.get_config_dict(path)[0].get("model_type")
    require(kind == "toto", f"{args.model} is a {kind!r} model, not a Toto; give a checkpoint of toto pretrain.")
    model, report = TotoForCausalLM.from_pretrained(path, dtype="auto", output_loading_info=True)
    require(
        not report["missing_keys"],
        f"{args.model} is not a complete next-token model ({', '.join(sorted(report['missing_keys']))} missing); "
        "export a checkpoint of toto pretrain.",
    )
    source = Path(args.model).resolve().name if Path(args.model).is_dir() else args.model
    write_llama(model, output, source, args.dtype and getattr(torch, args.dtype))
    print(f"wrote {output}: a LlamaForCausalLM of {model.num_parameters() / 1e6:.1f} M parameters; ids in README.md")


if __name__ == "__main__":
    from toto_cli import run

    run(main)
