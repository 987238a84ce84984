"""Flags that several pictures of `toto visualize` share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokenization.sampling import TimeStepArgs
from training.flags import option, require, require_not_negative, require_positive

DATASETS = "Hub id, folder, .parquet, .arrow or .tar (webdataset) file, or toyworld[:VARIANT]"
SPLIT = "split of a data set (default: test of toyworld, the only split of other data)"


@dataclass(frozen=True)
class OneInputArgs(TimeStepArgs):
    """A model and the one clip or image that it is shown."""

    model: str | None = option(None, "Hub id, Hugging Face folder or run folder of a Toto")
    input: str | None = option(
        None,
        "an image file, a video file, a test clip of the embedded world (toyworld:VARIANT:INDEX), or a data set, of "
        "which --index is shown",
    )
    output: str | None = option(None, "file to write; a result (.json) is written next to it")
    split: str | None = option(None, SPLIT)
    index: int = option(0, "which image or clip of a data set")
    num_frames: int | None = option(None, "frames of a clip (default: those of the model)")

    def __post_init__(self):
        super().__post_init__()
        require(self.input is not None, "--input INPUT is missing; name an image, a video, a toyworld clip or data.")
        require_positive(self, "num_frames")
        require_not_negative(self, "index")


def check_output(output: str | None, suffixes: tuple[str, ...]) -> None:
    """Raises ValueError unless the output file has one of the suffixes."""
    kinds = " or ".join(suffixes)
    require(output is not None, f"--output FILE is missing; name a file that ends in {kinds}.")
    require(Path(output).suffix in suffixes, f"--output is '{output}'; it must end in {kinds}.")


def require_model(model: str | None) -> None:
    """Raises ValueError unless a model was named."""
    require(bool(model), "--model MODEL is missing; name a checkpoint, such as checkpoints/toto-motion.")
