"""`toto evaluate-tokenizer`: how well a tokenizer reconstructs pictures, the codes it uses, and if they move along."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from tokenization.sources.named import require_dataset, require_on_hub
from tokenization.terminal.command_line import parse_flags
from tokenization.terminal.next_command import beside, say_next

if TYPE_CHECKING:
    import numpy as np
    import torch

    from tokenization.sources.open import ClipSource

DESCRIPTION = (
    "PSNR, SSIM and codebook use of a visual tokenizer, per dataset; and the share of its codes that stay the same "
    "when a picture moves by one code to the right and down."
)
SHEET_PAIRS = 16


@dataclass(frozen=True)
class EvaluateArgs:
    """Flags of `toto evaluate-tokenizer`."""

    dataset: list[str] = field(
        default_factory=list,
        metadata={
            "help": "one or more of: Hub id, folder, .parquet or .tar (webdataset) file, toyworld, toyworld:cluttered, "
            "toyworld:film, toyworld:motion"
        },
    )
    split: str | None = field(
        default=None,
        metadata={"help": "split of every dataset (default: test, or the only one where there is no test)"},
    )
    config_name: str | None = field(
        default=None, metadata={"help": "configuration of every dataset, where they have several"}
    )
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "folder or Hub id of a visual tokenizer or a processor (default: the small one shipped)"},
    )
    max_frames: int = field(
        default=1000,
        metadata={
            "help": "maximum number of frames per dataset, in the order of its rows (shuffle images that are sorted "
            "by class); an image is one frame, a toyworld clip gives its first, a video one per second"
        },
    )
    frames_per_video: int = field(
        default=8, metadata={"help": "maximum number of frames per video, so that --max_frames covers more videos"}
    )
    resolution: int | None = field(
        default=None, metadata={"help": "side of the square frames in pixels (default: that of the tokenizer)"}
    )
    output: str | None = field(
        default=None, metadata={"help": "folder for evaluation.json and a sheet of reconstructions per dataset"}
    )
    seed: int = field(default=0, metadata={"help": "seed of the draw of pictures for the sheets"})

    def __post_init__(self):
        if not self.dataset:
            raise ValueError("There is nothing to evaluate on; pass --dataset.")
        if self.config_name is not None and all(name.split(":")[0] == "toyworld" for name in self.dataset):
            raise ValueError("--config_name would have no effect on toyworld, which is drawn; leave it out.")
        for name in ("max_frames", "frames_per_video", "resolution"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"--{name} is {value}; it must be at least 1.")


def _chosen(source: ClipSource, max_frames: int, frames_per_video: int) -> Iterator[tuple[np.ndarray, bool]]:
    """(frame (R, R, 3), whether it is the first of its file or row), from a source of one-frame clips.

    No more of a video is decoded than is used. `source.items` and `source.skipped` grow, as by iterating over it.
    """
    total = 0
    for item in chain.from_iterable(map(source.list_items, range(source.num_shards))):
        source.items += 1
        try:
            for number, clip in enumerate(islice(item.clips(), frames_per_video if source.kind == "video" else None)):
                yield clip.frames[0], number == 0
                total += 1
                if total == max_frames:
                    return
        except (ValueError, OSError) as error:
            source.skipped.append({"source": item.name, "why": str(error)})


def _expected(source: ClipSource, args: EvaluateArgs, done: int, taken: int = 0) -> int | None:
    """The number of frames in all: those that are done, and --frames_per_video of each file whose end is not reached.

    taken: frames of the file that is read now. None if the number of files or rows is not known, as of tar files.
    """
    items = source.count_items()
    if items is None:
        return None
    each = args.frames_per_video if source.kind == "video" and source.expected is None else 1
    return min(args.max_frames, done + each * (items - source.items) + (each - taken if taken else 0))


def _evaluate(processor, dataset: str, args: EvaluateArgs) -> tuple[dict, torch.Tensor, torch.Tensor]:
    """Figures of a dataset, and originals and copies (N, 3, R, R): first frames of files or rows drawn at random."""
    import numpy as np
    import torch

    from tokenization.evaluate_tokenizer.scores import TokenizerScore
    from tokenization.sampling import Sampling
    from tokenization.sources.open import config_of, open_source
    from tokenization.terminal.progress import tqdm

    # Frames of a video that are not chosen would count towards a limit; toyworld is endless and needs one.
    limit = args.max_frames if dataset.split(":")[0] == "toyworld" else None
    sampling = Sampling(num_frames=1, fps=1.0, resolution=processor.resolution)
    options = {"limit": limit, "config_name": config_of(dataset, args.config_name)}
    try:
        source = open_source(dataset, args.split or "test", sampling, **options)
    except ValueError as error:
        if args.split is not None or "has no split" not in str(error):
            raise
        source = open_source(dataset, None, sampling, **options)
        print(f"{dataset} has no split test; its only one, {source.split_name}, is measured")
    score = TokenizerScore(processor.visual_tokenizer)
    batch_size = 8 if processor.visual_tokenizer.device.type == "cpu" else 64
    waiting, sheet = [], Draw(SHEET_PAIRS, args.seed)

    def flush() -> None:
        frames = np.stack([frame for frame, _ in waiting])
        copied = score.add(frames)
        true = torch.from_numpy(frames).permute(0, 3, 1, 2)
        for original, copy, (_, is_first) in zip(true, copied, waiting, strict=True):
            if is_first:
                sheet.add((original, copy))
        progress.total = _expected(source, args, score.num_frames, taken)  # many videos have fewer than were expected
        progress.update(len(waiting))
        waiting.clear()

    taken = 0
    with tqdm(total=_expected(source, args, 0), unit=" frames", desc=_label(dataset)) as progress:
        for frame, is_first in _chosen(source, args.max_frames, args.frames_per_video):
            taken = 1 if is_first else taken + 1
            waiting.append((frame, is_first))
            if len(waiting) == batch_size:
                flush()
        taken = 0
        if waiting:
            flush()
        progress.total = score.num_frames
    if not score.num_frames:
        why = f"{source.skipped[0]['source']}: {source.skipped[0]['why']}" if source.skipped else "it holds no rows."
        raise ValueError(f"No picture of {dataset} could be used: {why}")
    originals, copies = (torch.stack(pictures) for pictures in zip(*sheet.drawn, strict=True))
    return (
        {**score.result(), "skipped": len(source.skipped), "split": source.split_name or args.split or "test"},
        originals,
        copies,
    )


class Draw:
    """A seeded random draw of at most `count` of the things that are added, in their order; no others are kept."""

    def __init__(self, count: int, seed: int):
        import numpy as np

        self.count, self.seen, self._random = count, 0, np.random.default_rng(seed)
        self._kept: dict[int, object] = {}  # number of the thing -> the thing

    def add(self, thing) -> None:
        place = self.seen if self.seen < self.count else int(self._random.integers(self.seen + 1))
        if place < self.count:
            if self.seen >= self.count:
                del self._kept[list(self._kept)[place]]
            self._kept[self.seen] = thing
        self.seen += 1

    @property
    def drawn(self) -> list:
        return list(self._kept.values())


def _label(dataset: str) -> str:
    """The name of a dataset in tables: the last part of a path, else the argument itself."""
    path = Path(dataset)
    return path.resolve().name if path.exists() else dataset


def main(argv: list[str] | None = None) -> None:
    args = parse_flags(EvaluateArgs, argv, "toto evaluate-tokenizer", DESCRIPTION)
    for dataset in args.dataset:
        require_dataset(dataset)
    if args.tokenizer is not None and not Path(args.tokenizer).exists():
        require_on_hub(args.tokenizer, "model")
    labels = [_label(dataset) for dataset in args.dataset]
    if len(set(labels)) < len(labels):
        raise ValueError(f"Two datasets are called {max(labels, key=labels.count)}; evaluate them one at a time.")
    output = Path(args.output) if args.output else None
    if output and output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file; name a folder.")

    import datasets
    import PIL
    import torch
    import transformers

    from tokenization.evaluate_tokenizer.scores import markdown_table, reconstruction_sheet
    from tokenization.processing_toto import SHIPPED, TotoProcessor

    processor = TotoProcessor.from_visual_tokenizer(args.tokenizer) if args.tokenizer else TotoProcessor.default()
    processor = processor.with_sizes(args.resolution).to("cuda" if torch.cuda.is_available() else "cpu")
    processor.visual_tokenizer.to(memory_format=torch.channels_last)  # on a CPU 1.5 times the speed, and the same codes
    results = {}
    for dataset, label in zip(args.dataset, labels, strict=True):
        results[label], originals, copies = _evaluate(processor, dataset, args)
        if output:
            figures = "PSNR {psnr:.2f} dB, SSIM {ssim:.4f}, {codes_used} of {num_codes} codes, {num_frames} frames"
            sheet = reconstruction_sheet(originals, copies, f"{label}: {figures.format(**results[label])}")
            output.mkdir(parents=True, exist_ok=True)
            file = output / f"reconstructions-{re.sub(r'[^A-Za-z0-9._-]+', '-', label)}.png"
            sheet.save(file.with_suffix(".partial"), format="PNG")
            file.with_suffix(".partial").replace(file)
    if output:
        evaluation = {
            "command": "evaluate-tokenizer",
            "tokenizer": {
                "name": args.tokenizer or SHIPPED.name,
                "class": type(processor.visual_tokenizer).__name__,
                "fingerprint": processor.fingerprint,
            },
            "config_name": args.config_name,
            "resolution": processor.resolution,
            "max_frames": args.max_frames,
            "frames_per_video": args.frames_per_video,
            "versions": {
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "datasets": datasets.__version__,
                "pillow": PIL.__version__,
            },
            "datasets": results,
        }
        file = output / "evaluation.json"
        file.with_suffix(".partial").write_text(json.dumps(evaluation, indent=2) + "\n")
        file.with_suffix(".partial").replace(file)
    print(markdown_table(results))
    if output:
        print(f"wrote {output} (evaluation.json, a sheet per dataset)")
    named = ["--tokenizer", args.tokenizer] if args.tokenizer else []
    say_next(
        "tokenize", "--dataset", args.dataset[0], *named, "--output", beside(args.output or "out/evaluation", "shards")
    )
