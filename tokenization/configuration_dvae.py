"""Settings of the discrete VAE image tokenizer (Ramesh et al. 2021, DALL-E's published shapes by default)."""

from transformers import PreTrainedConfig


class TotoDVAEConfig(PreTrainedConfig):
    """Configuration of `TotoDVAEModel`; the defaults are OpenAI's published dVAE, the paper's tokenizer (Sec. 3.4).

    Args:
        n_hid: channels of the finest group of blocks; every coarser group has twice as many. A multiple of 4.
        n_init: channels of the decoder's first layer, which embeds the codes.
        n_blk_per_group: residual blocks in a group.
        group_count: groups of blocks; the side halves between them, so the stride is 2 ** (group_count - 1).
        num_codes: entries of the codebook.
        resolution: native side of the pictures in pixels (128 -> 16 x 16 = 256 codes, paper Sec. 3.4); other sides work
            too, as the network is convolutional.
        has_decoder: False for a model converted from a file without one, which can encode only.

    Raises:
        ValueError: sizes that no network can have, or a resolution that the stride does not divide.
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
        """Pixels along one side of the square that a code stands for."""
        return 2 ** (self.group_count - 1)
