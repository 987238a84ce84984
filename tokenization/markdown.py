"""Jinja2 templates of Markdown documents, such as the cards of models, tokenizers and shards."""

import textwrap
from pathlib import Path

import jinja2

WIDTH = 120  # of a line, in characters


def markdown_template(file: Path) -> jinja2.Template:
    """The template in a file, which may include others of its folder; a missing fact is an error.

    Nothing is escaped, since Markdown shows code as it is. Filters: `cell` (`markdown_cell`) and `wrap` (`wrap`).
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(file.parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": markdown_cell, "wrap": wrap}
    return environment.get_template(file.name)


def markdown_cell(text: str) -> str:
    """Text that neither ends a cell of a Markdown table nor opens an HTML tag."""
    return text.replace("|", "\\|").replace("<", "&lt;")


def wrap(text: str, indent: str = "") -> str:
    """A paragraph in lines of at most `WIDTH` characters; `indent` starts every line but the first."""
    lines = textwrap.wrap(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines) + "\n"
