"""Streams of clips from folders, files, Hub ids or the embedded world, and their labelled splits.

Imported on first use: a command refuses names (`named`), by kinds of files (`kinds`), before torch, which `open` needs.
"""

_NAMES = ("ClipSource", "Item", "open_source")


def __getattr__(name: str):
    if name not in _NAMES:
        raise AttributeError(f"module 'tokenization.sources' has no attribute {name!r}")
    from tokenization.sources import open as home

    return getattr(home, name)
