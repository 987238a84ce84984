"""Configuration of the VQGAN image tokenizer (Esser et al. 2021); the defaults are taming-transformers' shapes."""

from transformers import PreTrainedConfig


class TotoVQGANConfig(PreTrainedConfig):
    """Configuration of `TotoVQGANModel`; the defaults are taming's f16 model with 1,024 codes.

    Args:
        num_codes: size of the codebook (the paper uses 1,024 and 16,384).
        embed_dim: size of a codebook vector.
        base_channels, channel_multipliers: level i has base_channels * channel_multipliers[i] channels; each level but
            the last halves the side, so the stride is patch_size * 2 ** (levels - 1).
        num_res_blocks: residual blocks per level in the encoder; the decoder has one more, as published.
        attention_resolutions: sides (in pixels, at the native resolution) at which self-attention is applied.
        mid_attention: self-attention between the two innermost blocks, as published.
        z_channels: channels of the encoder's output.
        norm_groups: groups of every GroupNorm.
        patch_size: side of the squares of pixels folded into channels before the first convolution and unfolded after
            the last (our addition, for fast tokenizers on a CPU; 1 is the published network).
        local: every convolution is 1 x 1 and every norm is taken at each position (our addition; not as published), so
            that with one level a code depends on its own patch alone, and a patch has the same code everywhere.
        resolution: native side of the pictures in pixels.

    Raises:
        ValueError: a size is not valid, or `resolution` is not a multiple of the stride.
    """

    model_type = "toto_vqgan"

    num_codes: int = 1024
    embed_dim: int = 256
    base_channels: int = 128
    channel_multipliers: tuple[int, ...] | list[int] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] | list[int] = (16,)
    mid_attention: bool = True
    z_channels: int = 256
    norm_groups: int = 32
    patch_size: int = 1
    local: bool = False
    resolution: int = 256

    def __post_init__(self, **kwargs):
        sizes = {name: getattr(self, name) for name in ("num_codes", "embed_dim", "base_channels", "num_res_blocks")}
        sizes |= {name: getattr(self, name) for name in ("z_channels", "norm_groups", "patch_size", "resolution")}
        sizes |= {f"channel_multipliers[{i}]": m for i, m in enumerate(self.channel_multipliers)}
        for name, value in sizes.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}.")
        if not self.channel_multipliers:
            raise ValueError("channel_multipliers must have at least one level, got none.")
        if any(self.base_channels * m % self.norm_groups for m in (1, *self.channel_multipliers)):
            raise ValueError(
                f"norm_groups must divide the channels of every level, {self.base_channels} times 1 and "
                f"{list(self.channel_multipliers)}, got {self.norm_groups}."
            )
        if self.local and (len(self.channel_multipliers) > 1 or self.attention_resolutions or self.mid_attention):
            raise ValueError(
                "local needs one level and no attention: channel_multipliers [1], attention_resolutions [] and "
                f"mid_attention false, got {list(self.channel_multipliers)}, {list(self.attention_resolutions)} and "
                f"{self.mid_attention}."
            )
        if self.resolution % self.stride:
            raise ValueError(f"resolution must be a multiple of the stride {self.stride}, got {self.resolution}.")
        super().__post_init__(**kwargs)

    @property
    def stride(self) -> int:
        """Side in pixels of the square that one code stands for."""
        return self.patch_size * 2 ** (len(self.channel_multipliers) - 1)
