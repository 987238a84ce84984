"""`toto generate --score`: continuations of `toyworld:motion` measured against the world's exact truth."""
