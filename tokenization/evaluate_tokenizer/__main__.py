"""`python -m tokenization.evaluate_tokenizer`."""

from tokenization.evaluate_tokenizer.command import main
from toto_cli import run

run(main)
