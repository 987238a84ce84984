"""Models that read images as ids: ImageGPT's pixels, and the language models Chameleon, Emu3 and Janus.

Each frame of a clip is read as an image. A language model gets only its start token and the ids of the image, without a
text prompt. No paper describes how to probe these models; this is our choice.
"""

import math

import torch
from torch import nn

from evaluation.backbones.contract import Backbone, default_device, fresh
from evaluation.backbones.vision_models import find_blocks, read_preprocessor, side


class TokenBackbone(Backbone):
    """Base class: frames -> a start token and the image's h * (w + line ends) ids, embedded (B * T, n, D)."""

    line_ends = 0  # ids at the end of each line that are not part of the image

    def __init__(self, model: nn.Module, preprocessor: dict, name: str, device=None, resolution: int | None = None):
        self.device = device or default_device()
        self.model = model.eval().to(self.device)
        self.preprocessor, self.name = preprocessor, name
        self.resolution = resolution or self.native_resolution()
        self.trunk = self.find_trunk()
        self.blocks = find_blocks(self.trunk, name)

    @classmethod
    def from_pretrained(cls, path: str, device=None, resolution: int | None = None) -> "TokenBackbone":
        """Model and preprocessor file from one folder or Hub repository, weights in float32."""
        from transformers import AutoModel

        model = AutoModel.from_pretrained(path, dtype=torch.float32)
        return cls(model, read_preprocessor(path), str(path), device, resolution)

    def native_resolution(self) -> int:
        wanted = self.preprocessor.get("crop_size") or self.preprocessor.get("size")
        # Emu3 reads any size and its files do not name one; we take 384, as in Janus
        return side(wanted) or side(getattr(self.model.config.vq_config, "resolution", None)) or 384

    def find_trunk(self) -> nn.Module:
        """The language model."""
        return self.model

    def pixel_values(self, frames: torch.Tensor) -> torch.Tensor:
        """uint8 (N, R, R, 3) -> float32 (N, 3, R, R) in [-1, 1], as all three tokenizers read it."""
        return frames.to(self.device).permute(0, 3, 1, 2).float() / 127.5 - 1

    def embed(self, frames: torch.Tensor) -> torch.Tensor:
        """uint8 (N, R, R, 3) -> embeddings of the start token and the image's ids (N, 1 + n, D)."""
        ids = self.ids(frames)
        start = torch.full_like(ids[:, :1], self.trunk.config.bos_token_id)
        return self.trunk.get_input_embeddings()(torch.cat([start, ids], 1))

    def ids(self, frames: torch.Tensor) -> torch.Tensor:
        """uint8 (N, R, R, 3) -> ids (N, n)."""
        raise NotImplementedError

    def forward(self, inputs: torch.Tensor):
        batch, time = inputs.shape[:2]
        embedded = self.embed(inputs.flatten(0, 1))

        def to_grid(_layer: int, hidden: torch.Tensor) -> torch.Tensor:
            ids = hidden.shape[1] - 1
            rows = (math.isqrt(4 * ids + self.line_ends**2) - self.line_ends) // 2  # rows * (rows + line_ends) = ids
            grid = hidden[:, 1:].unflatten(1, (rows, rows + self.line_ends))[:, :, :rows]
            return grid.unflatten(0, (batch, time))

        return lambda: self.trunk(inputs_embeds=embedded, use_cache=False), to_grid

    def untrained(self, seed: int) -> "TokenBackbone":
        name = f"untrained (seed {seed})"
        return type(self)(fresh(self.model, seed), self.preprocessor, name, self.device, self.resolution)


class ChameleonBackbone(TokenBackbone):
    def ids(self, frames: torch.Tensor) -> torch.Tensor:
        return self.model.get_image_tokens(self.pixel_values(frames))


class Emu3Backbone(TokenBackbone):
    line_ends = 1

    def find_trunk(self) -> nn.Module:
        return self.model.text_model

    def ids(self, frames: torch.Tensor) -> torch.Tensor:
        sizes = torch.full((len(frames), 2), self.resolution)
        return self.model.get_image_tokens(self.pixel_values(frames), sizes).view(len(frames), -1)


class JanusBackbone(TokenBackbone):
    """Janus, with the ids that it uses to generate images, not with its SigLIP encoder."""

    def find_trunk(self) -> nn.Module:
        return self.model.language_model

    def embed(self, frames: torch.Tensor) -> torch.Tensor:
        codes = self.model.vqmodel.encode(self.pixel_values(frames)).image_tokens.view(len(frames), -1)
        pictures = self.model.generation_aligner(self.model.generation_embeddings(codes))
        start = torch.full((len(frames), 1), self.trunk.config.bos_token_id, device=self.device)
        return torch.cat([self.trunk.get_input_embeddings()(start), pictures], 1)


class ImageGPTBackbone(TokenBackbone):
    """ImageGPT: each pixel is a token, the nearest of its colour clusters, without a start token."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        clusters = self.preprocessor.get("clusters")
        if clusters is None:
            raise ValueError(
                f"{self.name} has no colour clusters, which make its ids; add its preprocessor_config.json."
            )
        if self.resolution != self.native_resolution():
            raise ValueError(
                f"{self.name} reads only frames of {self.native_resolution()} pixels; leave --resolution out."
            )
        self.clusters = torch.as_tensor(clusters, dtype=torch.float32, device=self.device)  # in [-1, 1]

    def native_resolution(self) -> int:
        return math.isqrt(self.model.config.n_positions)

    def forward(self, inputs: torch.Tensor):
        batch, time = inputs.shape[:2]
        pixels = self.pixel_values(inputs.flatten(0, 1)).permute(0, 2, 3, 1).flatten(1, 2)
        ids = torch.cdist(pixels, self.clusters.expand(len(pixels), -1, -1)).argmin(-1)

        def to_grid(_layer: int, hidden: torch.Tensor) -> torch.Tensor:
            return hidden.view(batch, time, self.resolution, self.resolution, -1)

        return lambda: self.model(input_ids=ids, use_cache=False), to_grid

    def describe(self) -> dict:
        return super().describe() | {"clusters": self.clusters.tolist()}


TOKEN_BACKBONES = {
    "chameleon": ChameleonBackbone,
    "emu3": Emu3Backbone,
    "janus": JanusBackbone,
    "imagegpt": ImageGPTBackbone,
}
