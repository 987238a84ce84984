"""Pixels to ids and back: visual tokenizers, the processor that holds one, sources of clips, token shards.

Importing this package registers its classes with transformers' Auto classes.
"""

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what type checkers read; `as` marks a name as public
    from .configuration_dvae import TotoDVAEConfig as TotoDVAEConfig
    from .configuration_vqgan import TotoVQGANConfig as TotoVQGANConfig
    from .image_processing_toto import TotoImageProcessor as TotoImageProcessor
    from .modeling_dvae import TotoDVAEModel as TotoDVAEModel
    from .modeling_vqgan import TotoVQGANModel as TotoVQGANModel
    from .patches import Patches as Patches
    from .processing_toto import TotoProcessor as TotoProcessor
    from .sampling import Sampling as Sampling
    from .sources.open import ClipSource as ClipSource
    from .sources.open import open_source as open_source
    from .tokenize_args import TokenizeArgs as TokenizeArgs
    from .tokenize_dataset import tokenize as tokenize
    from .toyworld import ToyWorld as ToyWorld
    from .video import Clip as Clip
    from .video import read_clip as read_clip

_HOMES = {
    "Clip": "video",
    "ClipSource": "sources.open",
    "Patches": "patches",
    "Sampling": "sampling",
    "TokenizeArgs": "tokenize_args",
    "ToyWorld": "toyworld",
    "TotoDVAEConfig": "configuration_dvae",
    "TotoDVAEModel": "modeling_dvae",
    "TotoImageProcessor": "image_processing_toto",
    "TotoProcessor": "processing_toto",
    "TotoVQGANConfig": "configuration_vqgan",
    "TotoVQGANModel": "modeling_vqgan",
    "open_source": "sources.open",
    "read_clip": "video",
    "tokenize": "tokenize_dataset",
}
__all__ = list(_HOMES)

if not TYPE_CHECKING:  # for a type checker, a name that is not imported above does not exist

    def __getattr__(name: str):
        if name not in _HOMES:
            raise AttributeError(f"module 'tokenization' has no attribute {name!r}")
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return list(__all__)


def register() -> None:
    """Register the classes with the Auto classes; importing the package does it, save in a `toto` command."""
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor

    from .configuration_dvae import TotoDVAEConfig
    from .configuration_vqgan import TotoVQGANConfig
    from .image_processing_toto import TotoImageProcessor
    from .modeling_dvae import TotoDVAEModel
    from .modeling_vqgan import TotoVQGANModel
    from .processing_toto import TotoProcessor

    for config, model in ((TotoVQGANConfig, TotoVQGANModel), (TotoDVAEConfig, TotoDVAEModel)):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModel.register(config, model, exist_ok=True)
        AutoImageProcessor.register(config, image_processor_classes={"pil": TotoImageProcessor}, exist_ok=True)
        AutoProcessor.register(config, TotoProcessor, exist_ok=True)


def _is_command() -> bool:
    """Whether this process is `toto` or `python -m` of one of its verbs."""
    options = [] if "-m" not in sys.orig_argv[:-1] else sys.orig_argv[1 : sys.orig_argv.index("-m")]
    of_python = [each.startswith("-") or options[k - 1] in ("-W", "-X") for k, each in enumerate(options)]
    if "-m" in sys.orig_argv[:-1] and all(of_python):  # not an argument of another program
        module = sys.orig_argv[sys.orig_argv.index("-m") + 1]
        return module.partition(".")[0] in ("toto_cli", "tokenization", "training", "evaluation")
    return Path(sys.argv[0]).name in ("toto", "toto.exe", "toto-script.py", "toto_cli.py")


# The Auto classes import torch, which takes seconds; a command refuses its flags first, and registers what it loads.
if not _is_command():
    register()
