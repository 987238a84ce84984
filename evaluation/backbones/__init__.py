"""Frozen backbones, which turn clips into a grid of features for every layer."""

from evaluation.backbones.contract import Backbone, Features
from evaluation.backbones.load import load_backbone

__all__ = ["Backbone", "Features", "load_backbone"]
