"""muP: multipliers, initial scales, learning rates and weight decay for each kind of weight.

The paper (App. A.7) reports that with muP the best learning rate is 2^-7 at every width, and is silent on the rest. We
follow Yang et al. 2022 (arXiv 2203.03466, Table 8, Adam) and choose, with r = width / base width:

    kind of weight                             initial std             learning rate     decay of one step   forward
    embeddings                                 initializer_range       lr                lr * wd             * 1
    matrices of the blocks                     initializer_range/√r    lr / r            lr * wd             * 1
    readout (the embeddings where tied)        initializer_range       lr                lr * wd             * 1 / r
    norm gains, biases                         1, 0                    lr                none                * 1
    attention scores                                                                                         √base d / d

Also ours:
- At the base width the model equals a Llama with standard parametrisation, including its first update. The base of
  a1..a6 is a1, the smallest: width 256, head size 16.
- r is used for every fan-in in a block, so intermediate_size and heads x head_dim must grow with the width.
- Decay is independent of r: AdamW multiplies it by the learning rate, so the blocks get wd * r (Wang and Aitchison
  2024, arXiv 2405.13698).
- Neither queries nor readout start at zero, which Yang et al. leave open: the base would not be an ordinary Llama.
- There is no depth multiplier, because the paper tunes at one depth. Adam's epsilon is unchanged. Task heads use lr at
  every width.
"""

from torch import nn
from transformers import initialization as init

from .configuration_toto import TotoConfig


def width_ratio(config: TotoConfig) -> float:
    """Hidden size divided by the base width; 1 without muP."""
    return 1.0 if config.mup_base_width is None else config.hidden_size / config.mup_base_width


def attention_scaling(config: TotoConfig) -> float:
    """Factor of q . k: 1 / sqrt(d), or with muP sqrt(base d) / d, which is equal at the base head size."""
    base = config.mup_base_head_dim or config.head_dim
    return base**0.5 / config.head_dim


def embedding_multiplier(config: TotoConfig) -> float:
    """Factor of the embeddings."""
    return config.embedding_multiplier


def output_multiplier(config: TotoConfig) -> float:
    """Factor of the logits, which with muP is inversely proportional to the width."""
    return config.output_multiplier / width_ratio(config)


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The weight matrices in the blocks of any Toto model, whose two sides grow with the width."""
    return [weight for weight in model.base_model.layers.parameters() if weight.ndim >= 2]


def init_weights(model: nn.Module, module: nn.Module) -> None:
    """Initialise a block's matrix with muP's standard deviation, after Llama's own; a no-op at the base width."""
    ratio = width_ratio(model.config)
    if ratio != 1 and isinstance(module, nn.Linear) and any(module.weight is w for w in hidden_matrices(model)):
        init.normal_(module.weight, std=model.config.initializer_range / ratio**0.5)


def learning_rate_scales(model: nn.Module) -> dict[nn.Parameter, float]:
    """Factors of the learning rate, and inverse factors of the weight decay, of the weights whose factor is not 1."""
    ratio = width_ratio(model.config)
    return {} if ratio == 1 else dict.fromkeys(hidden_matrices(model), 1 / ratio)


__all__ = [
    "attention_scaling",
    "embedding_multiplier",
    "hidden_matrices",
    "init_weights",
    "learning_rate_scales",
    "output_multiplier",
    "width_ratio",
]
