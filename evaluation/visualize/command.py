"""`toto visualize`: one sub-command per kind of picture, each imported only when it is called."""

from __future__ import annotations

from tokenization.terminal.actions import run_action

PICTURES = {
    "pca": ("evaluation.visualize.pca", "principal components of patch features as colours, layer by layer"),
    "attention": ("evaluation.visualize.attention", "what a chosen token attends to, over the frames of a clip"),
    "surprise": ("evaluation.visualize.surprise", "nats of every token next to the frames, as a sheet or a movie"),
    "tokens": ("evaluation.visualize.tokens", "codes, reconstruction and error of the tokenizer"),
    "arrow": ("evaluation.visualize.arrow", "arrow of time: likelihood of clips minus that of their reverse"),
}

EXAMPLES = """\
  toto visualize pca --model checkpoints/toto-nano --dataset toyworld:photos --output out/pca.png
  toto visualize attention --model checkpoints/toto-motion --input toyworld:motion:1 --frame 5 --point 20 10 \\
    --output out/attention.png
  toto visualize surprise --model checkpoints/toto-motion --input toyworld:motion:1 --output out/surprise.mp4
  toto visualize tokens --model checkpoints/toto-nano --input photo.jpg --output out/tokens.png
  toto visualize arrow --model checkpoints/toto-motion --dataset toyworld:motion --output out/arrow.json
"""


def usage() -> str:
    width = max(map(len, PICTURES))
    lines = "\n".join(f"  {name:{width}}  {summary}" for name, (_, summary) in PICTURES.items())
    more = "`toto visualize <picture> --help` explains its flags, docs/pictures.md what each picture shows."
    return f"usage: toto visualize <picture> [flags]\n\n{lines}\n\n{EXAMPLES}\n{more}"


def main(argv: list[str] | None = None) -> None:
    run_action(argv, "visualize", "picture", PICTURES, usage)
