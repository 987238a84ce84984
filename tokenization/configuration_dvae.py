"""Configuration of the discrete VAE image tokenizer (Ramesh et al. 2021); the defaults are DALL-E's shapes."""

from transformers import PreTrainedConfig


class TotoDVAEConfig(PreTrainedConfig):
    """Configuration of `TotoDVAEModel`; the defaults are OpenAI's published dVAE, the paper's tokenizer (Sec. 3.4).

    Args:
        n_hid: channels of the finest group of blocks, doubled in each coarser group. A multiple of 4.
        n_init: channels of the decoder's first layer, which embeds the codes.
        n_blk_per_group: residual blocks per group.
        group_count: groups of blocks; the side is halved between them, so the stride is 2 ** (group_count - 1).
        num_codes: size of the codebook.
        resolution: native side of the pictures in pixels (128 -> 16 x 16 = 256 codes, paper Sec. 3.4); other sides also
            work, as the network is convolutional.
        has_decoder: False for a model converted from a file without a decoder, which can only encode.

    Raises:
        ValueError: a size is not valid, or `resolution` is not a multiple of the stride.
    """

    model_type = "toto_dvae"

    n_hid: int = 256
    n_init: int = 128
    n_blk_per_group: int = 2
    group_count: int = 4
    num_codes: int = 8192
    resolution: int = 128
    has_decoder: bool = True

    def __post_init__(self, **kwargs):
        for name in ("n_hid", "n_init", "n_blk_per_group", "group_count", "num_codes", "resolution"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}.")
        if self.n_hid % 4:
            raise ValueError(f"n_hid must be a multiple of 4, the blocks' bottleneck factor, got {self.n_hid}.")
        if self.resolution % self.stride:
            raise ValueError(f"resolution must be a multiple of the stride {self.stride}, got {self.resolution}.")
        super().__post_init__(**kwargs)

    @property
    def stride(self) -> int:
        """Side in pixels of the square that one code stands for."""
        return 2 ** (self.group_count - 1)
