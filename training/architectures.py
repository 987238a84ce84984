"""The models that can be trained: Toto, its patch variant, and GPT-2 and Mamba of the same size (paper Tables 3 and 6).

GPT-2 and Mamba are the classes of transformers. They have the width of the Toto and the depth that brings their number
of parameters closest to it; the paper compares LLaMA and GPT-2 of 280M parameters and Mamba of 290M. Liger's kernels
and stochastic depth change the blocks of a Toto during training.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, pad

from tokenization.sequences import code_positions
from training.engine.device import in_own_memory
from training.flags import require
from training.rows.mixture import stacked

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

    from modeling_toto import TotoConfig

# Fields of the row layout that are copied into the config of a GPT-2 or Mamba.
LAYOUT = ("tokens_per_frame", "num_frames", "code_offset", "image_start_token_id", "max_position_embeddings")


def peer_config(architecture: str, config: TotoConfig) -> PretrainedConfig:
    """The config of a GPT-2 or Mamba with about as many parameters as the Toto of `config`."""
    from transformers import GPT2Config, MambaConfig

    d = config.hidden_size
    ids = {key: getattr(config, f"{key}_token_id") for key in ("bos", "eos", "pad")}
    common = {f"{key}_token_id": value for key, value in ids.items()} | {"vocab_size": config.vocab_size}
    layout = {key: getattr(config, key) for key in LAYOUT}
    if architecture == "gpt2":
        layout.pop("max_position_embeddings")  # GPT-2 calls it n_positions
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
    """Number of parameters of a config's causal model, with tied weights counted once; allocates no memory."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return model.num_parameters()


def make_model(architecture: str, config: TotoConfig) -> PreTrainedModel:
    """A model with new weights. `config` is that of the Toto, also for GPT-2 and Mamba."""
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
    """Check that a checkpoint has the architecture that is to be trained.

    Raises:
        ValueError: if it has another one; the message names it.
    """
    from transformers import PretrainedConfig

    (found,) = PretrainedConfig.get_config_dict(folder)[0].get("architectures") or [CLASSES[architecture]]
    names = {name: key for key, name in CLASSES.items()}
    require(
        found == CLASSES[architecture],
        f"{folder} is a {found}, not of --architecture {architecture}; "
        + (f"use --architecture {names[found]}." if found in names else "pre-training does not support it."),
    )


def load_model(architecture: str, folder: str, config: TotoConfig) -> PreTrainedModel:
    """The float32 model of a checkpoint. A Toto takes `config`, which may differ in fields that change no weight."""
    from transformers import AutoModelForCausalLM

    from modeling_toto import TotoForCausalLM, TotoForPatchPrediction

    if architecture in ("gpt2", "mamba"):
        return in_own_memory(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32))
    kind = TotoForPatchPrediction if architecture == "patches" else TotoForCausalLM
    return in_own_memory(kind.from_pretrained(folder, config=config, dtype=torch.float32))


def training_flops(model: PreTrainedModel, config: TotoConfig) -> float:
    """`flops_per_token` for any of the architectures."""
    kind = model.config.model_type
    if kind == "toto":
        flops = flops_per_token(config)
        if hasattr(model, "patch_embedding"):  # a linear layer at either end, and no readout of ids
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
    """Training FLOPs of a Toto per token of a full row: 6 per weight (head included), 6 per causal attention pair."""
    d, layers = config.hidden_size, config.num_hidden_layers
    weights = layers * (4 * d * d + 3 * d * config.intermediate_size) + config.vocab_size * d
    return 6 * weights + 6 * layers * d * config.max_position_embeddings


@dataclass
class Losses:
    """The losses of one micro-batch.

    Fields:
        loss: () loss to back-propagate.
        token_losses: (B, L) nats, or squared errors of patches, without a gradient.
        codes, ends: (B, L) booleans; they select the predictions of codes (or patches) and of end tokens. All are on
            the model's device, so that the host does not wait for it.
    """

    loss: torch.Tensor
    token_losses: torch.Tensor
    codes: torch.Tensor
    ends: torch.Tensor


def losses(model, rows: list, device: torch.device, accumulation: int) -> Losses:
    """The losses of a micro-batch of rows of ids (L,) or of patches (`pixel_rows.patch_row`).

    Args:
        model: the model as prepared by the accelerator.
        accumulation: micro-batches per step; the loss is divided by it.
    """
    if isinstance(rows[0], dict):
        batch = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
        patches = batch["patches"].to(device, non_blocking=True)
        labels = batch["codes"].to(device) if "codes" in batch else patches
        outputs = model(patches=patches, labels=labels, skip_logits=True)
        codes = torch.ones(patches.shape[:2], dtype=torch.bool, device=device)
        return Losses(outputs.loss / accumulation, outputs.token_losses.detach(), codes, ~codes)

    ids = stacked(rows)
    on_device = ids.to(device, non_blocking=True)
    predictions = accumulation * len(ids) * (ids.shape[1] - 1)  # in the whole step, on this rank
    if _is_toto(model):
        outputs = model(input_ids=on_device, labels=on_device, skip_logits=True, num_items_in_batch=predictions)
        loss, token_losses = outputs.loss, outputs.token_losses.detach()
    else:
        logits = model(input_ids=on_device).logits[:, :-1].flatten(0, 1)
        nats = cross_entropy(logits.float(), on_device[:, 1:].flatten(), reduction="none")
        loss, token_losses = nats.sum() / predictions, pad(nats.detach().view(len(ids), -1), (1, 0))
    codes, ends = code_positions(on_device), ~code_positions(on_device)
    codes[:, 0] = ends[:, 0] = False  # the start is given, not predicted
    return Losses(loss, token_losses, codes, ends)


def _is_toto(model) -> bool:
    return getattr(model, "module", model).config.model_type == "toto"


def use_liger(model: nn.Module, device: torch.device) -> None:
    """Replace RMSNorm, SwiGLU and RoPE in a Toto's blocks with Liger's fused Triton kernels; the loss is not replaced.

    A block with a replaced part runs Llama's plain code path. Which is faster depends on the shapes; measure it.

    Raises:
        ValueError: if there is no GPU, or the package liger-kernel is missing.
    """
    if device.type not in ("cuda", "xpu"):
        raise ValueError(f"--liger needs a GPU, but this run is on {device.type}; remove the flag.")
    try:
        from liger_kernel.transformers import apply_liger_kernel_to_llama
    except ImportError as error:
        raise ValueError("--liger needs Liger's kernels; run pip install 'modeling-toto[liger]'.") from error
    apply_liger_kernel_to_llama(
        rope=True, cross_entropy=False, fused_linear_cross_entropy=False, rms_norm=True, swiglu=True, model=model
    )


class DropPath:
    """Stochastic depth (Huang et al. 2016, arXiv 1603.09382): in training, a row skips some of the blocks of a Toto.

    Forward hooks drop a block's update of the residual stream for a row, or divide it by the probability of keeping it.
    The probability of dropping grows linearly from 0 at the first block to `rate` at the last. Attention and MLP of a
    block are dropped together, so that Toto's fused training block remains in use. The blocks that a row skips depend
    only on the seed and on the number of the row. No weight and no config field is added.

    Args:
        layers: the trained blocks, in order.
    """

    def __init__(self, layers: list[nn.Module], rate: float, seed: int):
        self.seed, self.rates = seed, np.linspace(0, rate, len(layers))
        self.scales: torch.Tensor | None = None
        for k, layer in enumerate(layers):
            layer.register_forward_hook(self._hook(k))

    def draw(self, numbers: list[int], device: torch.device) -> None:
        """Draw the scale of each block, 0 or 1 / (1 - rate), for the rows of the next forward and backward pass."""
        draws = np.stack([np.random.default_rng([self.seed, k, 2]).random(len(self.rates)) for k in numbers])
        scales = (draws >= self.rates) / (1 - self.rates)
        self.scales = torch.from_numpy(scales).float().to(device)  # (B, blocks)

    def _hook(self, k: int):
        def change(block: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
            if not block.training:
                return output
            (before,) = inputs  # (B, L, D)
            scale = self.scales[:, k, None, None].to(output.dtype)
            return before + scale * (output - before)

        return change
