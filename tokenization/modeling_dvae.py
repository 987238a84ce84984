"""DALL-E's discrete VAE: pictures to codes and back (Ramesh et al. 2021, Sec. 2.1 and App. A), the paper's tokenizer.

Pixels are RGB floats in [0, 1], (B, 3, H, W), for input and output; the mapping to [0.1, 0.9] that the logit-Laplace
likelihood needs is internal.

Modules are named as in OpenAI's `dall_e` package. A name there becomes a name here by two rules: prepend `encoder.` or
`decoder.` (the original has one file for each), and replace a final `.w` by `.weight`, a final `.b` by `.bias`. Shapes
are equal. For example

    encoder file, blocks.group_2.block_1.res_path.conv_1.w -> encoder.blocks.group_2.block_1.res_path.conv_1.weight
    decoder file, blocks.output.conv.b                     -> decoder.blocks.output.conv.bias
"""

from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_dvae import TotoDVAEConfig
from .tokenizer_base import VisualTokenizer, check_pixels

LOGIT_LAPLACE_EPS = 0.1


def map_pixels(pixel_values: torch.Tensor) -> torch.Tensor:
    """[0, 1] -> [0.1, 0.9], where the logit of a pixel is finite (DALL-E App. A.3)."""
    return (1 - 2 * LOGIT_LAPLACE_EPS) * pixel_values + LOGIT_LAPLACE_EPS


def unmap_pixels(mapped: torch.Tensor) -> torch.Tensor:
    """The inverse of `map_pixels`, clipped to [0, 1]."""
    return ((mapped - LOGIT_LAPLACE_EPS) / (1 - 2 * LOGIT_LAPLACE_EPS)).clamp(0, 1)


@dataclass
class TotoDVAEOutput(ModelOutput):
    """`reconstruction` (B, 3, H, W) in [0, 1]; `codes` (B, h, w); `logits` (B, K, h, w), fp32, of the encoder."""

    reconstruction: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None
    logits: torch.FloatTensor | None = None


class TotoDVAECodeLogits(nn.Conv2d):
    """The encoder's last layer: (B, C, h, w) -> logits (B, K, h, w), always computed in fp32.

    As in the original (`use_float16=False`): among thousands of logits rounded to bf16, ties would decide the code.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return F.conv2d(x.float(), self.weight.float(), self.bias.float())


class TotoDVAECodeEmbedding(nn.Conv2d):
    """The decoder's first layer: a 1 x 1 convolution of code probabilities (B, K, h, w), or of codes (B, h, w).

    Codes select columns of the weight, which equals the convolution of their one-hot vectors.
    """

    def forward(self, codes: torch.Tensor) -> torch.Tensor:  # -> (B, n_init, h, w)
        if not codes.is_floating_point():
            return F.embedding(codes, self.weight[:, :, 0, 0].T).add(self.bias).permute(0, 3, 1, 2)
        with torch.autocast(codes.device.type, enabled=False):  # fp32 as in the original
            return F.conv2d(codes.float(), self.weight.float(), self.bias.float()).to(self.weight.dtype)


class TotoDVAEBlock(nn.Module):
    """Residual block: a bottleneck of four convolutions, scaled by 1 / n_layers^2 as published."""

    def __init__(self, config: TotoDVAEConfig, in_channels: int, out_channels: int, kernel_sizes: tuple[int, ...]):
        super().__init__()
        hidden = out_channels // 4
        self.post_gain = 1 / (config.group_count * config.n_blk_per_group) ** 2
        self.id_path = nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else nn.Identity()
        channels = (in_channels, hidden, hidden, hidden, out_channels)
        layers = OrderedDict()
        for i, size in enumerate(kernel_sizes):
            layers[f"relu_{i + 1}"] = nn.ReLU()
            layers[f"conv_{i + 1}"] = nn.Conv2d(channels[i], channels[i + 1], size, padding=size // 2)
        self.res_path = nn.Sequential(layers)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, H, W) -> (B, C', H, W)
        return self.id_path(x) + self.post_gain * self.res_path(x)


def _groups(
    config: TotoDVAEConfig, in_channels: int, widths: list[int], kernel_sizes: tuple[int, ...], resample: str
) -> OrderedDict:
    """Groups of blocks, `group_1` first, each but the last followed by `resample`: max pooling or upsampling."""
    groups = OrderedDict()
    for g, width in enumerate(widths):
        group = OrderedDict()
        for i in range(config.n_blk_per_group):
            group[f"block_{i + 1}"] = TotoDVAEBlock(config, in_channels, width, kernel_sizes)
            in_channels = width
        if g < len(widths) - 1:
            group[resample] = nn.MaxPool2d(2) if resample == "pool" else nn.Upsample(scale_factor=2, mode="nearest")
        groups[f"group_{g + 1}"] = nn.Sequential(group)
    return groups


class TotoDVAEEncoder(nn.Module):
    """Mapped pixels (B, 3, H, W) -> logits of the codes (B, K, h, w)."""

    def __init__(self, config: TotoDVAEConfig):
        super().__init__()
        widths = [config.n_hid * 2**g for g in range(config.group_count)]
        blocks = OrderedDict(input=nn.Conv2d(3, config.n_hid, 7, padding=3))
        blocks.update(_groups(config, config.n_hid, widths, (3, 3, 3, 1), "pool"))
        blocks["output"] = nn.Sequential(
            OrderedDict(relu=nn.ReLU(), conv=TotoDVAECodeLogits(widths[-1], config.num_codes, 1))
        )
        self.blocks = nn.Sequential(blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x)


class TotoDVAEDecoder(nn.Module):
    """Codes (B, h, w) or their probabilities (B, K, h, w) -> statistics of mapped pixels (B, 6, H, W)."""

    def __init__(self, config: TotoDVAEConfig):
        super().__init__()
        widths = [config.n_hid * 2**g for g in reversed(range(config.group_count))]
        blocks = OrderedDict(input=TotoDVAECodeEmbedding(config.num_codes, config.n_init, 1))
        blocks.update(_groups(config, config.n_init, widths, (1, 3, 3, 3), "upsample"))
        blocks["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=nn.Conv2d(config.n_hid, 2 * 3, 1)))
        self.blocks = nn.Sequential(blocks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.blocks(x)


class TotoDVAEModel(VisualTokenizer):
    """Image tokenizer: `encode` pictures (B, 3, H, W) in [0, 1] to codes (B, h, w), `decode` them back."""

    config: TotoDVAEConfig
    _no_split_modules = ["TotoDVAEBlock"]

    def __init__(self, config: TotoDVAEConfig):
        super().__init__(config)
        self.encoder = TotoDVAEEncoder(config)
        self.decoder = TotoDVAEDecoder(config) if config.has_decoder else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):  # as in dall_e: normal, variance 1 / fan-in, zero bias
            init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            init.zeros_(module.bias)

    def encode_logits(self, pixel_values: torch.Tensor, check_values: bool = True) -> torch.Tensor:
        """Logits of every code: pictures (B, 3, H, W) in [0, 1] -> fp32 (B, K, H / stride, W / stride).

        check_values: see `check_pixels`.

        Raises:
            ValueError: wrong type, shape or range, or sides that are not multiples of the stride.
        """
        check_pixels(pixel_values, self.config.stride, check_values)
        return self.encoder(map_pixels(pixel_values).to(self.dtype))

    def encode(self, pixel_values: torch.Tensor, check_values: bool = True) -> torch.LongTensor:
        """The most likely codes of pictures: (B, 3, H, W) floats in [0, 1] -> (B, H / stride, W / stride).

        Raises:
            ValueError: as `encode_logits`.
        """
        return self.encode_logits(pixel_values, check_values).argmax(dim=1)

    def _decoder_output(self, codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.decoder is None:
            raise ValueError(
                "This dVAE can only encode, as it was converted without a decoder; convert it again with "
                "toto convert-tokenizer --decoder decoder.pkl."
            )
        mean, log_scale = self.decoder(codes).float().chunk(2, dim=1)
        return mean, log_scale

    def decode_stats(self, soft_codes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Parameters of the logit-Laplace distribution of the mapped pixels (DALL-E App. A.3), for training.

        Args:
            soft_codes: (B, K, h, w) floats that sum to 1 over K, one-hot or relaxed.

        Returns:
            mean (B, 3, H, W) of the logits of the mapped pixels and the natural log of their scale (B, 3, H, W), fp32.
            `unmap_pixels(mean.sigmoid())` are pixels in [0, 1].

        Raises:
            ValueError: not floats, or another shape.
        """
        if not soft_codes.is_floating_point() or soft_codes.ndim != 4 or soft_codes.shape[1] != self.config.num_codes:
            raise ValueError(
                f"soft_codes must be floats of the shape (B, {self.config.num_codes}, h, w), "
                f"got {soft_codes.dtype} of the shape {tuple(soft_codes.shape)}; pass integer codes to decode."
            )
        return self._decoder_output(soft_codes)

    def decode(self, codes: torch.LongTensor) -> torch.Tensor:
        """Pictures of codes: (B, h, w) -> fp32 (B, 3, h * stride, w * stride) in [0, 1].

        Raises:
            ValueError: not integers, another shape, or a code outside the codebook.
        """
        self.check_code_grids(codes)
        mean, _ = self._decoder_output(codes.long())
        return unmap_pixels(mean.sigmoid())

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, **kwargs) -> TotoDVAEOutput:
        """Auto-encoding through the most likely codes, for measuring reconstructions.

        No gradient flows through the codes. Training relaxes them: `encode_logits`, then `decode_stats` of soft codes.
        """
        logits = self.encode_logits(pixel_values)
        codes = logits.argmax(dim=1)
        return TotoDVAEOutput(reconstruction=self.decode(codes), codes=codes, logits=logits)
