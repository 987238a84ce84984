"""Streams of clips from folders, files, Hub ids or the embedded world, and their labelled splits.

`open.open_source` makes a `ClipSource` of any of them. Nothing is imported here: a command refuses names (`named`) and
knows kinds of files (`kinds`) before torch, which `open` needs.
"""
