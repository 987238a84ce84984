"""Data that is not on this machine: folders under a URL, by fsspec, and the local copies that are read."""
