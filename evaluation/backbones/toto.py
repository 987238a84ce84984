"""Backbones from checkpoints: Toto, or any vision model that transformers supports (`load_backbone`)."""

import math

import numpy as np
import torch
from torch import nn

from evaluation.backbones.contract import Backbone, default_device, fresh


class TotoBackbone(Backbone):
    """A Toto model (`TotoModel` or `TotoForCausalLM`) and the processor that makes its ids.

    Rows are start + codes, without the end token, which no code can see.
    """

    def __init__(self, model: nn.Module, processor, name: str = "toto", device: torch.device | None = None):
        self.device = device or default_device()
        self.model = getattr(model, "model", model).eval().to(self.device)
        self.blocks = list(self.model.layers)
        self.processor = processor
        self.name = name
        self.grid = tuple(self.model.config.grid_size)
        if tuple(processor.grid) != self.grid or processor.num_codes > self.model.config.num_codes:
            raise ValueError(
                f"The model reads frames of {self.grid} with {self.model.config.num_codes} codes, but its processor "
                f"makes {tuple(processor.grid)} with {processor.num_codes}; load both from the same checkpoint."
            )

    @classmethod
    def from_pretrained(
        cls, path: str, device: torch.device | None = None, resolution: int | None = None, **changes
    ) -> "TotoBackbone":
        """Model and processor from one folder or Hub repository, weights in float32. changes: config fields.

        resolution: side of the frames if it differs from training: rows then have more or fewer tokens, and
        as many RoPE positions (paper Table 4 trains further after such a change; without that it is a control).
        """
        from modeling_toto import TotoConfig, TotoModel
        from tokenization.processing_toto import TotoProcessor

        processor = TotoProcessor.from_pretrained(path)
        if resolution is not None and resolution != processor.resolution:
            stride = processor.visual_tokenizer.config.stride
            if resolution % stride:
                raise ValueError(
                    f"--resolution {resolution} is not a multiple of the tokenizer's {stride} pixels per code."
                )
            processor = processor.with_sizes(resolution, processor.num_frames)
            config = TotoConfig.from_pretrained(path, tokens_per_frame=math.prod(processor.grid))
            length = max(config.max_position_embeddings, config.row_length())
            changes |= {"tokens_per_frame": config.tokens_per_frame, "max_position_embeddings": length}
        model = TotoModel.from_pretrained(path, dtype=torch.float32, **changes)
        return cls(model, processor, name=str(path), device=device)

    @property
    def resolution(self) -> int:
        return self.processor.resolution

    @property
    def num_frames(self) -> int:
        return self.model.config.num_frames

    @property
    def reads(self) -> object:
        return self.processor

    def prepare(self, frames: np.ndarray | torch.Tensor, image: bool = False) -> torch.Tensor:
        """uint8 (B, T, R, R, 3) -> ids (B, 1 + T * h * w); `image`: rows with the start token of images (T = 1)."""
        from tokenization.sequences import image_rows, video_rows

        frames = torch.as_tensor(frames)
        batch, time = frames.shape[:2]
        config = self.model.config
        if config.row_length(time) - 1 > config.max_position_embeddings:  # these rows have no end token
            most = config.context_frames
            raise ValueError(
                f"{self.name} reads at most {most} frames, and the clips have {time}; pass --num_frames {most}."
            )
        codes = self.processor.encode_frames(frames.flatten(0, 1)).cpu()
        codes = codes.view(batch, time, *self.grid)
        return image_rows(codes[:, 0], end=False) if image else video_rows(codes, end=False)

    def describe_inputs(self) -> dict:
        return {"tokenizer": self.processor.fingerprint, "grid": self.grid}

    def forward(self, inputs: torch.Tensor):
        def to_grid(_layer: int, hidden: torch.Tensor) -> torch.Tensor:
            return hidden[:, 1:].unflatten(1, (-1, *self.grid))  # without the start token

        return lambda: self.model(input_ids=inputs.to(self.device), use_cache=False), to_grid

    def untrained(self, seed: int) -> "TotoBackbone":
        return TotoBackbone(fresh(self.model, seed), self.processor, f"untrained (seed {seed})", self.device)

    def describe(self) -> dict:
        return super().describe() | {"tokenizer": self.processor.fingerprint}
