"""`toto tokenize`: encodes videos or images once, into shuffled shards with a manifest.

The work is split into parts that any number of processes share (`parts.py`). It happens in `<output>.partial`, which is
renamed once the manifest is written: a folder that exists is complete, and a run that was killed resumes after its
finished parts. Processes of one launch share the work, or tasks that know nothing of each other (--rank and --world);
the last of these makes the shards, with any others that are there. On one kind of machine, the shards are the same byte
for byte for any number of processes, tasks and kills.
"""

import errno
import os
import shutil
from dataclasses import asdict, dataclass, field, fields
from datetime import timedelta
from pathlib import Path

from tokenization.command_line import parse_flags
from tokenization.next_command import after_tokenize
from tokenization.sampling import DECODERS, Sampling, TimeStepArgs
from tokenization.shards.format import read_manifest, verify
from tokenization.shards.upload import refuse_url, tokenize_to_url
from tokenization.shards.working_folder import PLAN, finish, prepare, tidy
from tokenization.sources.named import require_dataset, require_on_hub
from tokenization.storage.remote import Unreachable, is_remote

# Processes may finish hours apart and wait for each other.
TIMEOUT = timedelta(days=30)
# Files or rows of a part: a few minutes of work at most, and thousands of parts for millions of files.
VIDEOS_PER_PART, IMAGES_PER_PART = 16, 1024
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
            raise ValueError("There is nothing to tokenize; pass --dataset and --output, or --verify DIR.")
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


def tokenize(args: TokenizeArgs) -> dict | None:
    """Write the shards that `args` describes and return the manifest. Every process of a launch calls it.

    A task of `args.world` that finds parts of other tasks unfinished returns None when its own are finished.

    Raises:
        ValueError: the dataset holds nothing usable, --output is not empty, or --output.partial has other settings.
        OSError: there is no such dataset, the disk is full, or there is no token for the Hub.
    """
    if is_remote(args.output):
        return tokenize_to_url(args, tokenize, NOT_SETTINGS)
    output = Path(args.output)
    if args.world is not None and (output / "manifest.json").is_file():  # a task that was started again, or late
        print(f"{output} is complete")
        tidy(output)
        return read_manifest(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output {output} is not empty; name a new folder, or delete this one.")

    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    from tokenization.precision import bf16_is_fast
    from tokenization.processing_toto import TotoProcessor
    from tokenization.shards.assemble import assemble
    from tokenization.shards.card import create_repo
    from tokenization.shards.code_parts import Unfinished
    from tokenization.shards.parts import on_main
    from tokenization.sources.open import open_source
    from tokenization.torchcodec_playback import torchcodec_decoder

    # Unlike Accelerator, PartialState does not read the variable itself.
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=TIMEOUT)
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if state.num_processes != launched:
        raise ValueError(
            f"{launched} processes were launched, but each works alone; on CPUs, set ACCELERATE_USE_CPU=true."
        )
    if args.world is not None and launched > 1:
        raise ValueError(f"--rank is for tasks of one process, but {launched} were launched together; leave it out.")
    rank, world = (state.process_index, launched) if args.world is None else (args.rank, args.world)
    if args.push_to_hub:
        on_main(state, lambda: create_repo(args.push_to_hub, args.private))
    if args.tokenizer is None:
        processor = TotoProcessor.default()
    else:
        processor = TotoProcessor.from_visual_tokenizer(args.tokenizer)
    if args.decoder != "pyav":
        torchcodec_decoder()  # missing, it would be the reason why every video is skipped
    processor = processor.with_sizes(args.resolution, args.num_frames)
    source = open_source(
        args.dataset,
        args.split,
        args.sampling(processor.resolution),
        limit=args.max_clips,
        image_column=args.image_column,
        kind=args.kind,
        config_name=args.config_name,
        decoder=args.decoder,
    )
    if state.is_main_process:
        for line in source.found:
            print(line)
    if source.kind == "image" and state.is_main_process:
        if args.fps is not None or args.stride != Sampling.stride:
            print("--stride and --fps have no effect on images, each of which is one frame")
        if args.resize != Sampling.resize:
            print("--resize has no effect on images, which PIL resizes")
    precision = args.precision or ("bf16" if bf16_is_fast(state.device) else "fp32")
    settings = {name: value for name, value in asdict(args).items() if name not in NOT_SETTINGS}
    settings |= {"precision": precision, "tokenizer": processor.fingerprint, "files": source.num_shards}
    settings |= {} if source.listed is None else {"items": source.listed}  # a folder that grew has other parts
    settings["device"] = state.device.type  # kernels of another device round otherwise
    partial = output.with_name(output.name + ".partial")
    is_resumed = partial.exists()  # the work of an earlier run must not be deleted
    try:
        try:
            on_main(state, lambda: prepare(partial, settings, is_alone=args.world is None))
        except OSError:  # another task has renamed the folder meanwhile
            if args.world is None or not (output / "manifest.json").is_file():
                raise
        if args.world is not None and (output / "manifest.json").is_file():  # before this one had a folder to work in
            shutil.rmtree(partial, ignore_errors=True)
            return read_manifest(output)
        if not on_main(state, lambda: any((partial / name).is_file() for name in (PLAN, "manifest.json"))):
            figures = _encode(
                args, source, processor.to(state.device), partial / "parts", precision, state, rank, world
            )
            if state.is_main_process:
                _print_figures(figures)
        try:
            if not on_main(state, (partial / "manifest.json").is_file):  # else killed just before the rename
                assemble(args, source, processor, partial, precision, state, rank, world)
        except Unfinished:
            raise
        except Exception:  # another task may have been faster, and have deleted or renamed what this one works with
            if args.world is None or not any((folder / "manifest.json").is_file() for folder in (partial, output)):
                raise
        manifest = on_main(state, lambda: finish(partial, output))
    except Unreachable as error:
        raise OSError(f"{error} Finished parts are kept; run the same command again.") from error
    except Unfinished as error:
        if args.world is None:
            raise
        print(
            f"the parts of task {rank} of {world} are finished; the task that finishes the last of the others makes "
            f"the shards (missing now: {error.part}, ...)"
        )
        return None
    except BaseException as error:
        finished = any(partial.glob("parts/*.json")) or (partial / "manifest.json").exists()
        if launched == 1 and args.world is None and not is_resumed and not finished:
            shutil.rmtree(partial, ignore_errors=True)  # it holds nothing that a rerun could use
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):  # safetensors has no errno
            raise OSError(
                f"The disk is full and {output} was not written; free some space and run the same command again."
            ) from error
        raise
    if state.is_main_process:
        _print_summary(manifest, output)
    if args.push_to_hub:
        on_main(state, lambda: _push(output, args))
    return manifest


def _encode(args: TokenizeArgs, source, processor, parts_folder: Path, precision: str, state, rank: int, world: int):
    """Encode this process's parts; returns [{"frames", "seconds", "busy"}], one entry per process.

    frames: number encoded. seconds: from the first frame to the last. busy: seconds in which the encoder worked.
    """
    from accelerate.utils import gather_object

    from tokenization.progress import tqdm
    from tokenization.shards.encode import Encoder, encode_parts

    is_video = source.kind == "video"
    batch = args.batch_frames or (8 if state.device.type == "cpu" else 64)  # more is slower on a CPU
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # not on macOS
    threads = args.decode_threads or max(2, cpus // neighbours)
    if state.is_main_process:
        task = f"task {rank} of {world}" if args.world is not None else f"world size {world}"
        print(f"{task}: {state.device}, {precision}, {batch} frames at a time, {threads} decoding threads")
    total = source.expected
    if total is None and args.max_clips is None:
        total = source.listed
    total = total and -(-total // world)
    encoder = Encoder(processor, batch, exact=precision == "fp32")
    with tqdm(total=total, unit=" items", desc="tokenize", disable=not state.is_main_process) as bar:
        encode_parts(
            source,
            encoder,
            parts_folder,
            bar,
            num_frames=args.num_frames if is_video else 1,
            items_per_part=args.items_per_part or (VIDEOS_PER_PART if is_video else IMAGES_PER_PART),
            limit=source.limit,
            threads=threads,
            rank=rank,
            world=world,
        )
    encoder.close()
    return gather_object([{"frames": encoder.frames, "seconds": encoder.wall_seconds, "busy": encoder.seconds}])


def _push(folder: Path, args: TokenizeArgs) -> None:
    from tokenization.shards.card import push_shards

    try:
        print(f"pushed to {push_shards(folder, args.push_to_hub, args.private)}")
    except OSError as error:
        again = f"toto tokenize --verify {folder} --push_to_hub {args.push_to_hub}"
        raise OSError(f"{folder} is complete but was not pushed ({error}); try again with: {again}") from error


def _print_figures(figures: list[dict]) -> None:
    """Print the speed summed over processes, and how busy the least busy encoder was."""
    at_work = [figure for figure in figures if figure["frames"]]
    if at_work:
        rate = sum(figure["frames"] / figure["seconds"] for figure in at_work)
        busy = min(figure["busy"] / figure["seconds"] for figure in at_work)
        frames = sum(figure["frames"] for figure in at_work)
        print(f"encoder busy {100 * busy:.0f} % of the wall time, {frames:,} frames at {rate:.1f} frames/s")


def _print_summary(manifest: dict, output: Path) -> None:
    from tokenization.shards.assemble import reasons

    unit = "clips" if manifest["kind"] == "video" else "images"
    print(
        f"kept {manifest['num_sequences']:,} {unit} of {manifest['kept']:,} files or rows, "
        f"{manifest['num_tokens']:,} tokens"
    )
    if manifest.get("bf16_agreement") is not None:
        print(f"bf16: {100 * manifest['bf16_agreement']:.2f} % of the codes of the first batch are the same in fp32")
    if manifest["skipped"]:
        print(f"skipped {manifest['skipped_count']:,}:\n  " + reasons(manifest["skipped"], "\n  "))
    print(f"wrote {output} ({len(manifest['shards'])} shards, manifest.json, processor/)")


def _leave_processes() -> None:
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def main(argv: list[str] | None = None) -> None:
    args = parse_flags(TokenizeArgs, argv, "toto tokenize", DESCRIPTION)
    if args.dataset is not None:
        require_dataset(args.dataset)
    if args.tokenizer is not None and not Path(args.tokenizer).exists():
        require_on_hub(args.tokenizer, "model")
    if args.convert is not None:
        from tokenization.shards.convert import convert

        print(convert(args.convert))
        return
    if args.verify is None:
        manifest = tokenize(args)
        _leave_processes()
        if manifest is not None:  # else other tasks still make theirs
            after_tokenize(args.output, manifest, args.split)
        return
    print(verify(args.verify))
    if args.push_to_hub:
        _push(Path(args.verify), args)


if __name__ == "__main__":
    from toto_cli import run

    run(main)
