"""Streams of clips from folders, files, Hub ids or the embedded world, and their labelled splits."""

from tokenization.sources.open import ClipSource, Item, open_source

__all__ = ["ClipSource", "Item", "open_source"]
