"""Flags of `toto app`, and the limits of what a visitor may ask for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from training.flags import option, require, require_positive

DESCRIPTION = (
    "Open a page in the browser: tokens and their surprise, continuations as they are drawn, features and attention "
    "inside the model, prompted depth, flow and masks, and a probe of your own photos. Everything runs on this "
    "machine; nothing is fetched and nothing is sent."
)
SHIPPED = ("toto-motion", "toto-nano")
CHECKPOINTS = Path(__file__).parents[2] / "checkpoints"  # in a clone; the wheel has none


@dataclass(frozen=True)
class AppArgs:
    model: list[str] = option(
        [], "Hub ids, Hugging Face folders or run folders to choose from (default: the models that ship with a clone)"
    )
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 lets other machines open the page")
    port: int = option(7860, "port to listen on")
    photos: str | None = option(
        None, "folder of photos on this machine, one subfolder per class, that visitors may probe (never change)"
    )
    max_upload: int = option(32, "largest upload in MB")
    max_frames: int = option(32, "most frames that a visitor may generate at a time")
    max_queue: int = option(8, "visitors' requests that may wait; further ones are refused with a sentence")

    def __post_init__(self):
        require_positive(self, "max_upload", "max_frames", "max_queue")
        require(0 < self.port < 65536, f"--port is {self.port}; it must be between 1 and 65535.")
        require(
            self.photos is None or Path(self.photos).is_dir(),
            f"--photos is '{self.photos}', which is not a folder; name one with a subfolder per class.",
        )


def models_of(args: AppArgs) -> list[str]:
    """The models of --model, or those that ship.

    Raises:
        ValueError: neither are there.
    """
    shipped = [str(CHECKPOINTS / name) for name in SHIPPED if (CHECKPOINTS / name / "config.json").is_file()]
    require(
        bool(args.model or shipped),
        "--model MODEL is missing: the models that ship are in a clone of the repository, not in the installed "
        "package; name a model.",
    )
    return args.model or shipped
