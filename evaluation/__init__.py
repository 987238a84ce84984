"""Weights -> numbers and pictures: frozen features, heads, probes, generation, reports.

The functions below are what a notebook needs; the commands `toto probe`, `toto generate` and `toto report` add
datasets, baselines, intervals and resumable work.

    from evaluation import continue_clip, extract_features, fit_probe, load_backbone

    backbone = load_backbone("facebook/dinov2-small")  # or a Toto: a folder, a run of toto pretrain, a Hub id
    features = extract_features(backbone, ["cat.jpg", "dog.jpg"], layers=[6, 12])  # pooled (2, 2, 384)
    frames = continue_clip("runs/mine", "clip.mp4", num_frames=8)  # uint8 (prompt + 8, R, R, 3)

`examples/` of the repository has whole scripts.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what type checkers read; `as` marks a name as public
    from evaluation.backbones.features import extract_features as extract_features
    from evaluation.backbones.load import load_backbone as load_backbone
    from evaluation.backbones.streaming import StreamingFeatures as StreamingFeatures
    from evaluation.continuation import continue_clip as continue_clip
    from evaluation.probe.fit import fit_probe as fit_probe

# Imported on first use: torch takes seconds, and `toto <verb> --help` needs none of it.
_HOMES = {
    "StreamingFeatures": "backbones.streaming",
    "continue_clip": "continuation",
    "extract_features": "backbones.features",
    "fit_probe": "probe.fit",
    "load_backbone": "backbones.load",
}
__all__ = list(_HOMES)

if not TYPE_CHECKING:  # for a type checker, a name that is not imported above does not exist

    def __getattr__(name: str):
        if name not in _HOMES:
            raise AttributeError(f"module 'evaluation' has no attribute {name!r}")
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return list(__all__)
