"""Continuations by a Toto and frames through its tokenizer, in batches."""

from __future__ import annotations

import time

import numpy as np
import torch

from evaluation.continuations.measures import Drawn
from tokenization.sequences import codes_of, video_rows
from tokenization.terminal.progress import tqdm

DECODED = 32  # clips whose frames are decoded at a time


def continue_codes(
    model, codes: np.ndarray, num_frames: int, batch_size: int, label: str, seed: int | None = None, **sampling
) -> tuple[np.ndarray, float]:
    """Codes of the frames that follow the prompts, and the seconds that it took.

    Args:
        model: TotoForCausalLM. codes: of the prompts, (C, P, h, w). label: of the progress bar.
        seed: of the sampling; None takes the most likely token. sampling: temperature, top_k, top_p.
    Returns:
        (C, num_frames, h, w).
    """
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    sampling = {"temperature": 0.0} if seed is None else sampling
    rows = video_rows(codes, end=False)
    began, found = time.perf_counter(), []
    with tqdm(total=len(codes), desc=label, unit="clip") as bar:
        for batch in rows.split(batch_size):
            drawn = model.generate_frames(batch.to(model.device), num_frames, generator=generator, **sampling)
            found.append(codes_of(drawn.cpu(), codes.shape[2:])[:, codes.shape[1] :])
            bar.update(len(batch))
    return torch.cat(found).numpy(), time.perf_counter() - began


def encode(processor, frames: np.ndarray) -> np.ndarray:
    """Codes (C, T, h, w) of frames of the world, uint8 (C, T, 64, 64, 3), enlarged to the processor's size."""
    return np.stack([processor.encode_frames(enlarged(each, processor)).numpy() for each in frames])


def enlarged(frames: np.ndarray, processor) -> np.ndarray:
    """Frames of the world (..., 64, 64, 3) -> (..., R, R, 3) for the processor's R."""
    times = processor.resolution // frames.shape[-2]
    return frames if times == 1 else frames.repeat(times, -3).repeat(times, -2)


def decoded(processor, codes: np.ndarray) -> Drawn:
    """Codes (C, G, h, w) with the frames that they show."""
    parts = [
        processor.decode(video_rows(codes[start : start + DECODED], end=False))
        for start in range(0, len(codes), DECODED)
    ]
    return Drawn(np.concatenate(parts), codes)
