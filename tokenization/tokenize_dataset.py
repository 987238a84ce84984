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
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

from tokenization.sampling import Sampling
from tokenization.shards.format import read_manifest, verify
from tokenization.shards.upload import tokenize_to_url
from tokenization.shards.working_folder import PLAN, finish, prepare, tidy
from tokenization.sources.named import require_dataset, require_on_hub
from tokenization.storage.remote import Unreachable, is_remote
from tokenization.terminal.command_line import parse_flags
from tokenization.terminal.next_command import after_tokenize
from tokenization.tokenize_args import DESCRIPTION, NOT_SETTINGS, TokenizeArgs

# Processes may finish hours apart and wait for each other.
TIMEOUT = timedelta(days=30)
# Files or rows of a part: a few minutes of work at most, and thousands of parts for millions of files.
VIDEOS_PER_PART, IMAGES_PER_PART = 16, 1024


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

    from tokenization.shards.encode import Encoder, encode_parts
    from tokenization.terminal.progress import tqdm

    is_video = source.kind == "video"
    batch = args.batch_frames or (8 if state.device.type == "cpu" else 64)  # more is slower on a CPU
    neighbours = int(os.environ.get("LOCAL_WORLD_SIZE", state.num_processes))
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()  # not on macOS
    threads = args.decode_threads or max(2, cpus // neighbours)
    if state.is_main_process:
        task = f"task {rank} of {world}" if args.world is not None else f"{world} process{'es' * (world > 1)}"
        print(f"{task}: {state.device}, {precision}, {batch} frames at a time, {threads} decoding threads")
    total = source.count_items()
    if total is not None and source.limit is not None and source.clips_each is not None:
        total = min(total, -(-source.limit // source.clips_each))
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
    count = len(manifest["shards"])
    print(f"wrote {output} ({count} shard{'s' * (count != 1)}, manifest.json, processor/)")


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
