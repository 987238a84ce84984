"""Token shards to weights: one loop on Accelerate, its data stream, optimiser, checkpoints and recipes.

The functions below are what a notebook needs to pre-train on a folder of videos or images:

    from tokenization import TokenizeArgs, tokenize
    from training import load_run, pretrain_model

    tokenize(TokenizeArgs(dataset="my_videos", output="shards"))
    run = pretrain_model("shards", recipe="tiny_cpu", max_steps=600)
    model, processor = load_run(run)
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what type checkers read; `as` marks a name as public
    from training.load import load_run as load_run
    from training.pretrain import pretrain_model as pretrain_model
    from training.publish.push import push_folder as push_folder

# Imported on first use: torch takes seconds, and `toto <verb> --help` needs none of it.
_HOMES = {"load_run": "load", "pretrain_model": "pretrain", "push_folder": "publish.push"}
__all__ = list(_HOMES)

if not TYPE_CHECKING:  # for a type checker, a name that is not imported above does not exist

    def __getattr__(name: str):
        if name not in _HOMES:
            raise AttributeError(f"module 'training' has no attribute {name!r}")
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return list(__all__)
