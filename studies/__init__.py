"""This repository's own studies, which write docs/results.md. Not part of the wheel."""
