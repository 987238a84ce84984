"""This repository's own studies: what writes docs/results.md. Not part of the wheel."""
