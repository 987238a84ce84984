"""`toto evaluate-tokenizer`: how well a tokenizer reconstructs pictures, the codes it uses, and if they move along."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tokenization.sources.named import require_dataset, require_on_hub
from tokenization.terminal.command_line import parse_flags
from tokenization.terminal.next_command import say_next

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image

DESCRIPTION = (
    "PSNR, SSIM and codebook use of a visual tokenizer, per dataset; and the share of its codes that stay the same "
    "when a picture moves by one code to the right and down."
)
SSIM_WINDOW = 7
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
    split: str = field(default="test", metadata={"help": "split of every dataset"})
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


# --- figures of pictures


def _comparable(true: torch.Tensor, copy: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Both as float64 (B, 3, H, W) in [0, 1], without gradients."""
    import torch

    from tokenization.tokenizer_base import check_pixels

    pair = []
    for pictures in (true, copy):
        # In fp32 the variances of SSIM would be differences of near numbers. MPS has no float64.
        if isinstance(pictures, torch.Tensor) and pictures.device.type == "mps":
            pictures = pictures.cpu()
        if isinstance(pictures, torch.Tensor) and pictures.dtype == torch.uint8:
            pictures = pictures.double() / 255
        check_pixels(pictures, stride=1)
        pair.append(pictures.detach().double())
    if pair[0].shape != pair[1].shape:
        shapes = " and ".join(str(tuple(pictures.shape)) for pictures in pair)
        raise ValueError(f"Pictures and their copies must have the same shape, got {shapes}.")
    return pair[0], pair[1]


def psnr(true: torch.Tensor, copy: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio in dB of every picture; equal pictures get 150, not infinity.

    Args:
        true, copy: (B, 3, H, W), each uint8 or floats in [0, 1].
    Returns:
        (B,) float64, without gradients.
    Raises:
        ValueError: wrong type, shape or range, NaNs, or shapes that differ.
    """
    true, copy = _comparable(true, copy)
    return -10 * (true - copy).square().flatten(1).mean(1).clamp_min(1e-15).log10()


def ssim(true: torch.Tensor, copy: torch.Tensor) -> torch.Tensor:
    """Structural similarity of every picture (Wang et al. 2004), averaged over channels and positions.

    Windows are uniform, 7 x 7 and inside the picture; covariances are unbiased: scikit-image's defaults with a
    `channel_axis`.

    Args, Returns, Raises: as `psnr`; pictures must have at least 7 x 7 pixels.
    """
    import torch.nn.functional as F

    true, copy = _comparable(true, copy)
    if min(true.shape[2:]) < SSIM_WINDOW:
        height, width = true.shape[2:]
        raise ValueError(
            f"SSIM needs pictures of at least {SSIM_WINDOW} x {SSIM_WINDOW} pixels, got {height} x {width}."
        )

    def window_mean(values: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(values, SSIM_WINDOW, stride=1)

    unbiased = SSIM_WINDOW**2 / (SSIM_WINDOW**2 - 1)
    mean_t, mean_c = window_mean(true), window_mean(copy)
    variance_t = unbiased * (window_mean(true * true) - mean_t * mean_t)
    variance_c = unbiased * (window_mean(copy * copy) - mean_c * mean_c)
    covariance = unbiased * (window_mean(true * copy) - mean_t * mean_c)
    c1, c2 = 0.01**2, 0.03**2  # the paper's K1 and K2, for values in [0, 1]
    luminance = (2 * mean_t * mean_c + c1) / (mean_t * mean_t + mean_c * mean_c + c1)
    structure = (2 * covariance + c2) / (variance_t + variance_c + c2)
    return (luminance * structure).flatten(1).mean(1)


# --- figures of a tokenizer


class TokenizerScore:
    """Running figures of a visual tokenizer: `add` frames, then read the `result`. Only sums are kept."""

    def __init__(self, tokenizer):
        import torch

        self.tokenizer = tokenizer
        self.counts = torch.zeros(tokenizer.config.num_codes, dtype=torch.long)
        self.psnr = self.ssim = 0.0
        self.num_frames = self.moved = self.kept = 0

    def add(self, frames: np.ndarray) -> torch.Tensor:
        """Encode and decode frames, and add them to the figures.

        Args:
            frames: uint8 (N, H, W, 3), with sides that are multiples of the stride.
        Returns:
            the decoded copies, uint8 (N, 3, H, W), on the CPU.
        Raises:
            ValueError: wrong type or shape, or a side that the tokenizer cannot encode.
        """
        import torch

        if frames.dtype != "uint8" or frames.ndim != 4 or frames.shape[3] != 3:
            raise ValueError(f"frames must be uint8 (N, H, W, 3), not {frames.dtype} {frames.shape}.")
        true = torch.from_numpy(frames).to(self.tokenizer.device).permute(0, 3, 1, 2)
        stride = self.tokenizer.config.stride
        with torch.no_grad():
            codes = self.tokenizer.encode(true.float() / 255)
            shifted = self.tokenizer.encode(true.float().roll((stride, stride), (2, 3)) / 255)
            # 8 bits, as a picture is stored and seen.
            copies = (self.tokenizer.decode(codes).float() * 255).round().to(torch.uint8)
        self.counts += torch.bincount(codes.flatten().cpu(), minlength=len(self.counts))
        self.psnr += psnr(true, copies).sum().item()
        self.ssim += ssim(true, copies).sum().item()
        self.num_frames += len(frames)
        kept = shifted[:, 1:, 1:] == codes[:, :-1, :-1]  # the others have rolled in from the opposite side, or out
        self.moved += kept.numel()
        self.kept += kept.sum().item()
        return copies.cpu()

    def result(self) -> dict[str, float | int | None]:
        """`psnr` (dB) and `ssim`, means over frames; `codes_used` of `num_codes`; `perplexity`, exp of the codes'
        entropy over all frames; `shift_equality`, the share of codes that stay the same when the picture moves by one
        code to the right and down (ours; 1 for a tokenizer whose codes depend on their own patches alone; None for
        pictures of a single row or column of codes); `num_frames`.

        Raises:
            ValueError: no frame was added.
        """
        if not self.num_frames:
            raise ValueError("There are no frames to measure.")
        share = self.counts[self.counts > 0].double() / self.counts.sum()
        return {
            "psnr": round(self.psnr / self.num_frames, 2),
            "ssim": round(self.ssim / self.num_frames, 4),
            "codes_used": len(share),
            "perplexity": round((-(share * share.log()).sum()).exp().item(), 1),
            "shift_equality": round(self.kept / self.moved, 6) if self.moved else None,
            "num_frames": self.num_frames,
            "num_codes": len(self.counts),
        }


def measure(tokenizer, frames: np.ndarray, batch_size: int = 64) -> dict[str, float | int | None]:
    """Figures of uint8 frames (N, H, W, 3); see `TokenizerScore.result`."""
    score = TokenizerScore(tokenizer)
    for start in range(0, len(frames), batch_size):
        score.add(frames[start : start + batch_size])
    return score.result()


def markdown_table(results: dict[str, dict]) -> str:
    """A Markdown table of one tokenizer's figures, a row per dataset."""
    num_codes = next(iter(results.values()))["num_codes"]
    codes = f"codes used (of {num_codes})"
    rows = [f"| pictures | PSNR (dB) | SSIM | {codes} | perplexity | equal after a shift | frames |"]
    rows.append("|---|---|---|---|---|---|---|")
    row = "| {} | {psnr:.2f} | {ssim:.4f} | {codes_used} | {perplexity:.1f} | {shift} | {num_frames} |"
    for name, figures in results.items():
        share = figures["shift_equality"]
        rows.append(row.format(name, **figures, shift="-" if share is None else f"{share:.4f}"))
    return "\n".join(rows)


def reconstruction_sheet(
    originals: torch.Tensor, copies: torch.Tensor, title: str = "", columns: int = 8, cell: int = 128
) -> Image.Image:
    """A picture of originals above their copies, with the PSNR of each pair.

    Args:
        originals, copies: as in `psnr`.
        columns: pairs side by side.
        cell: upper limit in pixels for the larger side of a picture, which is enlarged by a whole factor.
    Raises:
        ValueError: as in `psnr`.
    """
    from PIL import Image, ImageDraw

    decibels = psnr(originals, copies).tolist()
    scale = max(1, cell // max(originals.shape[2:]))
    height, width = (scale * side for side in originals.shape[2:])
    gap, line, margin = 4, 16, 56
    columns = min(columns, len(decibels))
    block = 2 * (height + gap) + line + gap  # two pictures and the figure under them
    size = (margin + columns * (width + gap), line + 2 * gap + -(-len(decibels) // columns) * block)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((gap, gap), title, fill="black")
    for index, decibel in enumerate(decibels):
        x = margin + index % columns * (width + gap)
        top = line + 2 * gap + index // columns * block
        for row, (label, pictures) in enumerate((("original", originals), ("copy", copies))):
            picture, y = pictures[index].detach().cpu(), top + row * (height + gap)
            if picture.is_floating_point():
                picture = (picture.float().clamp(0, 1) * 255).round().byte()
            picture = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
            sheet.paste(picture.resize((width, height), Image.Resampling.NEAREST), (x, y))
            if index % columns == 0:
                draw.text((gap, y + height // 2 - 6), label, fill="black")
        draw.text((x, top + 2 * (height + gap)), f"{decibel:.1f} dB", fill="black")
    return sheet


# --- the command


def _chosen(source, max_frames: int, frames_per_video: int) -> Iterator[tuple[np.ndarray, bool]]:
    """(frame (R, R, 3), whether it is the first of its file or row), from a source of one-frame clips."""
    last, taken, total = None, 0, 0
    for clip in source:
        taken = taken + 1 if clip.source == last else 1
        last = clip.source
        if source.kind == "video" and taken > frames_per_video:
            continue
        yield clip.frames[0], taken == 1
        total += 1
        if total == max_frames:
            return


def _evaluate(processor, dataset: str, args: EvaluateArgs) -> tuple[dict, torch.Tensor, torch.Tensor]:
    """Figures of a dataset, and originals and copies (N, 3, R, R): first frames of files or rows drawn at random."""
    import numpy as np
    import torch

    from tokenization.sampling import Sampling
    from tokenization.sources.open import config_of, open_source
    from tokenization.terminal.progress import tqdm

    # Frames of a video that are not chosen would count towards a limit; toyworld is endless and needs one.
    limit = args.max_frames if dataset.split(":")[0] == "toyworld" else None
    sampling = Sampling(num_frames=1, fps=1.0, resolution=processor.resolution)
    source = open_source(dataset, args.split, sampling, limit=limit, config_name=config_of(dataset, args.config_name))
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
        progress.update(len(waiting))
        waiting.clear()

    total = source.expected if source.kind == "video" else source.expected or source.listed  # None: not known before
    with tqdm(total=total and min(total, args.max_frames), unit=" frames", desc=_label(dataset)) as progress:
        for chosen in _chosen(source, args.max_frames, args.frames_per_video):
            waiting.append(chosen)
            if len(waiting) == batch_size:
                flush()
        if waiting:
            flush()
    if not score.num_frames:
        why = f"{source.skipped[0]['source']}: {source.skipped[0]['why']}" if source.skipped else "it holds no rows."
        raise ValueError(f"No picture of {dataset} could be used: {why}")
    originals, copies = (torch.stack(pictures) for pictures in zip(*sheet.drawn, strict=True))
    return {**score.result(), "skipped": len(source.skipped)}, originals, copies


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
            "split": args.split,
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
    say_next("tokenize", "--dataset", args.dataset[0], *named, "--output", Path(args.output or "out").parent / "shards")


if __name__ == "__main__":
    from toto_cli import run

    run(main)
