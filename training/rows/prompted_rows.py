"""Rows of examples for prompts: images and labels drawn as frames, by number, tokenized when they are needed."""

from __future__ import annotations

import numpy as np
import torch

from tokenization.sequences import prompted_rows

NUMBER = 2**40  # rows of an epoch: the world's clips never end, and pairs are drawn at random


class PromptedRows:
    """The rows of a task: row k is the same for any number of processes; see `ShardRows`.

    Args:
        task: `prompting.tasks.Task`. coding: its `Coding`, whose colours are drawn anew in every row of segmentation.
        examples: has `episode(k)` and `name`.
        processor: TotoProcessor of the model.
    """

    is_indexed = True
    rows_per_epoch = NUMBER

    def __init__(self, task, coding, examples, processor, seed: int):
        self.task, self.coding, self.examples, self.processor, self.seed = task, coding, examples, processor, seed

    @property
    def fingerprint(self) -> str:
        """The name of the data and of the task."""
        return f"{self.examples.name}:{self.task.name}"

    def row(self, k: int) -> torch.LongTensor:
        """Ids (L,): start, prompt id, the frames of the examples, end."""
        frames = episode_frames(self.examples.episode(k), episode_coding(self.task, self.coding, self.seed, k))
        return prompted_rows(self.processor.encode_frames(frames)[None], self.task.prompt_id)[0].to(torch.int32).long()

    def state_dict(self) -> None:
        """Nothing: the number of a row determines it."""

    def load_state_dict(self, state: None) -> None:
        """Nothing to restore."""


def episode_coding(task, coding, seed: int, k: int):
    """The colours of an episode: those of classes are permuted, so that only the examples say what they mean."""
    if task.name != "segmentation":
        return coding
    return coding.permuted(np.random.default_rng([seed, k, 21]).permutation(len(coding.colours) - 1))


def episode_frames(examples: list, coding) -> np.ndarray:
    """Images and drawn labels in turn, uint8 (frames, R, R, 3)."""
    return np.concatenate([part for each in examples for part in (each.images, coding.paint(each.truth))])
