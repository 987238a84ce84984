"""Pixels to ids and back: visual tokenizers, the processor that holds one, sources of clips, token shards.

Importing this package teaches transformers' Auto classes to load what it saves.
"""

import importlib
import sys

_HOMES = {
    "Clip": "video",
    "Patches": "patches",
    "ToyWorld": "toyworld",
    "TotoDVAEConfig": "configuration_dvae",
    "TotoDVAEModel": "modeling_dvae",
    "TotoImageProcessor": "image_processing_toto",
    "TotoProcessor": "processing_toto",
    "TotoVQGANConfig": "configuration_vqgan",
    "TotoVQGANModel": "modeling_vqgan",
    "open_source": "sources.open",
    "read_clip": "video",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module 'tokenization' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def _register() -> None:
    from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor

    from .configuration_dvae import TotoDVAEConfig
    from .configuration_vqgan import TotoVQGANConfig
    from .image_processing_toto import TotoImageProcessor
    from .modeling_dvae import TotoDVAEModel
    from .modeling_vqgan import TotoVQGANModel
    from .processing_toto import TotoProcessor

    for config, model in ((TotoVQGANConfig, TotoVQGANModel), (TotoDVAEConfig, TotoDVAEModel)):
        AutoConfig.register(config.model_type, config)
        AutoModel.register(config, model)
        AutoImageProcessor.register(config, image_processor_classes={"pil": TotoImageProcessor})
        AutoProcessor.register(config, TotoProcessor)


# The Auto classes take seconds to import, and a command asked for its --help loads no model.
if not {"-h", "--help"} & set(sys.argv[1:]):
    _register()
