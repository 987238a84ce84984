"""`toto convert-tokenizer`: converts the original files of a published tokenizer to a safetensors folder.

The originals are OpenAI's `encoder.pkl` and `decoder.pkl`, taming-transformers' `last.ckpt` with `model.yaml`, and
transformers' FlavaImageCodebook (the dVAE's encoder). `pickles.py` reads them without running anything in them.
"""

import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from transformers.hf_argparser import HfArg

from tokenization.originals.fetch import DALL_E, ORIGINALS, TAMING, gather
from tokenization.terminal.command_line import parse_flags
from tokenization.terminal.next_command import say_next

DESCRIPTION = "Convert the original files of a published tokenizer."
PUBLISHED_CODES = {"dvae": 8192, "vqgan-1k": 1024, "vqgan-16k": 16384}
_MIT = "mit", f"the repository that publishes the files, {TAMING}, is under the MIT licence; we found no other for them"
LICENCES = {
    "dvae": (
        f"other\nlicense_name: modified-mit\nlicense_link: {DALL_E}/blob/master/LICENSE",
        f"the repository that publishes the files, {DALL_E}, is under a modified MIT licence, which asks users "
        "to state clearly that the dVAE was used; we found no other for them",
    ),
    "vqgan-1k": _MIT,
    "vqgan-16k": _MIT,
}


@dataclass(frozen=True)
class ConvertArgs:
    """Flags of `toto convert-tokenizer`."""

    source: str | None = HfArg(
        default=None,
        aliases=["--from"],
        help="dvae, vqgan-1k, vqgan-16k: download the published files that are not given; flava needs --checkpoint. "
        "Default: inferred from the files",
    )
    output: str | None = field(default=None, metadata={"help": "folder to write; must be new or empty"})
    encoder: str | None = field(default=None, metadata={"help": "OpenAI's encoder.pkl"})
    decoder: str | None = field(
        default=None, metadata={"help": "OpenAI's decoder.pkl; it also completes a FlavaImageCodebook"}
    )
    checkpoint: str | None = field(
        default=None, metadata={"help": "taming's last.ckpt, or a FlavaImageCodebook's folder or weights file"}
    )
    config: str | None = field(default=None, metadata={"help": "taming's model.yaml, for last.ckpt"})
    mirror: str | None = field(
        default=None,
        metadata={
            "help": "folder or https address to read the originals from instead: encoder.pkl, decoder.pkl, "
            "vqgan_imagenet_f16_1024.ckpt and .yaml, vqgan_imagenet_f16_16384.ckpt and .yaml"
        },
    )
    cache_dir: str = field(default="~/.cache/toto", metadata={"help": "folder for downloaded originals"})
    sha256: list[str] = field(
        default_factory=list, metadata={"help": "expected hashes, as FILENAME=HEX; checked before a file is parsed"}
    )

    def __post_init__(self):
        if self.source is not None and self.source not in ORIGINALS:
            raise ValueError(f"--from must be one of {', '.join(ORIGINALS)}, not {self.source!r}.")
        if self.output is None:
            raise ValueError("--output is missing; name the folder to write.")
        if (self.source is None or self.source == "flava") and not (self.encoder or self.checkpoint):
            raise ValueError(
                "There is nothing to convert; pass --from dvae, vqgan-1k or vqgan-16k to download the published files, "
                "or pass your own (--encoder and --decoder; --checkpoint and --config; a FlavaImageCodebook's "
                "--checkpoint)."
            )
        named = [flag for flag in ("encoder", "checkpoint", "config") if getattr(self, flag)]
        allowed = {None: named, "flava": ["checkpoint"]}.get(self.source) or list(ORIGINALS[self.source])
        mixed = {"encoder", "checkpoint"} <= set(named) or (self.config and (self.encoder or self.decoder))
        if mixed or set(named) - set(allowed) or (self.decoder and self.source in ("vqgan-1k", "vqgan-16k")):
            raise ValueError("The given files do not belong together; see toto convert-tokenizer --help.")
        for item in self.sha256:
            if not re.fullmatch(r"[^=]+=[0-9a-fA-F]{64}", item):
                raise ValueError(f"--sha256 must be FILENAME=HEX with 64 hex digits, not {item!r}.")
        if (self.mirror or "").lower().startswith("http:"):
            raise ValueError(f"--mirror {self.mirror} is not safe; it must be an https address or a folder.")


# --- names and sizes


def _weights(path: Path) -> dict:
    """Named tensors of a file of torch.save or of safetensors; those of torch.save are read later."""
    from tokenization.originals.pickles import read_state_dict

    if path.suffix != ".safetensors":
        return read_state_dict(path)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or damaged ({error}); fetch it again.") from error


def _dvae_name(name: str) -> str:
    """Our name, without `encoder.` or `decoder.`, of a tensor of the dall_e package or of FlavaImageCodebook."""
    name = re.sub(r"(group_\d+)\.group\.", r"\1.", name).replace("res_path.path.", "res_path.")
    return re.sub(r"\.w$", ".weight", re.sub(r"\.b$", ".bias", name))


def _dvae(encoder: Path, decoder: Path | None):
    """The model in the files of an encoder (dall_e or FLAVA) and of a decoder; its sizes follow from the tensors."""
    from tokenization.configuration_dvae import TotoDVAEConfig
    from tokenization.modeling_dvae import TotoDVAEModel

    weights, shapes = {}, {}
    for part, path, kernel in (("encoder", encoder, 7), ("decoder", decoder, 1)):
        if path is None:
            continue
        found = {f"{part}.{_dvae_name(name)}": tensor for name, tensor in _weights(path).items()}
        ends = [f"{part}.blocks.input.weight", f"{part}.blocks.output.conv.weight"]
        shapes[part] = [tuple(found[end].shape) for end in ends if end in found]
        if any(len(shape) != 4 for shape in shapes[part]) or [s[2] for s in shapes[part]] != [kernel, 1]:
            hint = "; a VQGAN's checkpoint needs its model.yaml, --config" if "quantize" in "".join(found) else ""
            raise ValueError(f"{path} is not the dVAE's {part}: its first and last layers are missing{hint}.")
        weights |= found
    blocks = re.findall(r"encoder\.blocks\.group_(\d+)\.block_(\d+)\.", " ".join(weights)) or [(0, 0)]
    groups, per_group = (max(map(int, column)) for column in zip(*blocks, strict=True))
    if not 0 < groups * per_group <= len(weights):
        raise ValueError(f"{encoder} is not the dVAE's encoder: its blocks are missing.")
    config = TotoDVAEConfig(
        n_hid=shapes["encoder"][0][0],
        num_codes=shapes["encoder"][1][0],
        n_blk_per_group=per_group,
        group_count=groups,
        **({"n_init": shapes["decoder"][0][0]} if decoder else {"has_decoder": False}),
    )
    return _filled(TotoDVAEModel, config, weights, f"{encoder} and {decoder}" if decoder else str(encoder))


def _vqgan(weights: dict, checkpoint: Path, yaml_file: Path):
    """The model in taming's checkpoint, without the tensors of its loss (LPIPS, discriminator)."""
    import yaml

    from tokenization.configuration_vqgan import TotoVQGANConfig
    from tokenization.modeling_vqgan import TotoVQGANModel

    try:
        settings = yaml.safe_load(yaml_file.read_bytes())["model"]
        target, params = settings["target"], settings["params"]
        sizes = params["ddconfig"]
        config = {
            "num_codes": params["n_embed"],
            "embed_dim": params["embed_dim"],
            "base_channels": sizes["ch"],
            "channel_multipliers": list(sizes["ch_mult"]),
            "num_res_blocks": sizes["num_res_blocks"],
            "attention_resolutions": list(sizes["attn_resolutions"]),
            "z_channels": sizes["z_channels"],
            "resolution": sizes["resolution"],
        }
        asked = (sizes.get("double_z", True), sizes["in_channels"], sizes["out_ch"], params.get("remap"))
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{yaml_file} is not the model.yaml of a taming VQGAN ({type(error).__name__}).") from error
    if target != "taming.models.vqgan.VQModel" or asked != (False, 3, 3, None):
        raise ValueError(f"{yaml_file} describes {target} with other channels or codes than those of a plain VQModel.")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("loss.")}
    numbers = [n for value in config.values() for n in (value if type(value) is list else [value])]
    if not all(type(n) is int and 0 < n < 2**20 for n in numbers):
        raise ValueError(f"{yaml_file} gives a size that is not a positive integer below 2**20.")
    if config["num_res_blocks"] * len(config["channel_multipliers"]) > len(kept):
        raise ValueError(f"{checkpoint} does not match {yaml_file}: it holds fewer layers.")
    return _filled(TotoVQGANModel, TotoVQGANConfig(**config), kept, str(checkpoint))


def _filled(model_class, config, weights: dict, files: str):
    """A model with these weights in fp32; names and shapes must match exactly."""
    import torch

    from tokenization.terminal.progress import tqdm

    with torch.device("meta"):
        model = model_class(config)
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    missing, extra = sorted(set(shapes) - set(weights)), sorted(set(weights) - set(shapes))
    if missing or extra:
        what = f"lacks {missing[0]}" if missing else f"also holds {extra[0]}"
        raise ValueError(f"{files} does not match a {config.model_type} of these sizes: it {what}.")
    state = {}
    for name, shape in tqdm(shapes.items(), unit=" tensors", desc="convert", leave=False):
        tensor = weights[name]
        if tuple(tensor.shape) != shape or not tensor.dtype.is_floating_point:
            raise ValueError(
                f"{files}: {name} is {list(tensor.shape)}, {tensor.dtype}; it must be {list(shape)} floats."
            )
        tensor = (tensor.read() if hasattr(tensor, "read") else tensor).float()
        if not tensor.isfinite().all():
            raise ValueError(f"{files}: {name} holds numbers that are not finite; the file is damaged.")
        state[name] = tensor
    model.load_state_dict(state, assign=True)
    return model.eval()


# --- the folder


def _card(kind: str, published: bool, config, records: list[dict], contaminated: bool) -> str:
    """The README.md of a converted tokenizer (`originals/card.md.jinja`)."""
    from tokenization.markdown import markdown_template

    header, licence = LICENCES[kind] if published else ("unknown", "unknown; that of the source files applies")
    return markdown_template(Path(__file__).parent / "originals" / "card.md.jinja").render(
        kind=kind,
        config=config,
        records=records,
        published=published,
        contaminated=contaminated,
        header=header,
        licence=licence,
        num_tokens=(config.resolution // config.stride) ** 2,
        has_decoder=getattr(config, "has_decoder", True),
    )


def convert(args: ConvertArgs) -> Path:
    """Write the folder that `args` describes and return it.

    Raises:
        ValueError: files do not match, are damaged or are refused. OSError: files do not exist.
    """
    output = Path(args.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output {output} is not empty; name a new folder, or delete this one.")
    paths, records = gather(args)
    from tokenization.image_processing_toto import TotoImageProcessor

    contaminated, kind = False, args.source or "dvae"
    if "checkpoint" not in paths:
        model = _dvae(paths["encoder"], paths.get("decoder"))
    elif "config" in paths:
        kind = args.source or "vqgan"
        weights = _weights(paths["checkpoint"])
        contaminated = any(name.startswith("loss.perceptual_loss.") for name in weights)
        model = _vqgan(weights, paths["checkpoint"], paths["config"])
    else:
        kind = "flava"
        model = _dvae(paths["checkpoint"], paths.get("decoder"))
    if model.config.num_codes != PUBLISHED_CODES.get(args.source, model.config.num_codes):
        raise ValueError(
            f"--from {args.source} does not match the files, which hold {model.config.num_codes} codes; omit it."
        )
    partial = output.with_name(output.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)  # left over from a run that was killed
    try:
        partial.mkdir(parents=True)
        model.save_pretrained(partial)
        TotoImageProcessor(resolution=model.config.resolution).save_pretrained(partial)
        source = {"from": kind, "label_contaminated": contaminated, "files": records}
        (partial / "source.json").write_text(json.dumps(source, indent=2) + "\n")
        (partial / "README.md").write_text(_card(kind, args.source in LICENCES, model.config, records, contaminated))
        if output.exists():
            output.rmdir()  # empty, as checked above
        partial.rename(output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    side = model.config.resolution // model.config.stride
    print(f"wrote {output} ({model.config.num_codes} codes, {side} x {side} for {model.config.resolution} pixels)")
    if getattr(model.config, "has_decoder", True) is False:
        print("it can only encode: the source holds no decoder; --decoder decoder.pkl adds OpenAI's.")
    return output


def main(argv: list[str] | None = None) -> None:
    args = parse_flags(ConvertArgs, argv, "toto convert-tokenizer", DESCRIPTION)
    output = convert(args)
    say_next("evaluate-tokenizer", "--tokenizer", output, "--dataset", "toyworld:photos")


if __name__ == "__main__":
    from toto_cli import run

    run(main)
