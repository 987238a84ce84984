"""`toto evaluate-tokenizer`: how well a tokenizer reconstructs pictures, and the codes it uses."""

from tokenization.evaluate_tokenizer.command import main

__all__ = ["main"]
