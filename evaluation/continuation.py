"""A clip continued by a Toto, frame by frame: the function that a notebook needs; `generate.py` is the command."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.backbones.contract import default_device
from evaluation.frame_counts import frame_counts
from evaluation.unlike_training import trained_on, unlike_training
from modeling_toto import TotoForCausalLM
from tokenization.processing_toto import TotoProcessor
from tokenization.sampling import Sampling
from training.find_model import resolve_model
from training.load import load_run


def continue_clip(
    model: str | Path | tuple[TotoForCausalLM, TotoProcessor],
    clip: str | Path | np.ndarray | Sequence[Any],
    num_frames: int | None = None,
    *,
    num_prompt_frames: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
) -> np.ndarray:
    """The first frames of a clip and the frames that a Toto generates after them (paper App. A.10).

    Args:
        model: Hub id, Hugging Face folder or run folder, or the (model, processor) of `training.load_run`, so that a
            second call does not load them again.
        clip: path of a video file, of which every fourth frame is taken, or frames of any size: uint8 (T, H, W, 3) or
            a list of pictures. They are resized and cropped to the model's resolution R.
        num_frames: G, frames to generate; None fills the model's own number of frames. There may be more than fit its
            context, which then drops the oldest ones.
        num_prompt_frames: P, frames given to the model; None takes half of the model's own number, or all of a shorter
            clip.
        temperature: of the sampling; 0 takes the most likely token.
        top_k: sample from the k most likely tokens only.
        top_p: sample from the smallest set of tokens whose probabilities sum to at least this.
        seed: of the sampling.
    Returns:
        uint8 (P + G, R, R, 3): the prompt as the visual tokenizer reconstructs it, then the generated frames.
    Raises:
        ValueError: a model that generates no frames, a clip shorter than the prompt, a prompt longer than the context,
            or a sampling option out of range.
        OSError: no such model or file.
    Warns:
        UserWarning: the window, resolution, time step or visual tokenizer are not those of the training, as far as the
            model's run recorded them.
    """
    trained = None
    if isinstance(model, (str, Path)):
        network, processor = load_run(model)
        trained = trained_on(resolve_model(str(model)))
        device = default_device()
        network, processor = network.to(device), processor.to(device)
    else:
        network, processor = model
    if not isinstance(network, TotoForCausalLM):
        raise ValueError(f"A {type(network).__name__} generates no frames; pass a TotoForCausalLM.")
    prompt, new = frame_counts(network.config, num_prompt_frames, num_frames)
    if isinstance(clip, (str, Path)):
        frames, processor = str(clip), processor.with_sizes(num_frames=prompt)
    else:
        prompt = min(prompt, len(clip)) if num_prompt_frames is None else prompt
        if len(clip) < prompt or not prompt:
            raise ValueError(f"The clip has {len(clip)} frames, and the prompt needs {prompt or 1}; pass a longer one.")
        frames = clip[:prompt]
    stride = Sampling.stride if isinstance(clip, (str, Path)) else None
    for sentence in unlike_training(network.config, processor, prompt + new, trained, stride):
        warnings.warn(sentence, stacklevel=2)
    ids = processor(videos=[frames], add_end_token=False)["input_ids"].to(network.device)
    rows = network.generate_frames(ids, new, temperature, top_k, top_p, generator=torch.Generator().manual_seed(seed))
    return processor.decode(rows)[0]
