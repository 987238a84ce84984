"""`toto tokenize`: encodes videos or images once, into shuffled shards with a manifest.

The work is split into parts that any number of processes share (`parts.py`). It happens in `<output>.partial`, which is
renamed once the manifest is written: a folder that exists is complete, and a run that was killed resumes after its
finished parts. On one kind of machine, the shards are the same byte for byte for any number of processes and kills.
"""

import errno
import json
import os
import shutil
from dataclasses import asdict, dataclass, field, fields
from datetime import timedelta
from pathlib import Path

from tokenization.command_line import parse_flags
from tokenization.next_command import after_tokenize
from tokenization.sampling import Sampling, TimeStepArgs
from tokenization.shards.files import OLD_SUFFIX
from tokenization.shards.format import read_manifest, verify
from tokenization.sources.named import require_dataset, require_on_hub

# Processes may finish hours apart and wait for each other.
TIMEOUT = timedelta(days=30)
# Files or rows of a part: a few minutes of work at most, and thousands of parts for millions of files.
VIDEOS_PER_PART, IMAGES_PER_PART = 16, 1024
# Flags that set where and how the work is done and do not change the shards.
NOT_SETTINGS = {"output", "verify", "convert", "decode_threads", "push_to_hub", "private", "tokenizer"}
DESCRIPTION = """\
Turn videos or images into shards of visual tokens. After a kill, the same command resumes the run. Several processes
can share the work: accelerate launch -m tokenization.tokenize_dataset ..., or on CPUs ACCELERATE_USE_CPU=true torchrun
--standalone --nproc-per-node 2 -m tokenization.tokenize_dataset ...; with several nodes, --output must be on a shared
file system. Parquet and tar datasets with at least as many files as processes are split by file."""


@dataclass(frozen=True)
class TokenizeArgs(TimeStepArgs):
    """Flags of `toto tokenize`."""

    dataset: str | None = field(
        default=None,
        metadata={
            "help": "Hub id, folder, .parquet, .arrow or .tar (webdataset) file, toyworld, toyworld:cluttered, "
            "toyworld:film or toyworld:photos"
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
        metadata={"help": "folder to write; it must be new or empty (unfinished work is kept in DIR.partial)"},
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
    decode_threads: int | None = field(
        default=None,
        metadata={"help": "videos or images decoded at a time (default: this process's share of the CPUs)"},
    )
    push_to_hub: str | None = field(
        default=None, metadata={"help": "user/name: push the shards to this dataset repository, with a card"}
    )
    private: bool = field(default=False, metadata={"help": "make that repository private when it is created"})
    verify: str | None = field(
        default=None,
        metadata={"help": "check this folder of shards instead of writing one (--push_to_hub then pushes it)"},
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
        if self.precision not in (None, "fp32", "bf16"):
            raise ValueError(f"--precision is {self.precision}; it must be fp32 or bf16.")
        if self.kind not in (None, "video", "image"):
            raise ValueError(f"--kind is {self.kind}; it must be video or image.")
        changed = {f.name for f in fields(self) if getattr(self, f.name) != f.default}
        if self.push_to_hub is None:
            _refuse(changed, {"private"}, "without --push_to_hub")
        if self.convert is not None:
            _refuse(changed, changed - {"convert"}, "with --convert, which rewrites shards only")
        elif self.verify is not None:
            _refuse(changed, changed - {"verify", "push_to_hub", "private"}, "with --verify, which reads shards only")
        elif self.dataset.split(":")[0] == "toyworld":
            idle = {"stride", "fps", "resize", "image_column", "kind", "config_name"}
            _refuse(changed, idle, "on toyworld, which is drawn")
        elif self.fps is not None:
            _refuse(changed, {"stride"}, "next to --fps")

    def sampling(self, resolution: int) -> Sampling:
        """How clips are sampled. resolution: side of the frames in pixels."""
        same = ("num_frames", "stride", "fps", "crops", "seed", "detail", "resize")
        return Sampling(resolution=resolution, **{name: getattr(self, name) for name in same})


def _refuse(changed: set[str], idle: set[str], where: str) -> None:
    """Raises ValueError for a flag that was changed and has no effect `where`."""
    if found := sorted(changed & idle):
        raise ValueError(f"--{', --'.join(found)} would have no effect {where}; leave it out.")


def tokenize(args: TokenizeArgs) -> dict:
    """Write the shards that `args` describes and return the manifest. Every process of a launch calls it.

    Raises:
        ValueError: the dataset holds nothing usable, --output is not empty, or --output.partial has other settings.
        OSError: there is no such dataset, the disk is full, or there is no token for the Hub.
    """
    output = Path(args.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output {output} is not empty; name a new folder, or delete this one.")

    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    from tokenization.precision import bf16_is_fast
    from tokenization.processing_toto import TotoProcessor
    from tokenization.shards.assemble import assemble
    from tokenization.shards.card import create_repo
    from tokenization.shards.parts import on_main
    from tokenization.sources.open import open_source

    # Unlike Accelerator, PartialState does not read the variable itself.
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=TIMEOUT)
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if state.num_processes != launched:
        raise ValueError(
            f"{launched} processes were launched, but each works alone; on CPUs, set ACCELERATE_USE_CPU=true."
        )
    if args.push_to_hub:
        on_main(state, lambda: create_repo(args.push_to_hub, args.private))
    if args.tokenizer is None:
        processor = TotoProcessor.default()
    else:
        processor = TotoProcessor.from_visual_tokenizer(args.tokenizer)
    processor = processor.with_sizes(args.resolution, args.num_frames)
    source = open_source(
        args.dataset,
        args.split,
        args.sampling(processor.resolution),
        limit=args.max_clips,
        image_column=args.image_column,
        kind=args.kind,
        config_name=args.config_name,
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
        on_main(state, lambda: _prepare(partial, settings))
        if not (partial / "manifest.json").is_file():  # else the last run was killed just before the rename
            figures = _encode(args, source, processor.to(state.device), partial / "parts", precision, state)
            assemble(args, source, processor, partial, precision, state)
            if state.is_main_process:
                _print_figures(figures)
        manifest = on_main(state, lambda: _finish(partial, output))
    except BaseException as error:
        finished = any(partial.glob("parts/*.json")) or (partial / "manifest.json").exists()
        if state.num_processes == 1 and not is_resumed and not finished:
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


def _prepare(partial: Path, settings: dict) -> None:
    """Create the working folder, or check that an earlier run left it with the same settings."""
    from tokenization.files import write_whole

    file = partial / "settings.json"
    if file.is_file():
        before = {"resize": Sampling.resize} | json.loads(file.read_text())  # earlier versions do not name it
        unlike = [name for name in settings if before.get(name) != settings[name]]
        if unlike:
            changes = ", ".join(f"{name} {before.get(name)} instead of {settings[name]}" for name in unlike)
            raise ValueError(
                f"{partial} was started with other flags ({changes}); pass the same flags, or delete the folder."
            )
        done = len(list(partial.glob("parts/*.json")))
        print(f"resuming {partial}: {done} parts are finished")
        return
    shutil.rmtree(partial, ignore_errors=True)  # a run that was killed before it did anything
    (partial / "parts").mkdir(parents=True)
    write_whole(file, lambda path: path.write_text(json.dumps(settings, indent=2) + "\n"))


def _encode(args: TokenizeArgs, source, processor, parts_folder: Path, precision: str, state) -> list[dict]:
    """Encode this process's parts; returns [{"frames", "seconds", "busy"}], one entry per process.

    frames: number encoded. seconds: from the first frame to the last. busy: seconds in which the encoder worked.
    """
    from accelerate.utils import gather_object

    from tokenization.progress import tqdm
    from tokenization.shards.encode import Encoder, encode_parts

    is_video, world = source.kind == "video", state.num_processes
    batch = args.batch_frames or (8 if state.device.type == "cpu" else 64)  # more is slower on a CPU
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # not on macOS
    threads = args.decode_threads or max(2, cpus // neighbours)
    if state.is_main_process:
        print(f"world size {world}: {state.device}, {precision}, {batch} frames at a time, {threads} decoding threads")
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
            rank=state.process_index,
            world=world,
        )
    return gather_object([{"frames": encoder.frames, "seconds": encoder.wall_seconds, "busy": encoder.seconds}])


def _finish(partial: Path, output: Path) -> dict:
    """Delete what only a rerun needs and rename the folder; returns the manifest."""
    if output.exists():
        try:
            output.rmdir()  # empty, as checked before the work
        except OSError as error:
            raise OSError(f"{output} is no longer empty; empty it and run the same command again.") from error
    shutil.rmtree(partial / "parts", ignore_errors=True)
    # of a run that was killed, perhaps one of an earlier version
    for file in [*partial.glob("*.partial"), *partial.glob(f"*{OLD_SUFFIX}")]:
        file.unlink()
    partial.rename(output)
    (output / "settings.json").unlink()
    return read_manifest(output)


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
        after_tokenize(args.output, manifest, args.split)
        return
    print(verify(args.verify))
    if args.push_to_hub:
        _push(Path(args.verify), args)


if __name__ == "__main__":
    from toto_cli import run

    run(main)
