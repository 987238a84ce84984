"""Held-out clips of `toyworld:motion`, whose truth is exact: their examiner, floors and control of permanence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evaluation.continuations import floors
from evaluation.continuations.args import ScoreArgs
from evaluation.continuations.control import compare, without_returning
from evaluation.continuations.drawing import continue_codes, decoded, encode, enlarged
from evaluation.continuations.measures import Drawn, Examiner, Values
from evaluation.continuations.truth import Truth, read_truth
from evaluation.results import PermanenceControl
from tokenization.terminal.progress import tqdm
from tokenization.toyworld import MotionWorld, motion, open_world
from training.flags import require


@dataclass(frozen=True)
class MotionClips:
    """The held-out clips: their world (as it was named), truth, codes (C, T, h, w) and examiner."""

    name: str
    world: MotionWorld
    truth: Truth
    codes: np.ndarray
    examiner: Examiner

    @property
    def prompts(self) -> np.ndarray:
        """Codes of the prompts, (C, P, h, w)."""
        return self.codes[:, : self.truth.prompt]

    @property
    def video(self) -> np.ndarray:
        """The true frames, uint8 (C, T, 64, 64, 3)."""
        return self.truth.video

    def pixel_floors(self, processor):
        """(name, frames) of the floors that need no model: the world's own pixels, without a tokenizer's loss."""
        last, new = self.prompts[:, -1:], self.truth.num_frames
        yield "copy", Drawn(enlarged(floors.copy(self.truth), processor), last.repeat(new, 1))
        moved = floors.constant_velocity(self.world, self.truth)
        yield "constant_velocity", Drawn(enlarged(moved, processor), encode(processor, moved))

    def training_codes(self, processor, count: int) -> np.ndarray:
        """Codes of clips of the training split."""
        train = open_world(self.name, "train", 0, motion.SIDE, self.codes.shape[1])
        bar = tqdm(range(count), desc="training clips of the predictor", unit="clip")
        return encode(processor, (train.clip(index)["video"] for index in bar))


def motion_clips(args: ScoreArgs, processor) -> MotionClips:
    """The clips to score. Raises ValueError for a processor whose frames are not a multiple of the world's."""
    require(
        processor.resolution % motion.SIDE == 0 and motion.SIDE % processor.grid[0] == 0,
        f"The model reads frames of {processor.resolution} pixels as {processor.grid[0]} x {processor.grid[1]} tokens; "
        f"--score needs a multiple of {motion.SIDE} pixels and whole pixels of the world in a token.",
    )
    frames, name = args.num_prompt_frames + args.num_frames, args.dataset.partition(":")[2]
    world = open_world(name, args.split, 0, motion.SIDE, frames)
    truth = read_truth(
        world, args.max_clips, args.num_prompt_frames, lambda each: tqdm(each, desc="clips", unit="clip")
    )
    codes = encode(processor, tqdm(truth.video, desc="tokens", unit="clip"))
    return MotionClips(name, world, truth, codes, Examiner(truth, codes))


def control(args: ScoreArgs, clips: MotionClips, processor, model, greedy: Values) -> PermanenceControl | None:
    """Greedy continuations of the clips from whose prompts an object that returns was deleted; None without returns.

    They end with the frame of return, since later frames are not compared.
    """
    cases = clips.examiner.cases["returned"]
    if not len(cases.objects):
        return None
    deleted = without_returning(clips.world, clips.examiner)
    prompts = encode(processor, deleted.video[:, : deleted.prompt])
    frames = np.zeros((len(prompts), args.num_frames, *[processor.resolution] * 2, 3), np.uint8)
    for last in np.unique(cases.frame):
        own, count = cases.frame == last, int(last) + 1
        codes, _ = continue_codes(model, prompts[own], count, args.batch_size, f"objects deleted, {count} frames")
        frames[own, :count] = decoded(processor, codes).frames
    return compare(clips.examiner, greedy, deleted, frames)
