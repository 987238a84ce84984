"""What is trained: Toto, its patch variant, or GPT-2 and Mamba of the same size on the same rows (paper Tables 3, 6).

GPT-2 and Mamba are transformers' own classes. Their width is the Toto's and their depth is what makes their parameters
as many as possible the same, as the paper compares 280M LLaMA and GPT-2 and 290M Mamba.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy, pad

from tokenization.sequences import code_positions

from .args import require
from .device import in_own_memory

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from modeling_toto import TotoConfig

# What of a row's layout travels in the config of a peer.
LAYOUT = ("tokens_per_frame", "num_frames", "code_offset", "image_start_token_id", "max_position_embeddings")


def peer_config(architecture: str, config: TotoConfig) -> PretrainedConfig:
    """The config of a gpt2 or mamba as large as the Toto of `config`."""
    from transformers import GPT2Config, MambaConfig

    d = config.hidden_size
    ids = {key: getattr(config, f"{key}_token_id") for key in ("bos", "eos", "pad")}
    common = {f"{key}_token_id": value for key, value in ids.items()} | {"vocab_size": config.vocab_size}
    layout = {key: getattr(config, key) for key in LAYOUT}
    if architecture == "gpt2":
        layout.pop("max_position_embeddings")  # GPT-2's own name for it is n_positions
        shape = {"n_embd": d, "n_head": config.num_attention_heads, "n_positions": config.max_position_embeddings}
        dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}  # as in the Toto

        def of_depth(layers: int) -> PretrainedConfig:
            return GPT2Config(n_layer=layers, **shape, **dropout, **common, **layout)
    else:

        def of_depth(layers: int) -> PretrainedConfig:
            return MambaConfig(hidden_size=d, num_hidden_layers=layers, **common, **layout)

    one, two = (parameters(of_depth(layers)) for layers in (1, 2))
    return of_depth(max(1, round((parameters(config) - one) / (two - one)) + 1))


def parameters(config: PretrainedConfig) -> int:
    """Parameters of the causal model of a config, tied weights counted once, without making it."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return model.num_parameters()


def make_model(architecture: str, config: TotoConfig) -> PreTrainedModel:
    """A fresh model. `config` is the Toto's, also for a peer of its size."""
    from transformers import AutoModelForCausalLM

    from modeling_toto import TotoForCausalLM, TotoForPatchPrediction

    if architecture == "llama":
        return TotoForCausalLM(config)
    if architecture == "patches":
        return TotoForPatchPrediction(config)
    return AutoModelForCausalLM.from_config(peer_config(architecture, config))


CLASSES = {"llama": "TotoForCausalLM", "patches": "TotoForPatchPrediction"}
CLASSES |= {"gpt2": "GPT2LMHeadModel", "mamba": "MambaForCausalLM"}


def check_architecture(architecture: str, folder: str) -> None:
    """Refuse a checkpoint of another architecture than the one that is to be trained.

    Raises:
        ValueError: what the checkpoint is.
    """
    from transformers import PretrainedConfig

    (found,) = PretrainedConfig.get_config_dict(folder)[0].get("architectures") or [CLASSES[architecture]]
    names = {name: key for key, name in CLASSES.items()}
    require(
        found == CLASSES[architecture],
        f"{folder} is a {found}, and --architecture {architecture} is to be trained; "
        + (f"take --architecture {names[found]}." if found in names else "it is none that pre-training knows."),
    )


def load_model(architecture: str, folder: str, config: TotoConfig) -> PreTrainedModel:
    """The float32 model of a checkpoint; a Toto with `config`, which may have changed what its weights leave open."""
    from transformers import AutoModelForCausalLM

    from modeling_toto import TotoForCausalLM, TotoForPatchPrediction

    if architecture in ("gpt2", "mamba"):
        return in_own_memory(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    kind = TotoForPatchPrediction if architecture == "patches" else TotoForCausalLM
    return in_own_memory(kind.from_pretrained(folder, config=config, dtype=torch.float32))


def training_flops(model: PreTrainedModel, config: TotoConfig) -> float:
    """`flops_per_token` of any of the architectures."""
    kind = model.config.model_type
    if kind == "toto":
        flops = flops_per_token(config)
        if hasattr(model, "patch_embedding"):  # a linear layer before and one after, and no readout of ids
            ends = model.patch_embedding.weight.numel() + model.head.weight.numel()
            flops += 6 * (ends - config.vocab_size * config.hidden_size)
        return flops
    tables = model.get_input_embeddings().weight.numel()
    if kind == "gpt2":
        tables += model.transformer.wpe.weight.numel()
    weights = model.num_parameters() - tables + config.vocab_size * config.hidden_size  # the readout, tied or not
    pairs = model.config.n_layer * config.hidden_size * config.max_position_embeddings if kind == "gpt2" else 0
    return 6 * weights + 6 * pairs


def flops_per_token(config) -> float:
    """Training FLOPs of one token at full rows: 6 a weight (the head included), 6 a causal attention pair."""
    d, layers = config.hidden_size, config.num_hidden_layers
    weights = layers * (4 * d * d + 3 * d * config.intermediate_size) + config.vocab_size * d
    return 6 * weights + 6 * layers * d * config.max_position_embeddings


@dataclass
class Losses:
    """Of one micro-batch.

    loss: () to go back through. token_losses: (B, L) nats, or squared errors of patches, without a gradient. codes,
    ends: (B, L), which of them are predictions of codes (or patches) and of end tokens; on the CPU.
    """

    loss: torch.Tensor
    token_losses: torch.Tensor
    codes: torch.Tensor
    ends: torch.Tensor


def losses(model, rows: list, device: torch.device, accumulation: int) -> Losses:
    """The losses of a micro-batch of rows, of ids (L,) or patches (`pixels.patch_row`).

    model: prepared by the accelerator. accumulation: the loss is the mean over so many micro-batches.
    """
    if isinstance(rows[0], dict):
        batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
        patches = batch["patches"].to(device, non_blocking=True)
        labels = batch["codes"].to(device) if "codes" in batch else patches
        outputs = model(patches=patches, labels=labels, skip_logits=True)
        codes = torch.ones(patches.shape[:2], dtype=torch.bool)
        return Losses(outputs.loss / accumulation, outputs.token_losses.detach(), codes, ~codes)

    ids = torch.stack(rows)
    on_device = ids.to(device, non_blocking=True)
    predictions = accumulation * len(ids) * (ids.shape[1] - 1)  # of the whole step on this rank
    if _is_toto(model):
        outputs = model(input_ids=on_device, labels=on_device, skip_logits=True, num_items_in_batch=predictions)
        loss, token_losses = outputs.loss, outputs.token_losses.detach()
    else:
        logits = model(input_ids=on_device).logits[:, :-1].flatten(0, 1)
        nats = cross_entropy(logits.float(), on_device[:, 1:].flatten(), reduction="none")
        loss, token_losses = nats.sum() / predictions, pad(nats.detach().view(len(ids), -1), (1, 0))
    codes, ends = code_positions(ids), ~code_positions(ids)
    codes[:, 0] = ends[:, 0] = False  # the start is given, not predicted
    return Losses(loss, token_losses, codes, ends)


def _is_toto(model) -> bool:
    return getattr(model, "module", model).config.model_type == "toto"
