"""VQGAN: pictures to codes of a learned codebook and back (Esser et al. 2021), with taming-transformers' module names.

Pixels are RGB floats in [0, 1], (B, 3, H, W), for input and output; the published range [-1, 1] is internal.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_vqgan import TotoVQGANConfig
from .tokenizer_base import VisualTokenizer, check_pixels


@dataclass
class TotoVQGANOutput(ModelOutput):
    """`reconstruction` (B, 3, H, W) in [0, 1]; `codes` (B, h, w); `codebook_loss` and `commitment_loss`, scalars;
    `latents` (B, E, h, w), the encoder's vectors before quantisation."""

    reconstruction: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None
    codebook_loss: torch.FloatTensor | None = None
    commitment_loss: torch.FloatTensor | None = None
    latents: torch.FloatTensor | None = None


class TotoVQGANNorm(nn.GroupNorm):
    def __init__(self, config: TotoVQGANConfig, channels: int):
        super().__init__(config.norm_groups, channels, eps=1e-6)
        self.local = config.local

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, H, W) -> (B, C, H, W)
        if not self.local:
            return super().forward(x)
        groups = x.unflatten(1, (self.num_groups, -1))
        centred = groups - groups.mean(2, keepdim=True)
        deviation = (centred.square().mean(2, keepdim=True) + self.eps).rsqrt()
        unit = (centred * deviation).flatten(1, 2)
        return unit * self.weight[:, None, None] + self.bias[:, None, None]


class TotoVQGANConv(nn.Conv2d):
    """The 3 x 3 convolution that keeps the size; 1 x 1 in a local tokenizer."""

    def __init__(self, config: TotoVQGANConfig, in_channels: int, out_channels: int):
        side = 1 if config.local else 3
        super().__init__(in_channels, out_channels, side, padding=side // 2)


class TotoVQGANResnetBlock(nn.Module):
    def __init__(self, config: TotoVQGANConfig, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1 = TotoVQGANNorm(config, in_channels)
        self.conv1 = TotoVQGANConv(config, in_channels, out_channels)
        self.norm2 = TotoVQGANNorm(config, out_channels)
        self.conv2 = TotoVQGANConv(config, out_channels, out_channels)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, C, H, W) -> (B, C', H, W)
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class TotoVQGANAttnBlock(nn.Module):
    def __init__(self, config: TotoVQGANConfig, channels: int):
        super().__init__()
        self.norm = TotoVQGANNorm(config, channels)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        q, k, v = (project(h).flatten(2).transpose(1, 2) for project in (self.q, self.k, self.v))  # (B, HW, C)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.transpose(1, 2).reshape(x.shape))


class TotoVQGANDownsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # taming pads the right and the bottom only


class TotoVQGANUpsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class TotoVQGANLevel(nn.Module):
    """The residual (and attention) blocks at one resolution, then the change to the next resolution."""

    def __init__(self, config: TotoVQGANConfig, channels: list[int], side: int):
        super().__init__()
        self.block = nn.ModuleList(TotoVQGANResnetBlock(config, i, o) for i, o in pairwise(channels))
        attend = side in config.attention_resolutions
        self.attn = nn.ModuleList(TotoVQGANAttnBlock(config, o) for o in channels[1:] if attend)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        for resample in (getattr(self, "downsample", None), getattr(self, "upsample", None)):
            if resample is not None:
                x = resample(x)
        return x


class TotoVQGANMiddle(nn.Module):
    def __init__(self, config: TotoVQGANConfig, channels: int):
        super().__init__()
        self.block_1 = TotoVQGANResnetBlock(config, channels, channels)
        if config.mid_attention:
            self.attn_1 = TotoVQGANAttnBlock(config, channels)
        self.block_2 = TotoVQGANResnetBlock(config, channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block_1(x)
        if hasattr(self, "attn_1"):
            x = self.attn_1(x)
        return self.block_2(x)


class TotoVQGANEncoder(nn.Module):
    def __init__(self, config: TotoVQGANConfig):
        super().__init__()
        widths = [config.base_channels * m for m in config.channel_multipliers]
        self.patch_size = config.patch_size
        self.conv_in = TotoVQGANConv(config, 3 * config.patch_size**2, config.base_channels)
        self.down = nn.ModuleList()
        for i, width in enumerate(widths):
            before = widths[i - 1] if i else config.base_channels
            side = config.resolution // config.patch_size >> i
            level = TotoVQGANLevel(config, [before] + [width] * config.num_res_blocks, side)
            if i < len(widths) - 1:
                level.downsample = TotoVQGANDownsample(width)
            self.down.append(level)
        self.mid = TotoVQGANMiddle(config, widths[-1])
        self.norm_out = TotoVQGANNorm(config, widths[-1])
        self.conv_out = TotoVQGANConv(config, widths[-1], config.z_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, 3, H, W) in [-1, 1] -> (B, Z, h, w)
        x = self.conv_in(F.pixel_unshuffle(x, self.patch_size))
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class TotoVQGANDecoder(nn.Module):
    def __init__(self, config: TotoVQGANConfig):
        super().__init__()
        widths = [config.base_channels * m for m in config.channel_multipliers]
        self.conv_in = TotoVQGANConv(config, config.z_channels, widths[-1])
        self.mid = TotoVQGANMiddle(config, widths[-1])
        levels = []
        for i in reversed(range(len(widths))):
            before = widths[min(i + 1, len(widths) - 1)]
            side = config.resolution // config.patch_size >> i
            level = TotoVQGANLevel(config, [before] + [widths[i]] * (config.num_res_blocks + 1), side)
            if i > 0:
                level.upsample = TotoVQGANUpsample(widths[i])
            levels.insert(0, level)  # taming numbers the levels by resolution, finest first
        self.up = nn.ModuleList(levels)
        self.norm_out = TotoVQGANNorm(config, widths[0])
        self.patch_size = config.patch_size
        self.conv_out = TotoVQGANConv(config, widths[0], 3 * config.patch_size**2)

    def forward(self, z: torch.Tensor) -> torch.Tensor:  # (B, Z, h, w) -> (B, 3, H, W), about [-1, 1]
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return F.pixel_shuffle(self.conv_out(F.silu(self.norm_out(x))), self.patch_size)


class TotoVQGANQuantizer(nn.Module):
    def __init__(self, config: TotoVQGANConfig):
        super().__init__()
        self.embedding = nn.Embedding(config.num_codes, config.embed_dim)

    def forward(self, z: torch.Tensor) -> torch.Tensor:  # (B, E, h, w) -> nearest codes (B, h, w)
        # fp32 even under autocast: in bf16 near neighbours tie, and the codes would depend on the machine.
        with torch.autocast(z.device.type, enabled=False):
            flat = z.float().permute(0, 2, 3, 1).flatten(0, 2)
            table = self.embedding.weight.float()
            distances = table.square().sum(1) - 2 * flat @ table.T  # |z|^2 is the same for every code
        return distances.argmin(1).view(z.shape[0], *z.shape[2:])


class TotoVQGANModel(VisualTokenizer):
    """Image tokenizer: `encode` pictures (B, 3, H, W) in [0, 1] to codes (B, h, w), `decode` them back."""

    config: TotoVQGANConfig

    def __init__(self, config: TotoVQGANConfig):
        super().__init__(config)
        self.encoder = TotoVQGANEncoder(config)
        self.decoder = TotoVQGANDecoder(config)
        self.quantize = TotoVQGANQuantizer(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):  # torch's default, which taming keeps
            init.kaiming_uniform_(module.weight, a=5**0.5)
            if module.bias is not None:
                bound = module.weight[0].numel() ** -0.5
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.GroupNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.uniform_(module.weight, -1.0 / self.config.num_codes, 1.0 / self.config.num_codes)

    def encode_latents(self, pixel_values: torch.Tensor, check_values: bool = True) -> torch.Tensor:
        """Vectors before quantisation: pictures (B, 3, H, W) in [0, 1] -> (B, embed_dim, h, w).

        check_values: see `check_pixels`.

        Raises:
            ValueError: wrong type, shape or range, or sides that are not multiples of the stride.
        """
        check_pixels(pixel_values, self.config.stride, check_values)
        return self.quant_conv(self.encoder(2 * pixel_values.to(self.dtype) - 1))

    def encode(self, pixel_values: torch.Tensor, check_values: bool = True) -> torch.LongTensor:
        """Nearest codes of pictures: (B, 3, H, W) floats in [0, 1] -> (B, H / stride, W / stride).

        Raises:
            ValueError: as `encode_latents`.
        """
        return self.quantize(self.encode_latents(pixel_values, check_values))

    def decode(self, codes: torch.LongTensor) -> torch.Tensor:
        """Pictures of codes: (B, h, w) -> (B, 3, h * stride, w * stride), clipped to [0, 1].

        Raises:
            ValueError: not integers, another shape, or a code outside the codebook.
        """
        self.check_code_grids(codes)
        return self.decode_latents(self.quantize.embedding(codes.long()).permute(0, 3, 1, 2)).clamp(0, 1)

    def decode_latents(self, quantized: torch.Tensor) -> torch.Tensor:
        """Pictures of codebook vectors (B, embed_dim, h, w), not clipped."""
        return (self.decoder(self.post_quant_conv(quantized)) + 1) / 2

    @can_return_tuple
    def forward(self, pixel_values: torch.Tensor, **kwargs) -> TotoVQGANOutput:
        """Auto-encoding with the straight-through estimator, for training and for measuring reconstructions."""
        z = self.encode_latents(pixel_values)
        codes = self.quantize(z)
        quantized = self.quantize.embedding(codes).permute(0, 3, 1, 2)
        z32, q32 = z.float(), quantized.float()
        return TotoVQGANOutput(
            reconstruction=self.decode_latents(z + (quantized - z).detach()),
            codes=codes,
            codebook_loss=F.mse_loss(q32, z32.detach()),
            commitment_loss=F.mse_loss(z32, q32.detach()),
            latents=z,
        )
