"""The cost of going beyond the context: negative log-likelihood per frame, with cached states kept or recomputed.

`generate_frames` drops the oldest frames of a row that outgrows the context and keeps the cached states of the others.
Those were computed with attention to the dropped frames; recomputing them is the exact reference. Here both predict
the same true clips: `python -m studies.long_rows --model M --num_frames 64 --output results/long_rows.json`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from tokenization.terminal.command_line import parse_flags


@dataclass(frozen=True)
class LongRowsArgs:
    model: str = field(metadata={"help": "Hub id, Hugging Face folder or run folder"})
    output: str = field(metadata={"help": "the .json to write; a plot (.png) is written next to it"})
    dataset: str = field(default="toyworld", metadata={"help": "clips: toyworld[:VARIANT], a folder, a file, a Hub id"})
    split: str = field(default="test", metadata={"help": "split of the dataset"})
    num_frames: int = field(default=64, metadata={"help": "frames of a clip; beyond the model's context"})
    num_clips: int = field(default=32, metadata={"help": "clips to score"})
    drop_frames: list[int] = field(
        default_factory=list,
        metadata={"help": "oldest frames to drop at a time; several numbers are compared (default: a quarter)"},
    )
    batch_size: int = field(default=8, metadata={"help": "clips at a time"})
    stride: int = field(default=4, metadata={"help": "every n-th frame of a video file (paper: 4)"})
    fps: float | None = field(default=None, metadata={"help": "frames per second to sample, instead of a stride"})

    def __post_init__(self):
        if self.num_clips < 2:
            raise ValueError(f"--num_clips is {self.num_clips}; an interval needs at least 2.")
        if self.batch_size < 1:
            raise ValueError(f"--batch_size is {self.batch_size}; it must be at least 1.")
        if Path(self.output).suffix != ".json":
            raise ValueError(f"--output {self.output} must end in .json.")


def score_ways(model, rows, drop_frames: list[int], batch_size: int = 8, progress: bool = False) -> list[dict]:
    """Score the same rows with every number of dropped frames, with states kept and recomputed.

    Args:
        model: a TotoForCausalLM. rows: (N, 1 + F * tokens_per_frame) ids, F beyond the model's context.
        drop_frames: numbers of frames that dropped at a time.
    Returns:
        One dict for each: drop_frames; kept and recomputed, float32 numpy (N, F), nats per code of every frame;
        kept_seconds and recomputed_seconds, of the scoring.
    """
    import numpy as np
    from transformers.utils import logging

    results = []
    for drop in drop_frames:
        result = {"drop_frames": drop}
        for name, recompute in (("kept", False), ("recomputed", True)):
            began = time.perf_counter()
            batches = logging.tqdm(rows.split(batch_size), desc=f"{name}, {drop} at a time", disable=not progress)
            scores = [model.score_frames(batch.to(model.device), drop, recompute).cpu().numpy() for batch in batches]
            result[name] = np.concatenate(scores)
            result[f"{name}_seconds"] = time.perf_counter() - began
        results.append(result)
    return results


def mean_interval(values, seed: int = 0, samples: int = 10_000) -> dict:
    """Mean of one value per clip, with a 95 % bootstrap interval over clips."""
    import numpy as np

    values = np.asarray(values, dtype=np.float64)
    picks = np.random.default_rng(seed).integers(len(values), size=(samples, len(values)))
    low, high = np.percentile(values[picks].mean(1), [2.5, 97.5])
    return {"mean": float(values.mean()), "ci95": [float(low), float(high)]}


def summary(result: dict, context: int) -> dict:
    """The numbers of one of `score_ways`' results, for a model that sees `context` frames.

    Frames inside the context are the same both ways. Beyond it: mean nats per code of each way, and their paired
    difference (kept minus recomputed, above 0: keeping costs), each over clips.
    """
    kept, recomputed = result["kept"], result["recomputed"]
    return {
        "drop_frames": result["drop_frames"],
        "nats_per_frame": {"kept": kept.mean(0).tolist(), "recomputed": recomputed.mean(0).tolist()},
        "inside": mean_interval(recomputed[:, 1:context].mean(1)),
        "beyond": {name: mean_interval(result[name][:, context:].mean(1)) for name in ("kept", "recomputed")},
        "kept_minus_recomputed": mean_interval((kept - recomputed)[:, context:].mean(1)),
        "seconds": {name: result[f"{name}_seconds"] for name in ("kept", "recomputed")},
    }


def plot(path: str | Path, title: str, ways: list[dict], context: int) -> None:
    """Nats a code over the frames of a clip, both ways, a panel for each number of dropped frames."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from evaluation.report.figures import GREY, MODEL, UNTRAINED

    figure = Figure(figsize=(8, 0.6 + 2.8 * len(ways)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    panels = figure.subplots(len(ways), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    for axes, way in zip(panels, ways, strict=True):
        lines = way["nats_per_frame"]
        frames = range(1, len(lines["kept"]) + 1)
        axes.plot(frames, lines["recomputed"], color=MODEL, lw=2.2, label="states recomputed (exact)")
        axes.plot(frames, lines["kept"], color=UNTRAINED, lw=1.6, ls=(0, (4, 2)), label="states kept, keys rotated")
        axes.axvline(context + 0.5, color=GREY, lw=1, ls=(0, (1, 2)))
        axes.set_title(f"{way['drop_frames']} oldest frames dropped at a time", loc="left", fontsize=10)
        axes.set_ylabel("nats per code")
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].annotate(
        "end of the context",
        (context + 0.5, 1),
        xycoords=("data", "axes fraction"),
        xytext=(4, -10),
        textcoords="offset points",
        fontsize=9,
        color=GREY,
    )
    panels[0].legend(frameon=False, fontsize=9, loc="upper right", bbox_to_anchor=(1, 1.22))
    panels[-1].set_xlabel("frame")
    figure.savefig(path, dpi=120)


def main(argv: list[str] | None = None) -> None:
    args = parse_flags(LongRowsArgs, argv, "python -m studies.long_rows", __doc__)

    import torch

    from evaluation.backbones.contract import default_device
    from evaluation.results import command_line
    from modeling_toto import TotoForCausalLM
    from modeling_toto.decoding_toto import frames_to_drop
    from modeling_toto.generation_toto import check_rows
    from tokenization.files import write_json
    from tokenization.processing_toto import TotoProcessor
    from tokenization.sampling import Sampling
    from tokenization.sequences import video_rows
    from tokenization.sources.open import open_source
    from training.engine.device import versions
    from training.find_model import resolve_model

    path, device = resolve_model(args.model), default_device()
    model = TotoForCausalLM.from_pretrained(path, dtype=torch.float32).eval().to(device)
    processor = TotoProcessor.from_pretrained(path).to(device)
    context = model.config.context_frames
    if args.num_frames <= context:
        raise ValueError(
            f"--num_frames is {args.num_frames}, within the model's context of {context} frames; give more."
        )
    drop_frames = args.drop_frames or [frames_to_drop(model.config, None)]
    start = torch.tensor([[model.config.bos_token_id]])
    for drop in drop_frames:  # before the clips are read
        check_rows(model.config, start, model.config.row_length(args.num_frames) - 1, drop)
    source = open_source(
        args.dataset,
        args.split,
        Sampling(args.num_frames, args.stride, args.fps, processor.resolution),
        limit=args.num_clips,
    )
    clips = list(source)
    if len(clips) < 2:
        raise ValueError(
            f"{args.dataset} gave {len(clips)} clips of {args.num_frames} frames; lower --num_frames or --stride."
        )
    codes = torch.stack([processor.encode_frames(clip.frames) for clip in clips])  # (N, F, h, w)
    ways = score_ways(model, video_rows(codes, end=False), drop_frames, args.batch_size, progress=True)
    ways = [summary(way, context) for way in ways]
    write_json(
        args.output,
        {
            "command": command_line("", argv).replace("toto ''", "python -m studies.long_rows"),
            "model": args.model,
            "data": {"dataset": args.dataset, "split": args.split, "num_clips": len(clips), "skipped": source.skipped},
            "num_frames": args.num_frames,
            "context_frames": context,
            "ways": ways,
            "versions": versions(device),
        },
    )
    picture = Path(args.output).with_suffix(".png")
    plot(picture, f"{args.model}: {len(clips)} clips of {args.dataset}, {context} frames of context", ways, context)
    print(f"nats per code, mean over {len(clips)} clips [95 % interval]; frames beyond the {context} of the context")
    print(f"{'dropped at a time':>15}  {'kept':>24}  {'recomputed':>24}  {'difference':>26}  seconds")
    for way in ways:
        cells = [way["beyond"]["kept"], way["beyond"]["recomputed"], way["kept_minus_recomputed"]]
        text = "  ".join(f"{c['mean']:8.4f} [{c['ci95'][0]:.4f}, {c['ci95'][1]:.4f}]" for c in cells)
        seconds = way["seconds"]
        print(f"{way['drop_frames']:>15}  {text}  {seconds['kept']:.1f} against {seconds['recomputed']:.1f}")
    inside = ways[0]["inside"]
    print(f"frames 2..{context}: {inside['mean']:.4f} [{inside['ci95'][0]:.4f}, {inside['ci95'][1]:.4f}]")
    print(f"wrote {args.output} and {picture}")


if __name__ == "__main__":
    from toto_cli import run

    run(main)
