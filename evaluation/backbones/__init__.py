"""Frozen backbones: clips in, a grid of features for every layer out, whatever the model."""

from evaluation.backbones.contract import Backbone, Features
from evaluation.backbones.load import load_backbone

__all__ = ["Backbone", "Features", "load_backbone"]
