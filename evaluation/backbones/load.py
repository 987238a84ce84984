"""Loads any model that probes support, by its Hub id or folder."""

from pathlib import Path

import torch

from evaluation.backbones.contract import Backbone
from evaluation.backbones.token_models import TOKEN_BACKBONES
from evaluation.backbones.toto import PatchBackbone, PeerBackbone, TotoBackbone
from evaluation.backbones.vision_models import VISION_BACKBONES, FrameBackbone
from training.find_model import resolve_model

# What `toto pretrain --architecture` trains of transformers' own classes.
PEER_BACKBONES = {"gpt2": PeerBackbone, "mamba": PeerBackbone}


def load_backbone(
    name_or_path: str | Path,
    device: str | torch.device | None = None,
    rope_base: float | None = None,
    resolution: int | None = None,
) -> Backbone:
    """A frozen backbone: Toto, what `toto pretrain` compares to it, or a vision model of transformers' own classes.

    Tested: ViT (DINO's and MoCo v3's weights), ViT-MAE, DINOv2 (with registers too), DINOv3, BEiT, AIMv2, I-JEPA,
    CLIP, Hiera, VideoMAE, V-JEPA 2, ImageGPT, Chameleon, Emu3, Janus. No code from the repository is run.

    Args:
        name_or_path: Hub id, Hugging Face folder, or run folder, which stands for its newest valid checkpoint.
        device: where it runs; None: the GPU if there is one.
        rope_base: RoPE base of a Toto if it differs from training: a control for training after the change (Table 4).
        resolution: side of the frames in pixels; None: the model's own.
    Returns:
        A `Backbone`: `depth` (number of its deepest layer), `resolution` (side of the frames that it reads, in pixels)
        and `num_frames`; `extract_features` runs it.
    Raises:
        FileNotFoundError: a folder without a model.
        ValueError: not a vision model, a `rope_base` for a model that is not a Toto, or a resolution that the model
            cannot read.
    """
    from transformers import AutoConfig

    import modeling_toto  # noqa: F401  (AutoConfig then knows "toto")
    import tokenization

    tokenization.register()
    path, device = resolve_model(str(name_or_path)), device and torch.device(device)
    config = AutoConfig.from_pretrained(path)
    if (kind := config.model_type) == "toto":
        changes = {} if rope_base is None else {"rope_theta": rope_base}
        reads_patches = config.architectures == ["TotoForPatchPrediction"]
        adapter = PatchBackbone if reads_patches else TotoBackbone
        return adapter.from_pretrained(path, device, resolution, **changes)
    if rope_base is not None:
        raise ValueError(f"{path} is not a Toto and has no RoPE base to change; leave --rope_base out.")
    adapter = (VISION_BACKBONES | TOKEN_BACKBONES | PEER_BACKBONES).get(kind, FrameBackbone)
    return adapter.from_pretrained(path, device, resolution)
