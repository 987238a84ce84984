"""Drawing frames: rows of ids in, the same rows with whole new frames of codes out."""

import time

import torch
from torch.nn.functional import cross_entropy
from transformers.utils import logging

from .decoding_toto import FrameWindow, context_frames, frames_to_drop


def draw(
    logits: torch.Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> torch.LongTensor:
    """One draw per row: logits (B, K) -> (B,) integers below K.

    temperature 0 takes the most likely one; top_k keeps the k most likely; top_p then keeps the smallest set whose
    probability reaches p. The draw happens on the generator's device, in float32.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        smallest_kept = logits.topk(top_k).values[:, -1:]
        logits = logits.masked_fill(logits < smallest_kept, -torch.inf)
    probabilities = logits.softmax(-1)
    if top_p is not None and top_p < 1:
        ordered, order = probabilities.sort(descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered  # mass of all that is more likely: 0 for the first, so one always stays
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered.masked_fill(before >= top_p, 0.0))
    device = logits.device if generator is None else generator.device
    return torch.multinomial(probabilities.to(device), 1, generator=generator)[:, 0].to(logits.device)


class FrameGenerationMixin:
    """Adds `generate_frames` and `score_frames` to a causal language model with a TotoConfig."""

    @torch.no_grad()
    def generate_frames(
        self,
        input_ids: torch.LongTensor,
        num_frames: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
        progress: bool = False,
        use_cache: bool = True,
        drop_frames: int | None = None,
        recompute: bool = False,
    ) -> torch.LongTensor:
        """Continue every row by `num_frames` frames (paper App. A.10 prompts with real frames in the same way).

        Where a row outgrows the model's context, whole oldest frames leave it and the start token stays (paper silent;
        ours): a 16-frame model can draw 64. Only codes can be drawn, never a special id, so the result decodes.

        Args:
            input_ids: (B, L), equally long prompts without padding or end token, a start token first.
            temperature, top_k, top_p, generator: as in `draw`.
            progress: show a bar that moves once per frame.
            use_cache: False recomputes everything at each step (slow; for checks).
            drop_frames: oldest frames that leave at a time; a quarter of the context by default.
            recompute: encode the frames that stay afresh whenever some leave: exactly what the model says of the
                visible frames. Otherwise the cached states are kept, with their keys turned to their new positions:
                faster, but what they hold was computed when the dropped frames could be seen. `score_frames` measures
                the difference.
        Returns:
            (B, L + num_frames * tokens_per_frame), dropped frames included.
        Raises:
            ValueError: a prompt that cannot be continued, an attention mode other than causal (or a prefix longer than
                the prompt), or options out of range.
        """
        config = self.config
        length, total = input_ids.shape[1], input_ids.shape[1] + num_frames * config.tokens_per_frame
        if num_frames < 1:
            raise ValueError(f"num_frames is {num_frames}; ask for at least one frame.")
        check_rows(config, input_ids, total, drop_frames)
        if temperature < 0 or (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
            raise ValueError(
                f"temperature={temperature}, top_k={top_k}, top_p={top_p}: use temperature >= 0, top_k >= 1 and "
                "0 < top_p <= 1."
            )

        ids = torch.empty(input_ids.shape[0], total, dtype=torch.long, device=input_ids.device)
        ids[:, :length] = input_ids
        window = FrameWindow(self, ids, drop_frames, recompute, use_cache)
        was_training = self.training
        self.eval()  # gradient checkpointing, active in training mode, would drop the cache
        try:
            bar = logging.tqdm(range(length, total, config.tokens_per_frame), desc="frames", disable=not progress)
            for begin in bar:
                began, end = time.perf_counter(), begin + config.tokens_per_frame
                window.make_room(end)
                for position in range(begin, end):
                    codes = draw(window.code_logits(position), temperature, top_k, top_p, generator)
                    ids[:, position] = codes + config.code_offset
                if progress:
                    rate = len(ids) * config.tokens_per_frame / (time.perf_counter() - began)
                    bar.set_postfix_str(f"{rate:,.0f} tok/s")
        finally:
            self.train(was_training)
        return ids

    @torch.no_grad()
    def score_frames(
        self, input_ids: torch.LongTensor, drop_frames: int | None = None, recompute: bool = False
    ) -> torch.FloatTensor:
        """How well each frame of given rows is predicted from those that `generate_frames` would see before it.

        Args:
            input_ids: (B, 1 + F * tokens_per_frame), a start token and F whole frames, no padding or end token; F may
                exceed the model's context.
            drop_frames, recompute: as in `generate_frames`.
        Returns:
            float32 (B, F), mean negative log-likelihood of the frame's codes in nats, over the whole vocabulary as in
            training.
        Raises:
            ValueError: rows that are not a start and whole frames, and what `generate_frames` refuses.
        """
        size = self.config.tokens_per_frame
        frames, rest = divmod(input_ids.shape[1] - 1, size)
        if rest or not frames:
            raise ValueError(f"Rows of {input_ids.shape[1]} ids are not a start token and whole frames of {size}.")
        check_rows(self.config, input_ids[:, : 1 + size], input_ids.shape[1], drop_frames)
        window = FrameWindow(self, input_ids, drop_frames, recompute, use_cache=True)
        losses = torch.empty(len(input_ids), frames, device=input_ids.device)
        was_training = self.training
        self.eval()
        try:
            for frame in range(frames):
                begin, end = 1 + frame * size, 1 + (frame + 1) * size
                window.make_room(end)
                logits = window.plain_logits(end - 1, size).float()  # each from the ids before it
                wanted = input_ids[:, begin:end]
                losses[:, frame] = cross_entropy(logits.transpose(1, 2), wanted, reduction="none").mean(dim=1)
        finally:
            self.train(was_training)
        return losses


def check_rows(config, prompt: torch.LongTensor, total: int, drop_frames: int | None) -> None:
    """Refuse a prompt (B, L) that cannot grow to `total` ids.

    Raises:
        ValueError: with one sentence.
    """
    if config.attention_mode == "full":
        raise ValueError(
            "A model with full attention predicts no next token; load it with attention_mode='causal' to draw frames."
        )
    if ((prompt == config.eos_token_id) | (prompt == config.pad_token_id)).any():
        raise ValueError(
            "The prompt contains end or padding ids; make it with add_end_token=False and rows of equal length."
        )
    length, most = prompt.shape[1], context_frames(config)
    beyond = total + 1 > config.max_position_embeddings  # the end token needs a position too
    if config.attention_mode == "prefix" and (beyond or config.prefix_length > length):
        raise ValueError(
            f"The prefix of {config.prefix_length} ids must lie in the prompt of {length}, and a row with a prefix "
            f"cannot go on beyond the model's {most} frames; use attention_mode='causal'."
        )
    if not beyond:
        return
    if (length - 1) % config.tokens_per_frame:
        raise ValueError(
            f"A row of {total} ids outgrows the model's {config.max_position_embeddings} positions, and only whole "
            f"frames can be dropped: the prompt of {length} ids must be a start token and frames of "
            f"{config.tokens_per_frame}."
        )
    if length > 1 + most * config.tokens_per_frame:
        raise ValueError(
            f"The prompt has {(length - 1) // config.tokens_per_frame} frames but the model sees {most}; pass a start "
            f"token and the last {most} frames."
        )
    drop_frames = frames_to_drop(config, drop_frames)
    if not 1 <= drop_frames < most:
        raise ValueError(
            f"The row outgrows the {most} frames that the model sees, so some must leave: drop_frames must be between "
            f"1 and {most - 1}, not {drop_frames}."
            if most > 1
            else "The model sees a single frame: nothing would be left to continue from."
        )


__all__ = ["FrameGenerationMixin", "draw"]
