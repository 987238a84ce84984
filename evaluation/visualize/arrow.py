"""`toto visualize arrow`: does a model find clips more likely than their reverse? Exact, teacher-forced likelihoods."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from evaluation.visualize.args import DATASETS, SPLIT, check_output, require_model
from tokenization.sampling import TimeStepArgs
from tokenization.terminal.next_command import look_inside
from training.flags import option, parse, refuse_idle, require, require_not_negative, require_positive, typed_flags

if TYPE_CHECKING:
    import numpy as np

    from evaluation.visualize.results import Arrow, ArrowResult

DESCRIPTION = (
    "Measure the arrow of time: the log-likelihood of every clip minus that of the same frames in reversed order, in "
    "nats per token, with a bootstrap interval over videos and an untrained twin as the floor."
)
RESAMPLES = 10_000


@dataclass(frozen=True)
class ArrowArgs(TimeStepArgs):
    model: str | None = option(None, "Hub id, Hugging Face folder or run folder of a Toto")
    dataset: str | None = option(None, f"clips: {DATASETS}")
    split: str | None = option(None, SPLIT)
    max_clips: int = option(64, "clips to score")
    windows: int = option(1, "clips of each video, spread over it; of toyworld every clip is a video")
    num_frames: int | None = option(None, "frames of a clip (default: those of the model)")
    batch_size: int = option(8, "clips in a forward pass")
    no_untrained: bool = option(False, "leave out the untrained twin")
    seed: int = option(0, "of the choice of videos, of the bootstrap and of the untrained twin")
    output: str | None = option(None, "result file to write (.json); a histogram (.png) is written next to it")

    def __post_init__(self):
        super().__post_init__()
        require_model(self.model)
        check_output(self.output, (".json",))
        require(self.dataset is not None, "--dataset DATA is missing; name the clips.")
        require_positive(self, "max_clips", "windows", "num_frames", "batch_size")
        require_not_negative(self, "seed")
        require(
            self.num_frames is None or self.num_frames > 1,
            "--num_frames is 1, but a single frame has no direction of time; give at least 2.",
        )


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else list(argv)
    (args,) = parse((ArrowArgs,), argv, "toto visualize arrow", DESCRIPTION)
    if args.dataset.split(":")[0] == "toyworld":
        refuse_idle(argv, ("stride", "fps", "resize", "windows"), "on toyworld, which is drawn")
    if "fps" in typed_flags(argv):
        refuse_idle(argv, ("stride",), "next to --fps")

    from evaluation.backbones.contract import fresh
    from evaluation.results import command_line
    from evaluation.visualize.inputs import load
    from evaluation.visualize.likelihood import check_predicts
    from evaluation.visualize.results import ArrowResult
    from tokenization.files import write_json, write_whole
    from training.engine.device import versions

    model, processor = load(args.model)
    check_predicts(model)
    frames = args.num_frames or model.config.num_frames
    require(
        frames <= model.config.context_frames,
        f"--num_frames is {frames}, but the context of the model has only {model.config.context_frames} frames; give "
        "fewer.",
    )
    codes, videos = read_codes(args, processor, frames)
    trained = measure(model, codes, videos, args, "clips")
    untrained = None
    if not args.no_untrained:
        untrained = measure(fresh(model, args.seed).to(model.device), codes, videos, args, "untrained")
    result = ArrowResult(
        command=command_line("visualize", ["arrow", *argv]),
        model=args.model,
        dataset=args.dataset,
        split=args.split,
        clips=len(codes),
        videos=len(set(videos)),
        num_frames=frames,
        tokens_per_clip=frames * model.config.tokens_per_frame,
        seeds={"data": args.seed, "bootstrap": args.seed, "untrained": args.seed},
        trained=trained,
        untrained=untrained,
        versions=versions(),
    )
    output = Path(args.output)
    write_json(output, result.to_json())
    print(table(result))
    print(f"wrote {output}")
    try:
        write_whole(place := output.with_suffix(".png"), lambda file: draw(result, file))
    except ImportError:
        print("no figure: it needs matplotlib (pip install 'modeling-toto[demo]')")
    else:
        print(f"wrote {place}")
    look_inside(args.model, args.dataset, output)


def read_codes(args: ArrowArgs, processor, frames: int) -> tuple[np.ndarray, list[str]]:
    """(codes (N, T, h, w), the video of each clip). Raises ValueError for images, or if nothing can be read."""
    import numpy as np

    from evaluation.visualize.inputs import clips_of, codes_of_frames, sampling_of
    from tokenization.terminal.progress import tqdm

    sampling = sampling_of(args, args.dataset, processor.resolution, frames, args.windows)
    source, clips = clips_of(args.dataset, args.split, sampling, args.max_clips, args.seed)
    require(
        source.kind == "video", f"{args.dataset} holds images, which have no direction of time; name a set of videos."
    )
    codes, videos = [], []
    for clip in tqdm(clips, total=args.max_clips, desc="tokens", unit="clip"):
        codes.append(codes_of_frames(processor, clip.frames)[0].numpy())
        videos.append(clip.source)
    if source.skipped:
        one = source.skipped[0]
        print(f"skipped {len(source.skipped):,} files or rows, the first {one['source']}: {one['why']}")
    require(bool(codes), f"No clip of {frames} frames could be read from {args.dataset}; give fewer frames.")
    return np.stack(codes), videos


def measure(model, codes: np.ndarray, videos: list[str], args: ArrowArgs, label: str) -> Arrow:
    """The arrow of time of clips; codes (N, T, h, w)."""
    import torch

    from evaluation.visualize.likelihood import frame_surprise
    from evaluation.visualize.results import Arrow
    from tokenization.terminal.progress import tqdm
    from training.scores import bootstrap_interval, exact_interval

    forward, backward = [], []
    with tqdm(total=len(codes), desc=label, unit="clip") as bar:
        for batch in torch.as_tensor(codes).split(args.batch_size):
            forward.append(frame_surprise(model, batch))
            backward.append(frame_surprise(model, batch.flip(1)))
            bar.update(len(batch))
    forward, backward = torch.cat(forward), torch.cat(backward)  # (N, T) nats per code
    differences = (backward - forward).mean(1).numpy()
    distinct = len(set(videos))
    groups = None if distinct == len(videos) else videos
    positive = int((differences > 0).sum())
    return Arrow(
        difference=float(differences.mean()),
        ci95=bootstrap_interval(differences, groups=groups, seed=args.seed, samples=RESAMPLES)
        if distinct > 1
        else None,
        positive=positive / len(differences),
        positive_ci95=exact_interval(positive, len(differences)),
        forward=forward.mean(0).tolist(),
        backward=backward.mean(0).tolist(),
        differences=differences.tolist(),
    )


def table(result: ArrowResult) -> str:
    lines = [
        f"{result.clips} clips of {result.videos} videos, {result.num_frames} frames; nats per token",
        f"{'':<12}{'forward':>9}{'backward':>10}{'difference':>12}{'95 % interval':>21}{'positive':>11}",
    ]
    for name, each in (("trained", result.trained), ("untrained", result.untrained)):
        if each is None:
            continue
        forward, backward = (sum(values) / len(values) for values in (each.forward, each.backward))
        interval = "-" if each.ci95 is None else f"{each.ci95[0]:+.4f} to {each.ci95[1]:+.4f}"
        lines.append(
            f"{name:<12}{forward:>9.4f}{backward:>10.4f}{each.difference:>+12.4f}{interval:>21}{each.positive:>11.0%}"
        )
    return "\n".join(lines)


def draw(result: ArrowResult, file: Path) -> None:
    """A histogram of the clips' differences, and the nats of each frame in both directions."""
    import numpy as np

    from evaluation.report.figures import MODEL, new_figure

    figure, axes = new_figure(10.0, 3.6, (1, 2))
    left, right = axes[0]
    each, twin = result.trained, result.untrained
    left.hist(each.differences, bins=min(40, max(8, result.clips // 4)), color=MODEL)
    left.axvline(0, color="#30363d", linewidth=1.2, linestyle=(0, (4, 2)))
    left.axvline(each.difference, color="#D55E00", linewidth=2)
    interval = "" if each.ci95 is None else f" [{each.ci95[0]:+.4f}, {each.ci95[1]:+.4f}]"
    floor = "" if twin is None else f"; untrained {twin.difference:+.4f}"
    left.set_title(f"mean {each.difference:+.4f}{interval}{floor}", fontsize=10, loc="left")
    left.set_xlabel("log-likelihood forwards minus backwards, nats per token", fontsize=10)
    left.set_ylabel("clips", fontsize=10)
    steps = np.arange(1, result.num_frames + 1)
    right.plot(steps, each.forward, color=MODEL, linewidth=2.2, label="forwards")
    right.plot(steps, each.backward, color="#D55E00", linewidth=2.2, linestyle=(0, (5, 2)), label="backwards")
    right.set_xlabel("frame, in the order it is read", fontsize=10)
    right.set_title("nats per token", fontsize=10, loc="left")
    right.set_ylim(bottom=0)
    right.legend(frameon=False, fontsize=9)
    figure.savefig(file, format="png", dpi=80)
