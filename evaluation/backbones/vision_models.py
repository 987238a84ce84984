"""Encoders of patches in the classes of transformers: ViT and similar models, Hiera, VideoMAE, V-JEPA 2.

All read the same crop: a frame's shorter side is resized to R and the centre square is taken, whereas some of the
originals resize to 8/7 R before they crop. R, mean and standard deviation are those of the repository's preprocessor
file, which is read as JSON, so that torchvision is not needed.
"""

import inspect
import json
import math

import torch
from torch import nn

from evaluation.backbones.contract import Backbone, default_device, fresh

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PREPROCESSOR_FILES = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")


def read_preprocessor(path: str) -> dict:
    """The contents of the preprocessor file of a folder or Hub repository; empty if there is none."""
    from transformers.utils import cached_file

    for name in PREPROCESSOR_FILES:
        file = cached_file(
            path,
            name,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_connection_errors=False,
        )
        if file is not None:
            with open(file, encoding="utf-8") as stream:
                found = json.load(stream)
            return found.get("image_processor") or found.get("video_processor") or found
    return {}


def side(size) -> int | None:
    """Side in pixels of a size in a config or preprocessor file."""
    if isinstance(size, dict):
        size = size.get("height") or size.get("shortest_edge")
    return size[-1] if isinstance(size, (list, tuple)) else size


def find_blocks(model: nn.Module, name: str) -> list[nn.Module]:
    """The model's transformer blocks: its first list of modules with as many entries as its config has layers."""
    depth = getattr(model.config, "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return list(module)
    raise ValueError(
        f"{name} ({model.config.model_type}) has no list of blocks whose hidden states can be probed; use Toto, a "
        "ViT-like encoder, Hiera, VideoMAE, V-JEPA 2, ImageGPT, Chameleon, Emu3 or Janus."
    )


class FrameBackbone(Backbone):
    """A ViT-like encoder whose hidden states are patch tokens. Frames of a clip are read separately.

    Class and register tokens, which come first, are left out. For a model of images and text, the vision model is used.
    """

    def __init__(self, model: nn.Module, preprocessor: dict, name: str, device=None, resolution: int | None = None):
        self.device = device or default_device()
        self.model = getattr(model, "vision_model", model).eval().to(self.device)
        self.preprocessor, self.name = preprocessor, name
        self.blocks = self.find_blocks()
        self.trained_resolution = self.native_resolution()
        self.resolution = resolution or side(preprocessor.get("crop_size")) or self.trained_resolution
        self.mean, self.std = (
            torch.tensor(preprocessor.get(key) or default).view(3, 1, 1)
            for key, default in (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD))
        )
        self.check_resolution()
        takes = inspect.signature(self.model.forward).parameters
        interpolates = "interpolate_pos_encoding" in takes and self.resolution != self.trained_resolution
        self.interpolation = {"interpolate_pos_encoding": True} if interpolates else {}

    @classmethod
    def from_pretrained(cls, path: str, device=None, resolution: int | None = None) -> "FrameBackbone":
        """Model and preprocessor file from one folder or Hub repository, weights in float32."""
        from transformers import AutoModel

        model = AutoModel.from_pretrained(path, dtype=torch.float32)
        return cls(model, read_preprocessor(path), str(path), device, resolution)

    def find_blocks(self) -> list[nn.Module]:
        return find_blocks(self.model, self.name)

    def native_resolution(self) -> int:
        """Side in pixels of the frames that the model was trained on."""
        size = getattr(self.model.config, "image_size", None)
        found = side(size)
        kind = self.model.config.model_type
        if getattr(self.model.config, "num_detection_tokens", 0):
            raise ValueError(f"{self.name} ({kind}) has detection tokens after its patches; use a plain ViT.")
        if isinstance(size, (list, tuple)) and len(set(size[-2:])) > 1:
            raise ValueError(f"{self.name} ({kind}) reads frames of {size} pixels; use a model of square frames.")
        if found is None or not hasattr(self.model.config, "patch_size"):
            raise ValueError(f"{self.name} ({kind}) has no layers of patch tokens; use Toto or a ViT-like model.")
        return found

    @property
    def stride(self) -> int:
        """Pixels from one token to the next."""
        return side(self.model.config.patch_size)

    def is_bound(self) -> bool:
        """Whether its positions allow only one resolution."""
        return not getattr(self.model.config, "is_native", True)  # AIMv2 with learnt positions

    def check_resolution(self) -> None:
        """Raises ValueError for a resolution that the model cannot read."""
        if self.is_bound() and self.resolution != self.trained_resolution:
            raise ValueError(
                f"{self.name} reads only frames of {self.trained_resolution} pixels; leave --resolution out."
            )
        if self.resolution % self.stride:
            raise ValueError(
                f"--resolution {self.resolution} is not a multiple of the {self.stride}-pixel patches of {self.name}."
            )

    def grid(self) -> tuple[int, int]:
        """Tokens of a frame as (h, w)."""
        return (self.resolution // self.stride,) * 2

    def pixel_values(self, frames: torch.Tensor) -> torch.Tensor:
        """uint8 (N, R, R, 3) -> normalised float32 (N, 3, R, R) on the device."""
        pictures = frames.to(self.device).permute(0, 3, 1, 2).float() / 255
        return (pictures - self.mean.to(self.device)) / self.std.to(self.device)

    def options(self, batch: int) -> dict:
        """Further arguments of the forward pass."""
        return self.interpolation

    def forward(self, inputs: torch.Tensor):
        batch, time = inputs.shape[:2]
        rows, columns = self.grid()
        pixels = self.pixel_values(inputs.flatten(0, 1))

        def to_grid(layer: int, hidden: torch.Tensor) -> torch.Tensor:
            if hidden.ndim != 3 or hidden.shape[1] < rows * columns:
                raise ValueError(f"{self.name} does not give {rows} x {columns} patch tokens at layer {layer}.")
            return hidden[:, -rows * columns :].view(batch, time, rows, columns, -1)

        return lambda: self.model(pixel_values=pixels, **self.options(len(pixels))), to_grid

    def untrained(self, seed: int) -> "FrameBackbone":
        name = f"untrained (seed {seed})"
        return type(self)(fresh(self.model, seed), self.preprocessor, name, self.device, self.resolution)

    def describe(self) -> dict:
        return super().describe() | {"mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()}


class MaskedAutoencoderBackbone(FrameBackbone):
    """ViT-MAE, whose encoder masks random patches by default."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.model.config.mask_ratio = 0.0

    def options(self, batch: int) -> dict:
        # the patches are sorted by this noise: increasing values keep their order
        noise = torch.arange(math.prod(self.grid()), device=self.device).float().expand(batch, -1)
        return super().options(batch) | {"noise": noise}


class HieraBackbone(FrameBackbone):
    """Hiera: blocks in stages, each with fewer and wider tokens, which are stored in the order of its mask units.

    Layer k is the input of block k, in the width and the grid of the block that made it.
    """

    def find_blocks(self) -> list[nn.Module]:
        return [block for stage in self.model.encoder.stages for block in stage.layers]

    @property
    def stride(self) -> int:
        return side(self.model.config.patch_stride)

    def is_bound(self) -> bool:
        return True

    def forward(self, inputs: torch.Tensor):
        batch, time = inputs.shape[:2]
        pixels = self.pixel_values(inputs.flatten(0, 1))
        made_in = [0, *(stage for stage, depth in enumerate(self.model.config.depths) for _ in range(depth))]

        def to_grid(layer: int, hidden: torch.Tensor) -> torch.Tensor:
            return self.model.encoder.reroll(hidden, made_in[layer]).unflatten(0, (batch, time))

        return lambda: self.model(pixel_values=pixels), to_grid


class ClipBackbone(FrameBackbone):
    """VideoMAE and V-JEPA 2: a token covers `tubelet_size` frames, so the grid has T / tubelet_size time steps."""

    @property
    def num_frames(self) -> int:
        config = self.model.config
        return getattr(config, "num_frames", None) or config.frames_per_clip

    def native_resolution(self) -> int:
        config = self.model.config
        return side(getattr(config, "crop_size", None) or config.image_size)

    def is_bound(self) -> bool:
        return self.model.config.model_type == "videomae"

    def forward(self, inputs: torch.Tensor):
        config = self.model.config
        batch, time = inputs.shape[:2]
        if time == 1:  # an image is a still clip, as V-JEPA 2's authors repeat it for ImageNet
            inputs, time = inputs.expand(-1, self.num_frames, -1, -1, -1), self.num_frames
        if config.model_type == "videomae" and time != self.num_frames:
            raise ValueError(f"{self.name} reads only clips of {self.num_frames} frames; leave --num_frames out.")
        if time % config.tubelet_size:
            raise ValueError(
                f"--num_frames {time} is not a multiple of the {config.tubelet_size} frames per token of {self.name}."
            )
        pixels = self.pixel_values(inputs.flatten(0, 1)).unflatten(0, (batch, time))
        rows, columns = self.grid()

        def to_grid(_layer: int, hidden: torch.Tensor) -> torch.Tensor:
            return hidden.view(batch, time // config.tubelet_size, rows, columns, -1)

        if config.model_type == "vjepa2":
            return lambda: self.model(pixel_values_videos=pixels, skip_predictor=True), to_grid
        return lambda: self.model(pixel_values=pixels), to_grid


# model_type -> adapter; any other vision model is read as a `FrameBackbone`
VISION_BACKBONES = {
    "vit_mae": MaskedAutoencoderBackbone,
    "hiera": HieraBackbone,
    "videomae": ClipBackbone,
    "vjepa2": ClipBackbone,
}
