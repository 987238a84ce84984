"""Clips of any data set, of which only pixels and codes are known: how they are read, their measures and floors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.continuations import floors
from evaluation.continuations.args import ScoreArgs
from evaluation.continuations.measures import Drawn, Values, codes_right, curve_of, decibels, similarity, squared_error
from evaluation.results import FrameScores
from tokenization.sampling import Sampling
from tokenization.sources.open import open_source
from tokenization.terminal.progress import tqdm
from training.flags import require


class FrameExaminer:
    """Measures drawn frames against the true ones; as `measures.Examiner`, without a world's truth.

    Args:
        frames: true frames, uint8 (C, T, R, R, 3), of which the first `prompt` are given. codes: of all, (C, T, h, w).
    """

    def __init__(self, frames: np.ndarray, codes: np.ndarray, prompt: int):
        self.frames, self.codes, self.prompt = frames, codes, prompt

    def values(self, drawn: Drawn) -> Values:
        """The values of one drawing of each clip."""
        true = self.frames[:, self.prompt :]
        curves = codes_right(drawn.codes, self.codes, self.prompt)
        return Values(curves | {"mse": squared_error(drawn.frames, true), "ssim": similarity(drawn.frames, true)}, {})

    def best(self, drawings: list[Values]) -> Values:
        """For each clip the values of its drawing with the least squared error over all frames; the first of equals."""
        best = np.stack([each.curves["mse"].mean(1) for each in drawings]).argmin(0)
        every = np.arange(len(best))
        return Values({n: np.stack([d.curves[n] for d in drawings])[best, every] for n in drawings[0].curves}, {})

    def scores(self, values: Values, _ceiling: Values | None = None) -> FrameScores:
        """Means over clips, with 95 % bootstrap intervals over clips."""
        curves = {name: curve_of(each) for name, each in values.curves.items()}
        return FrameScores(
            codes=curves["codes"],
            changed_codes=curves["changed_codes"],
            psnr=decibels(curves["mse"]),
            ssim=curves["ssim"],
        )

    def arrays(self, found: dict[str, Values]) -> dict[str, np.ndarray]:
        """The values of every clip, as NAME.MEASURE."""
        return {f"{name}.{measure}": array for name, each in found.items() for measure, array in each.curves.items()}


@dataclass(frozen=True)
class FrameClips:
    """The clips to score.

    Fields:
        args: how they were read. video: true frames, uint8 (C, T, R, R, 3). codes: (C, T, h, w). sources: "FILE@FRAME",
            where each begins. examiner: of the clips.
    """

    args: ScoreArgs
    video: np.ndarray
    codes: np.ndarray
    sources: list[str]
    examiner: FrameExaminer

    @property
    def prompts(self) -> np.ndarray:
        """Codes of the prompts, (C, P, h, w)."""
        return self.codes[:, : self.examiner.prompt]

    def pixel_floors(self, processor):
        """(name, frames) of the floors that need no model, in the data's own pixels, without a tokenizer's loss."""
        prompt, new = self.examiner.prompt, self.args.num_frames
        last = self.video[:, prompt - 1 : prompt]
        yield "copy", Drawn(last.repeat(new, 1), self.prompts[:, -1:].repeat(new, 1))
        try:
            moved = floors.warped_by_flow(tqdm(self.video[:, :prompt], desc="optical flow", unit="clip"), new)
        except ImportError:
            print("no constant velocity: it needs scikit-image (pip install 'modeling-toto[demo]')")
            return
        yield "constant_velocity", Drawn(moved, encode(processor, moved))

    def training_codes(self, processor, count: int) -> np.ndarray:
        """Codes of clips of the training split."""
        video, _ = read_clips(self.args, processor.resolution, "train", count)
        return encode(processor, video)


def frame_clips(args: ScoreArgs, processor) -> FrameClips:
    """The clips to score, at the processor's size. Raises ValueError where there are none."""
    video, sources = read_clips(args, processor.resolution, args.split, args.max_clips)
    codes = encode(processor, tqdm(video, desc="tokens", unit="clip"))
    return FrameClips(args, video, codes, sources, FrameExaminer(video, codes, args.num_prompt_frames))


def read_clips(args: ScoreArgs, resolution: int, split: str, count: int) -> tuple[np.ndarray, list[str]]:
    """Clips of P + G frames, uint8 (C, T, R, R, 3), and where each begins: of a recording only its middle window.

    Windows of one recording are alike, so several would make the intervals over clips too narrow.
    """
    frames = args.num_prompt_frames + args.num_frames
    views = None if args.is_drawn else (1, 1)
    sampling = Sampling(frames, args.stride, args.fps, resolution, views=views, resize=args.resize)
    source = open_source(args.dataset, split, sampling, limit=count)
    require(
        source.kind == "video",
        f"--dataset {args.dataset} holds images, which nothing follows; name one of videos.",
    )
    clips = list(tqdm(source, desc=f"{split} clips", unit="clip", total=source.expected))
    if source.skipped:
        print(f"{len(source.skipped)} of {source.items} videos were skipped; the first: {source.skipped[0]['why']}")
    require(
        bool(clips),
        f"--dataset {args.dataset}, split {split}, has no clip of {frames} frames at this stride; give smaller "
        "--num_prompt_frames and --num_frames, or a smaller --stride.",
    )
    return np.stack([clip.frames for clip in clips]), [f"{clip.source}@{clip.start}" for clip in clips]


def encode(processor, frames) -> np.ndarray:
    """Codes (C, T, h, w) of frames at the processor's size, uint8 (C, T, R, R, 3)."""
    return np.stack([processor.encode_frames(each).numpy() for each in frames])
