"""Flags of `toto track`."""

from __future__ import annotations

from dataclasses import dataclass, replace

from evaluation.track.settings import SETTINGS, Setting
from training.flags import (
    option,
    refuse_idle,
    require,
    require_choice,
    require_not_negative,
    require_positive,
)

DESCRIPTION = (
    "Propagate the objects' masks of a video's first frame through it, by the similarity of frozen features, for every "
    "layer in one pass; scored by J and F as DAVIS does, next to floors that need no training. docs/tracking.md."
)
BASELINES = ("copy", "position", "patches", "untrained", "ceiling")
ATTENTION = ("causal", "full")


@dataclass(frozen=True)
class TrackArgs:
    model: str | None = option(None, "folder, run or Hub id: a Toto, or a vision model of transformers' own classes")
    dataset: str | None = option(
        None,
        "root of DAVIS-2016 or DAVIS-2017 (JPEGImages, Annotations), or toyworld:motion, toyworld, toyworld:cluttered, "
        "toyworld:film with exact masks",
    )
    split: str | None = option(
        None, "list of sequences in ImageSets (default: val), or split of toyworld (default: test)"
    )
    sequences: list[str] = option([], "names of the only sequences to read (default: all of the split)")
    num_sequences: int | None = option(None, "number of sequences, from the first (default: all; toyworld: 20)")
    num_frames: int | None = option(None, "frames per clip of toyworld (default: 16)")
    setting: str = option("stc", f"published setting: {', '.join(SETTINGS)}")
    context_frames: int | None = option(None, "previous frames that are read besides the first one")
    top_k: int | None = option(None, "most similar cells that count")
    radius: float | None = option(None, "largest distance in cells to a cell that may be read")
    temperature: float | None = option(None, "of the softmax over cosine similarities")
    resolution: int = option(256, "side in pixels of the square to which whole frames are stretched (paper: 256, 512)")
    layers: list[str] = option(["all"], "all, or layer numbers (0 = embeddings), as 4 or 3,4,5")
    frames_per_row: int = option(
        1, "frames of a row: each frame is read with the ones before it (paper, as we read it: 1)"
    )
    attention: str = option("causal", "causal, or full: every token of a Toto sees all tokens of its row")
    baselines: list[str] = option(list(BASELINES), "floors and the ceiling in the same run, or none")
    sheets: int = option(0, "number of sequences of which an overlay sheet (.png) and video (.mp4) are drawn")
    output: str | None = option(
        None, "result file to write (.json), with a figure (.png) next to it; finished sequences are kept in .parts"
    )
    seed: int = option(0, "of the untrained model and of toyworld")
    device: str | None = option(None, "where the model runs (default: a GPU if there is one)")

    def __post_init__(self):
        require(self.model is not None, "Pass --model, a folder, run or Hub id.")
        require(self.dataset is not None, "Pass --dataset, the root of DAVIS or toyworld:motion.")
        require(
            self.output is not None and self.output.endswith(".json"),
            f"--output is {self.output!r}; it must end in .json.",
        )
        require_choice(self, "setting", SETTINGS)
        require_choice(self, "attention", ATTENTION)
        for name in self.baselines:
            require(
                name in (*BASELINES, "none"),
                f"--baselines has '{name}'; it must be some of {', '.join(BASELINES)}, or none.",
            )
        require_positive(
            self, "num_sequences", "num_frames", "top_k", "radius", "temperature", "resolution", "frames_per_row"
        )
        require_not_negative(self, "context_frames", "sheets")
        require(
            self.layer_list == ["all"] or (bool(self.layer_list) and all(name.isdigit() for name in self.layer_list)),
            f"--layers takes all or layer numbers, not {' '.join(self.layers)!r}.",
        )

    @property
    def layer_list(self) -> list[str]:
        """The layers one by one: 3,4 and 3 4 are the same."""
        return [name for part in self.layers for name in part.split(",") if name]

    @property
    def floors(self) -> list[str]:
        return [] if "none" in self.baselines else list(dict.fromkeys(self.baselines))

    def resolved(self) -> Setting:
        """The published setting with the details that were given as flags."""
        names = ("context_frames", "top_k", "radius", "temperature")
        given = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        setting = SETTINGS[self.setting]
        changes = {name: value for name, value in given.items() if value != getattr(setting, name)}
        return replace(setting, **changes, name=f"{setting.name}, changed") if changes else setting


def check_flags(args: TrackArgs, argv: list[str]) -> None:
    """Raises ValueError for a flag that would have no effect next to the others."""
    if args.dataset.split(":")[0] == "toyworld":
        refuse_idle(argv, ("sequences",), "on toyworld, whose clips have no names")
    else:
        refuse_idle(argv, ("num_frames",), "on DAVIS, whose videos are read whole")
