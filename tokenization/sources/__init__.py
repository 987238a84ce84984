"""One argument in, a stream of clips out: folders, files, Hub ids, the embedded world; and labelled splits of them."""

from tokenization.sources.open import ClipSource, Item, open_source

__all__ = ["ClipSource", "Item", "open_source"]
