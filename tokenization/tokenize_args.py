"""Flags of `toto tokenize`."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

from tokenization.sampling import DECODERS, Sampling, TimeStepArgs
from tokenization.shards.upload import refuse_url

# Flags that set where and how the work is done and do not change the shards.
NOT_SETTINGS = {"output", "verify", "convert", "decode_threads", "push_to_hub", "private", "tokenizer"}
NOT_SETTINGS |= {"rank", "world"}
DESCRIPTION = """\
Turn videos or images into shards of visual tokens. After a kill, the same command resumes the run. Several processes
can share the work: accelerate launch -m tokenization.tokenize_dataset ..., or on CPUs ACCELERATE_USE_CPU=true torchrun
--standalone --nproc-per-node 2 -m tokenization.tokenize_dataset ...; or tasks on many nodes that do not wait for each
other: --rank 0 --world 64, --rank 1 --world 64, ... (training/launch/tokenize.sbatch), of which the one that finds all
parts finished makes the shards. With several nodes, --output must be on a shared file system. Parquet and tar datasets
with at least as many files as processes are split by file."""


@dataclass(frozen=True)
class TokenizeArgs(TimeStepArgs):
    """Flags of `toto tokenize`."""

    dataset: str | None = field(
        default=None,
        metadata={
            "help": "Hub id, folder, .parquet, .arrow or .tar (webdataset) file, a URL of either (s3://, gs://, "
            "hf://, https://), toyworld, toyworld:cluttered, toyworld:film or toyworld:photos"
        },
    )
    split: str = field(
        default="train",
        metadata={
            "help": "split of the dataset; of a folder, its direct subfolder train, validation (val, valid, dev) or "
            "test, or any other that is named here; all other subfolders are classes or places"
        },
    )
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "folder or Hub id of a visual tokenizer or a processor (default: the small one shipped)"},
    )
    output: str | None = field(
        default=None,
        metadata={
            "help": "folder to write, or a URL (s3://, gs://, hf://datasets/USER/NAME); it must be new or empty "
            "(unfinished work is kept in DIR.partial, for a URL in ~/.cache/toto, see docs/datasets.md)"
        },
    )
    num_frames: int = field(default=16, metadata={"help": "frames per clip (paper: 16); an image is one frame"})
    resolution: int | None = field(
        default=None, metadata={"help": "side of the square frames in pixels (default: that of the tokenizer)"}
    )
    detail: int | None = field(
        default=None,
        metadata={"help": "control: reduce frames to this many pixels a side, then enlarge them again"},
    )
    crops: int = field(
        default=1, metadata={"help": "1: the centre crop; K > 1: K random crops and temporal offsets of every item"}
    )
    max_clips: int | None = field(
        default=None,
        metadata={"help": "number of clips to take, from the start (default: all; 2000 of the endless toyworld)"},
    )
    seed: int = field(default=0, metadata={"help": "seed of the crops, the order of the rows, and toyworld"})
    rows_per_shard: int = field(default=4096, metadata={"help": "rows of a file"})
    batch_frames: int | None = field(
        default=None, metadata={"help": "frames encoded at a time, across clips (default: 8 on a CPU, 64 on a GPU)"}
    )
    image_column: str | None = field(
        default=None, metadata={"help": "column of the images or videos (default: the first of that type)"}
    )
    kind: str | None = field(
        default=None,
        metadata={"help": "video or image, for a dataset that holds both (default: that of most files of a folder)"},
    )
    config_name: str | None = field(default=None, metadata={"help": "configuration of a dataset that has several"})
    items_per_part: int | None = field(
        default=None,
        metadata={"help": "files or rows per part; a kill loses at most one part (default: 16 videos or 1024 images)"},
    )
    precision: str | None = field(
        default=None, metadata={"help": "fp32 or bf16 (default: bf16 where it is fast, else fp32)"}
    )
    decoder: str = field(
        default="pyav",
        metadata={
            "help": "pyav; torchcodec, if it is installed, with the same frames; or torchcodec-cuda, which decodes on "
            "the GPU (docs/datasets.md)"
        },
    )
    decode_threads: int | None = field(
        default=None,
        metadata={"help": "videos or images decoded at a time (default: this process's share of the CPUs)"},
    )
    rank: int | None = field(
        default=None,
        metadata={
            "help": "number of this task, from 0, among --world tasks that are started one by one: it makes its own "
            "parts and, if those of all others are finished, the shards"
        },
    )
    world: int | None = field(default=None, metadata={"help": "number of these tasks; it may change between runs"})
    push_to_hub: str | None = field(
        default=None, metadata={"help": "user/name: push the shards to this dataset repository, with a card"}
    )
    private: bool = field(default=False, metadata={"help": "make that repository private when it is created"})
    verify: str | None = field(
        default=None,
        metadata={"help": "check this folder or URL of shards instead of writing one (--push_to_hub then pushes it)"},
    )
    convert: str | None = field(
        default=None,
        metadata={
            "help": "rewrite the parquet shards of this folder, of an earlier version, as shards that are read row by "
            "row; nothing may read it meanwhile, and after a kill the same command continues"
        },
    )

    def __post_init__(self):
        super().__post_init__()
        reads = self.verify is not None or self.convert is not None
        if not reads and (self.dataset is None or self.output is None):
            if self.dataset is None and self.output is None:
                raise ValueError("There is nothing to tokenize; pass --dataset and --output, or --verify DIR.")
            raise ValueError(
                "--output is missing; name a folder for the shards."
                if self.output is None
                else "--dataset is missing; name a folder of videos or images, a file, a Hub id or toyworld."
            )
        counts = ("num_frames", "crops", "rows_per_shard", "batch_frames", "max_clips", "detail")
        for name in (*counts, "items_per_part", "decode_threads"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"--{name} is {value}; it must be at least 1.")
        if (self.rank is None) != (self.world is None):
            raise ValueError("--rank and --world are given together; pass both, or neither.")
        if self.world is not None and not 0 <= self.rank < self.world:
            raise ValueError(
                f"--rank is {self.rank}; it must be from 0 to {self.world - 1}, with --world {self.world}."
            )
        if self.precision not in (None, "fp32", "bf16"):
            raise ValueError(f"--precision is {self.precision}; it must be fp32 or bf16.")
        if self.decoder not in DECODERS:
            raise ValueError(f"--decoder is {self.decoder}; it must be one of {', '.join(DECODERS)}.")
        if self.decoder != "pyav" and self.resize != Sampling.resize:
            raise ValueError(f"--decoder {self.decoder} gives whole frames; leave out --resize {self.resize}.")
        if self.kind not in (None, "video", "image"):
            raise ValueError(f"--kind is {self.kind}; it must be video or image.")
        changed = {f.name for f in fields(self) if getattr(self, f.name) != f.default}
        if self.push_to_hub is None:
            is_repository = (self.output or "").startswith("hf://datasets/")
            _refuse(changed, set() if is_repository else {"private"}, "without --push_to_hub")
        refuse_url(self.convert, "convert", "copy the shards, convert them, and upload them")
        if self.push_to_hub is not None:
            refuse_url(self.verify, "verify", "copy the shards before they are pushed, or leave out --push_to_hub")
        if self.convert is not None:
            _refuse(changed, changed - {"convert"}, "with --convert, which rewrites shards only")
        elif self.verify is not None:
            _refuse(changed, changed - {"verify", "push_to_hub", "private"}, "with --verify, which reads shards only")
        elif self.dataset.split(":")[0] == "toyworld":
            idle = {"stride", "fps", "resize", "decoder", "image_column", "kind", "config_name"}
            _refuse(changed, idle, "on toyworld, which is drawn")
        elif self.fps is not None:
            _refuse(changed, {"stride"}, "next to --fps")
        if self.world is not None and "://" in (self.output or ""):
            raise ValueError(
                f"--output {self.output} is a URL, but tasks share a folder; name one on a disk that all of them see, "
                "and upload it when it is finished."
            )
        if self.world is not None and self.push_to_hub is not None:
            raise ValueError(
                "--push_to_hub cannot be shared by tasks; leave it out, and push the finished folder with --verify DIR."
            )

    def sampling(self, resolution: int) -> Sampling:
        """How clips are sampled. resolution: side of the frames in pixels."""
        same = ("num_frames", "stride", "fps", "crops", "seed", "detail", "resize")
        return Sampling(resolution=resolution, **{name: getattr(self, name) for name in same})


def _refuse(changed: set[str], idle: set[str], where: str) -> None:
    """Raises ValueError for a flag that was changed and has no effect `where`."""
    if found := sorted(changed & idle):
        raise ValueError(f"--{', --'.join(found)} would have no effect {where}; leave it out.")
