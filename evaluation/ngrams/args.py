"""Flags of `toto ngrams`."""

from __future__ import annotations

from dataclasses import dataclass

from tokenization.sampling import Sampling, TimeStepArgs
from training.flags import option, refuse_idle, require, require_choice, require_positive

DESCRIPTION = (
    "Count codes and runs of 2 to n codes (n-grams) in the tokens of images or clips: how many are in use, how many "
    "would be if neighbouring codes were independent, how the number grows with the images, and how well codes can be "
    "predicted and compressed. docs/tokens.md explains each number."
)
# Flags that say how pixels are read and encoded.
ENCODING = ("dataset", "split", "tokenizer", "resolution", "num_frames", "stride", "fps", "resize", "kind")
ENCODING += ("image_column", "config_name")


@dataclass(frozen=True)
class NgramsArgs(TimeStepArgs):
    dataset: str | None = option(
        None,
        "Hub id, folder, .parquet, .arrow or .tar (webdataset) file, toyworld, toyworld:cluttered, toyworld:film, "
        "toyworld:photos or toyworld:motion, whose frames are encoded first",
    )
    split: str = option("test", "split of the dataset")
    tokenizer: list[str] = option(
        [],
        "one or several folders or Hub ids of a visual tokenizer or a processor, compared on the same images; without "
        "any, the small one shipped",
    )
    shards: list[str] = option(
        [], "in place of --dataset: one or several folders of toto tokenize, each counted on its own"
    )
    max_frames: int = option(
        10_000,
        "images or frames to count, from the first (paper: 10,000 images); of clips, only whole ones",
    )
    n: int = option(4, "length of the longest runs (paper: 3)")
    num_frames: int = option(Sampling.num_frames, "frames per clip of a video; an image is one frame")
    resolution: int | None = option(None, "side of the square frames in pixels (default: that of each tokenizer)")
    image_column: str | None = option(None, "column of the images or videos (default: the first of that type)")
    kind: str | None = option(None, "video or image, for a dataset that holds both (default: that of most files)")
    config_name: str | None = option(None, "configuration of a dataset that has several")
    output: str | None = option(
        None, "result file to write (.json); a figure (.png) is written next to it (default: only print the table)"
    )

    def __post_init__(self):
        super().__post_init__()
        require(
            bool(self.dataset) != bool(self.shards),
            "Pass either --dataset (images or clips, which are encoded first) or --shards (encoded already).",
        )
        require(
            self.output is None or self.output.endswith(".json"), f"--output is '{self.output}'; it must end in .json."
        )
        require_positive(self, "max_frames", "n", "num_frames", "resolution")
        require_choice(self, "kind", ("video", "image"))


def check_flags(args: NgramsArgs, argv: list[str]) -> None:
    """Raises ValueError for a flag that would have no effect next to the others."""
    if args.shards:
        refuse_idle(argv, ENCODING, "with --shards, whose frames are already encoded")
    elif args.dataset.split(":")[0] == "toyworld":
        refuse_idle(
            argv, ("stride", "fps", "resize", "image_column", "kind", "config_name"), "on toyworld, which is drawn"
        )
    elif args.fps is not None:
        refuse_idle(argv, ("stride",), "next to --fps")
