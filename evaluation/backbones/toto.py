"""Models of Toto's rows of codes: Toto itself, and the GPT-2 and Mamba that `toto pretrain` trains on them."""

import math

import numpy as np
import torch
from torch import nn

from evaluation.backbones.contract import Backbone, default_device, fresh
from evaluation.backbones.vision_models import find_blocks
from tokenization.patches import Patches


class CodeRowBackbone(Backbone):
    """Base class: a model of rows of codes, and the processor that makes them.

    Rows are start + codes, without the end token, which no code can see.

    Args:
        model: without its readout, of a config with the layout of rows. blocks: its blocks, in order.
    Raises:
        ValueError: model and processor do not fit each other.
    """

    def __init__(self, model: nn.Module, blocks: nn.ModuleList, processor, name: str, device: torch.device | None):
        self.device = device or default_device()
        self.model = model.eval().to(self.device)
        self.blocks = list(blocks)
        self.processor = processor
        self.name = name
        self.grid = tuple(processor.grid)
        config, wanted = model.config, self.wanted_grid()
        num_codes = config.vocab_size - config.code_offset
        if self.grid != wanted or processor.num_codes > num_codes:
            raise ValueError(
                f"The model reads frames of {wanted} with {num_codes} codes, but its processor makes {self.grid} with "
                f"{processor.num_codes}; load both from the same checkpoint."
            )

    def wanted_grid(self) -> tuple[int, int]:
        """Rows and columns of a frame's codes, as the model's config has them."""
        return (math.isqrt(self.model.config.tokens_per_frame),) * 2

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
        if 1 + time * config.tokens_per_frame > config.max_position_embeddings:  # these rows have no end token
            most = (config.max_position_embeddings - 2) // config.tokens_per_frame
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

    def describe(self) -> dict:
        return super().describe() | {"tokenizer": self.processor.fingerprint}


class TotoBackbone(CodeRowBackbone):
    """A Toto model (`TotoModel` or `TotoForCausalLM`) and the processor that makes its ids."""

    def __init__(self, model: nn.Module, processor, name: str = "toto", device: torch.device | None = None):
        model = getattr(model, "model", model)
        super().__init__(model, model.layers, processor, name, device)

    def wanted_grid(self) -> tuple[int, int]:
        return tuple(self.model.config.grid_size)

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

    def untrained(self, seed: int) -> "TotoBackbone":
        return TotoBackbone(fresh(self.model, seed), self.processor, f"untrained (seed {seed})", self.device)


class PeerBackbone(CodeRowBackbone):
    """A GPT-2 or a Mamba that `toto pretrain --architecture` has trained (paper Table 6). Layer k is its block k."""

    @classmethod
    def from_pretrained(cls, path: str, device: torch.device | None = None, resolution: int | None = None):
        """Model and processor from one folder or Hub repository, weights in float32.

        Raises:
            ValueError: a model of text, or a resolution that it was not trained on.
        """
        from transformers import AutoConfig, AutoModel

        from tokenization.processing_toto import TotoProcessor

        config = AutoConfig.from_pretrained(path)
        if not hasattr(config, "tokens_per_frame"):
            raise ValueError(
                f"{path} is a {config.model_type} of text; name one that toto pretrain --architecture "
                f"{config.model_type} has trained."
            )
        processor = TotoProcessor.from_pretrained(path)
        refuse_resolution(path, resolution, processor.resolution)
        return cls(AutoModel.from_pretrained(path, dtype=torch.float32), processor, path, device)

    def __init__(self, model: nn.Module, processor, name: str, device: torch.device | None = None):
        super().__init__(model, find_blocks(model, name), processor, name, device)

    def untrained(self, seed: int) -> "PeerBackbone":
        return PeerBackbone(fresh(self.model, seed), self.processor, f"untrained (seed {seed})", self.device)


class PatchBackbone(Backbone):
    """A `TotoForPatchPrediction`, which reads normalised patches of pixels (paper Table 3)."""

    def __init__(self, model: nn.Module, name: str, device: torch.device | None = None):
        self.device = device or default_device()
        self.model = model.eval().to(self.device)
        self.blocks, self.name = list(model.model.layers), name
        self.patches = Patches(model.config.patch_size)
        self.grid = tuple(model.config.grid_size)
        self.resolution = self.grid[0] * model.config.patch_size
        self.num_frames = model.config.num_frames

    @classmethod
    def from_pretrained(
        cls, path: str, device: torch.device | None = None, resolution: int | None = None, **changes
    ) -> "PatchBackbone":
        """As `TotoBackbone.from_pretrained`. Raises ValueError for a resolution that it was not trained on."""
        from modeling_toto import TotoForPatchPrediction

        found = cls(TotoForPatchPrediction.from_pretrained(path, dtype=torch.float32, **changes), str(path), device)
        refuse_resolution(path, resolution, found.resolution)
        return found

    @property
    def reads(self) -> object:
        return self.patches

    def prepare(self, frames: np.ndarray | torch.Tensor, image: bool = False) -> torch.Tensor:
        """uint8 (B, T, R, R, 3) -> uint8 (B, 1 + T, R, R, 3); the first frame repeats the start token's id."""
        frames = torch.as_tensor(frames)
        config = self.model.config
        most = config.context_frames
        if frames.shape[1] > most:
            raise ValueError(
                f"{self.name} reads at most {most} frames, and the clips have {frames.shape[1]}; pass --num_frames "
                f"{most}."
            )
        start = config.image_start_token_id if image else config.bos_token_id
        return torch.cat([torch.full_like(frames[:, :1], start), frames], 1)

    def describe_inputs(self) -> dict:
        return super().describe_inputs() | {"start": "first frame"}

    def forward(self, inputs: torch.Tensor):
        start, frames = inputs[:, 0, 0, 0, 0].long().to(self.device), inputs[:, 1:].to(self.device)
        patches = self.patches.encode(frames.permute(0, 1, 4, 2, 3).float() / 255).values.flatten(1, 3)

        def to_grid(_layer: int, hidden: torch.Tensor) -> torch.Tensor:
            return hidden[:, 1:].unflatten(1, (-1, *self.grid))  # without the start token

        return lambda: self.model(patches=patches, start_token_id=start), to_grid

    def untrained(self, seed: int) -> "PatchBackbone":
        return PatchBackbone(fresh(self.model, seed), f"untrained (seed {seed})", self.device)


def refuse_resolution(path: str, asked: int | None, trained: int) -> None:
    """Raises ValueError for a resolution other than that of the training, where only a Toto of codes can change."""
    if asked not in (None, trained):
        raise ValueError(f"{path} reads only frames of {trained} pixels; leave --resolution out.")
