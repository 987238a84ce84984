"""Flags of `toto tokenize`."""

from dataclasses import dataclass, field, fields


@dataclass(frozen=True)
class TokenizeArgs:
    """Flags of `toto tokenize`."""

    dataset: str | None = field(
        default=None,
        metadata={
            "help": "Hub id, folder, .parquet or .tar (webdataset) file, toyworld, toyworld:cluttered, toyworld:film "
            "or toyworld:photos"
        },
    )
    split: str = field(default="train", metadata={"help": "split of the dataset"})
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "folder or Hub id of a visual tokenizer or a processor; left out: the small one that ships"},
    )
    output: str | None = field(
        default=None,
        metadata={"help": "folder to write; it must be new or empty (DIR.partial is where the work goes on)"},
    )
    num_frames: int = field(default=16, metadata={"help": "frames a clip (paper: 16); an image is one frame"})
    stride: int = field(default=4, metadata={"help": "take every stride-th frame (paper: 4, for 24-30 fps media)"})
    fps: float | None = field(
        default=None, metadata={"help": "resample by timestamps instead; 7.5 is the paper's time step on any media"}
    )
    resolution: int | None = field(
        default=None, metadata={"help": "side of the square frames in pixels; left out: the tokenizer's own"}
    )
    detail: int | None = field(
        default=None,
        metadata={"help": "control: reduce frames to so many pixels a side, and enlarge them again"},
    )
    crops: int = field(
        default=1, metadata={"help": "1: the centre crop; K: K random crops and temporal offsets of every item"}
    )
    max_clips: int | None = field(
        default=None,
        metadata={"help": "take the first so many clips; left out: all (of toyworld, which is endless, 2000)"},
    )
    seed: int = field(default=0, metadata={"help": "seed of the crops, the order of the rows, and toyworld"})
    rows_per_shard: int = field(default=4096, metadata={"help": "rows of a parquet file"})
    batch_frames: int | None = field(
        default=None, metadata={"help": "frames encoded at a time, across clips; left out: 8 on a CPU, 64 on a GPU"}
    )
    image_column: str | None = field(
        default=None, metadata={"help": "column of the images or videos; left out: the first of that type"}
    )
    items_per_part: int | None = field(
        default=None,
        metadata={
            "help": "files or rows of a part, which is all that a kill costs; left out: 16 videos or 1024 images"
        },
    )
    precision: str | None = field(
        default=None, metadata={"help": "fp32 or bf16; left out: bf16 where the device has it, else fp32"}
    )
    decode_threads: int | None = field(
        default=None,
        metadata={"help": "videos or images decoded at a time; left out: this process's share of the CPUs"},
    )
    push_to_hub: str | None = field(
        default=None, metadata={"help": "user/name: push the shards there as a data set, with a card"}
    )
    private: bool = field(default=False, metadata={"help": "create that repository as a private one"})
    verify: str | None = field(
        default=None,
        metadata={"help": "check a folder of shards instead of writing one (--push_to_hub then pushes it)"},
    )

    def __post_init__(self):
        if self.verify is None and (self.dataset is None or self.output is None):
            raise ValueError("name what to tokenize and where to write it: --dataset and --output (or --verify DIR).")
        counts = ("num_frames", "stride", "crops", "rows_per_shard", "batch_frames", "max_clips", "fps", "detail")
        for name in (*counts, "items_per_part", "decode_threads"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"--{name} must be positive, not {value}.")
        if self.precision not in (None, "fp32", "bf16"):
            raise ValueError(f"--precision must be fp32 or bf16, not {self.precision}.")
        changed = {f.name for f in fields(self) if getattr(self, f.name) != f.default}
        if self.push_to_hub is None:
            _refuse(changed, {"private"}, "without --push_to_hub")
        if self.verify is not None:
            _refuse(changed, changed - {"verify", "push_to_hub", "private"}, "with --verify, which reads shards only")
        elif self.dataset.split(":")[0] == "toyworld":
            _refuse(changed, {"stride", "fps", "image_column"}, "on toyworld, which is drawn")
        elif self.fps is not None:
            _refuse(changed, {"stride"}, "next to --fps")


def _refuse(changed: set[str], idle: set[str], where: str) -> None:
    """Raises ValueError for a flag that was changed and has no effect `where`."""
    if found := sorted(changed & idle):
        raise ValueError(f"--{', --'.join(found)} would have no effect {where}; leave it out.")
