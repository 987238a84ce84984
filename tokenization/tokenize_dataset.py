"""`toto tokenize`: make tokens once. Videos or images in, shuffled parquet shards and a manifest out.

Work is done in parts that any number of processes share (`parts.py`) in `<output>.partial`, which is renamed when the
manifest is in it: a folder that exists is whole, and a run that was killed goes on from its finished parts. The shards
are the same to the byte, however many processes of one kind of machine there were and however often they were killed.
"""

import errno
import json
import os
import shutil
from dataclasses import asdict, dataclass, field, fields
from datetime import timedelta
from pathlib import Path

from transformers.hf_argparser import HfArgumentParser

from tokenization.sampling import Sampling, TimeStepArgs
from tokenization.shards.format import read_manifest, verify

# Processes may be done hours apart and wait for each other.
TIMEOUT = timedelta(days=30)
# Files or rows of a part: some minutes of work at most, and thousands of parts for millions of files.
VIDEOS_PER_PART, IMAGES_PER_PART = 16, 1024
# Flags that say where and how to work rather than what comes out.
NOT_SETTINGS = {"output", "verify", "decode_threads", "push_to_hub", "private", "tokenizer"}
DESCRIPTION = """\
Turn videos or images into shards of visual tokens. A run that was killed is completed by the same command. Several
processes share the work: accelerate launch -m tokenization.tokenize_dataset ..., or on CPUs ACCELERATE_USE_CPU=true
torchrun --standalone --nproc-per-node 2 -m tokenization.tokenize_dataset ...; several nodes need a file system that
they share for --output. Parquet and tar sets of at least as many files as processes are split by file."""


@dataclass(frozen=True)
class TokenizeArgs(TimeStepArgs):
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
        super().__post_init__()
        if self.verify is None and (self.dataset is None or self.output is None):
            raise ValueError("name what to tokenize and where to write it: --dataset and --output (or --verify DIR).")
        counts = ("num_frames", "crops", "rows_per_shard", "batch_frames", "max_clips", "detail")
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

    def sampling(self, resolution: int) -> Sampling:
        """How clips are taken; resolution: side of the frames in pixels, the tokenizer's where no flag sets it."""
        return Sampling(
            self.num_frames, self.stride, self.fps, resolution, crops=self.crops, seed=self.seed, detail=self.detail
        )


def _refuse(changed: set[str], idle: set[str], where: str) -> None:
    """Raises ValueError for a flag that was changed and has no effect `where`."""
    if found := sorted(changed & idle):
        raise ValueError(f"--{', --'.join(found)} would have no effect {where}; leave it out.")


def tokenize(args: TokenizeArgs) -> dict:
    """Write the shards that `args` describes; returns the manifest. Every process of a launch calls it.

    Raises:
        ValueError: nothing usable in the dataset, --output is not empty, or --output.partial is of other flags.
        OSError: nothing there, a full disk, or no token for the Hub.
    """
    output = Path(args.output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output {output} is not empty: name a new folder, or delete this one.")

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
            f"{launched} processes were launched and each works alone: on CPUs, launch with ACCELERATE_USE_CPU=true."
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
    )
    if source.kind == "image" and state.is_main_process and (args.fps is not None or args.stride != Sampling.stride):
        print("--stride, --fps: no effect on images, each of which is one frame")
    precision = args.precision or ("bf16" if bf16_is_fast(state.device) else "fp32")
    settings = {name: value for name, value in asdict(args).items() if name not in NOT_SETTINGS}
    settings |= {"precision": precision, "tokenizer": processor.fingerprint, "files": source.num_shards}
    settings["device"] = state.device.type  # kernels of another device round otherwise
    partial = output.with_name(output.name + ".partial")
    begun = partial.exists()  # by an earlier run, whose work is not ours to delete
    try:
        on_main(state, lambda: _prepare(partial, settings))
        if not (partial / "manifest.json").is_file():  # else the last run was killed when all was written
            figures = _encode(args, source, processor.to(state.device), partial / "parts", precision, state)
            assemble(args, source, processor, partial, precision, state)
            if state.is_main_process:
                _print_figures(figures)
        manifest = on_main(state, lambda: _finish(partial, output))
    except BaseException as error:
        finished = any(partial.glob("parts/*.json")) or (partial / "manifest.json").exists()
        if state.num_processes == 1 and not begun and not finished:
            shutil.rmtree(partial, ignore_errors=True)  # nothing in it that a rerun could use
        if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):  # safetensors has no errno
            raise OSError(
                f"the disk is full: {output} was not written; free some space and run the same command again."
            ) from error
        raise
    if state.is_main_process:
        _print_summary(manifest, output)
    if args.push_to_hub:
        on_main(state, lambda: _push(output, args))
    return manifest


def _prepare(partial: Path, settings: dict) -> None:
    """Make the folder of the work, or find it as a run with the same settings left it."""
    from tokenization.files import write_whole

    file = partial / "settings.json"
    if file.is_file():
        before = json.loads(file.read_text())
        unlike = [name for name in settings if before.get(name) != settings[name]]
        if unlike:
            told = ", ".join(f"{name} {before.get(name)} instead of {settings[name]}" for name in unlike)
            raise ValueError(f"{partial} was begun with other flags ({told}): give the same flags, or delete it.")
        done = len(list(partial.glob("parts/*.json")))
        print(f"going on with {partial}: {done} parts are finished")
        return
    shutil.rmtree(partial, ignore_errors=True)  # killed before anything was done
    (partial / "parts").mkdir(parents=True)
    write_whole(file, lambda path: path.write_text(json.dumps(settings, indent=2) + "\n"))


def _encode(args: TokenizeArgs, source, processor, parts_folder: Path, precision: str, state) -> list[dict]:
    """This process's parts; [{"frames", "seconds", "busy"}] of all processes: frames encoded, and the time that took
    from the first to the last, of which the encoder was busy for so many seconds."""
    from accelerate.utils import gather_object
    from tqdm import tqdm

    from tokenization.shards.encode import Encoder, encode_parts

    is_video, world = source.kind == "video", state.num_processes
    batch = args.batch_frames or (8 if state.device.type == "cpu" else 64)  # more is slower on a CPU
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # not on macOS
    threads = args.decode_threads or max(2, cpus // neighbours)
    if state.is_main_process:
        print(f"world size {world}: {state.device}, {precision}, {batch} frames at a time, {threads} decoding threads")
    total = source.expected
    if total is None and source.lists_paths and args.max_clips is None and state.is_main_process:
        total = sum(1 for _ in source.list_items(0))
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
    """Delete what only a rerun needs, and give the folder its name; the manifest."""
    if output.exists():
        try:
            output.rmdir()  # empty, as checked before the work
        except OSError as error:
            raise OSError(f"{output} was filled meanwhile: empty it and run the same command again.") from error
    shutil.rmtree(partial / "parts", ignore_errors=True)
    for file in partial.glob("*.partial"):  # of a run that was killed
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
        raise OSError(f"{folder} is whole but was not pushed ({error}): try {again}") from error


def _print_figures(figures: list[dict]) -> None:
    """Speed of this run; of several processes the sum, and the least busy encoder."""
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
        print(f"bf16: {100 * manifest['bf16_agreement']:.2f} % of the codes of the first batch as in fp32")
    if manifest["skipped"]:
        print(f"skipped {manifest['skipped_count']:,}:\n  " + reasons(manifest["skipped"], "\n  "))
    print(f"wrote {output} ({len(manifest['shards'])} shards, manifest.json, processor/)")


def _leave_processes() -> None:
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def main(argv: list[str] | None = None) -> None:
    parser = HfArgumentParser(TokenizeArgs, prog="toto tokenize", description=DESCRIPTION)
    (args,) = parser.parse_args_into_dataclasses(argv)
    if args.verify is None:
        tokenize(args)
        _leave_processes()
        return
    print(verify(args.verify))
    if args.push_to_hub:
        _push(Path(args.verify), args)


if __name__ == "__main__":
    from toto_cli import run

    run(main)
