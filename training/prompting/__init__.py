"""A short training that makes a Toto promptable: rows of images and their labels, drawn as frames (paper App. A.11)."""
