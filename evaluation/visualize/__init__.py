"""`toto visualize`: pictures of what is inside a model, and the functions that make them.

from evaluation.backbones.attention_maps import attention_of  # (blocks, heads, T, h, w) of a chosen token
from evaluation.visualize.components import pca_pictures  # patch features -> colours
from evaluation.visualize.likelihood import arrow_of, surprise_of  # nats of every code; forwards minus backwards
from evaluation.visualize.tokens import code_pictures, errors  # codes as colours; error of the tokenizer
"""

from evaluation.visualize.command import main

__all__ = ["main"]
