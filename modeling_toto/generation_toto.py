"""Generation of whole frames: rows of ids in, the same rows followed by new frames of codes out."""

import time
from functools import partial

import torch
from torch.nn.functional import cross_entropy
from transformers.utils import logging

from .decoding_toto import FrameWindow, frames_to_drop, why_not_fast
from .graph_toto import StaticWindow
from .parallel_toto import ParallelWindow


def draw(
    logits: torch.Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> torch.LongTensor:
    """Sample one integer below K per row: logits (B, K) -> (B,).

    temperature 0 selects the most likely one. top_k keeps the k most likely; top_p then keeps the smallest set whose
    probability reaches p. Sampling happens in float32, with noise from the generator's device.
    """
    noise = None if temperature == 0 else noise_of_draws(*logits.shape, generator, logits.device)
    return pick(logits, noise, temperature, top_k, top_p)


def noise_of_draws(rows: int, choices: int, generator: torch.Generator | None, device) -> torch.Tensor:
    """Independent exponential variables, float32 (rows, choices): the only randomness in a draw of each row."""
    source = device if generator is None else generator.device
    return torch.empty(rows, choices, device=source).exponential_(generator=generator).to(device)


def pick(
    logits: torch.Tensor, noise: torch.Tensor | None, temperature: float, top_k: int | None, top_p: float | None
) -> torch.LongTensor:
    """The draw that `noise` decides: logits and noise (..., K) -> (...), with the options of `draw`.

    The choice with the largest p / noise is k with probability p_k, because noise / p_k is exponential with rate p_k
    and the first of several such events is event k with probability p_k. torch.multinomial draws so too.
    """
    if temperature == 0:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.shape[-1]:
        smallest_kept = logits.topk(top_k).values[..., -1:]
        logits = logits.masked_fill(logits < smallest_kept, -torch.inf)
    probabilities = logits.softmax(-1)
    if top_p is not None and top_p < 1:
        ordered, order = probabilities.sort(descending=True, stable=True)
        before = ordered.cumsum(-1) - ordered  # mass of all more likely ones: 0 for the first, so at least one is kept
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, ordered.masked_fill(before >= top_p, 0.0))
    return (probabilities / noise).argmax(-1)


class FrameGenerationMixin:
    """Mixin that adds `generate_frames` and `score_frames` to a causal language model with a TotoConfig."""

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
        parallel: int | None = None,
        compiled: bool = False,
        graph: bool | None = None,
    ) -> torch.LongTensor:
        """Continue every row by `num_frames` frames, as the paper does from real frames (App. A.10).

        If a row outgrows the model's context, its oldest frames are dropped from the context and the start token is
        kept (paper silent; ours), so a 16-frame model can generate 64. Only codes are sampled, never special ids, so
        the result can always be decoded.

        Args:
            input_ids: Prompts (B, L) of equal length, with a start token and without padding or end token.
            num_frames: Number of new frames.
            temperature, top_k, top_p, generator: As in `draw`.
            progress: Show a progress bar over frames.
            use_cache: False recomputes everything at each step (slow; for checks).
            drop_frames: Number of oldest frames to drop at a time; a quarter of the context by default.
            recompute: Encode the remaining frames again whenever some are dropped, which gives exactly the model's
                predictions from the visible frames. Otherwise the cached states are kept and their keys rotated to
                their new positions: faster, but the states still depend on the dropped frames. `score_frames`
                measures the difference.
            parallel: Number of places of a frame evaluated in one forward, at most a frame (see parallel_toto). The ids
                are those of ordinary decoding with the same generator, at every temperature, unless two choices are
                equally good up to rounding. Needs memory for the noise of a frame, B x tokens_per_frame x num_codes
                floats, unless the temperature is 0.
            compiled: Use torch.compile for a step whose shapes do not depend on the length. It reads the whole context
                at every step and is meant for GPUs. One compilation serves all calls of equal B and `parallel`.
            graph: Replay the steps of ordinary decoding as CUDA graphs, over keys whose number is a power of two (see
                graph_toto). By default on CUDA, where the model allows it; False switches it off. True on another
                device takes the same step without a graph, for checks. Logits are those of ordinary decoding up to
                rounding.
        Returns:
            Ids (B, L + num_frames * tokens_per_frame), including dropped frames.
        Raises:
            ValueError: If the prompt cannot be continued, attention is full or has a prefix longer than the prompt, an
                option is out of range, or `parallel`, `compiled` or `graph` is set for a model with other layers than
                Toto's, or with options that exclude it.
        """
        config = self.config
        length, total = input_ids.shape[1], input_ids.shape[1] + num_frames * config.tokens_per_frame
        if num_frames < 1:
            raise ValueError(f"num_frames is {num_frames}; set 1 or more.")
        check_rows(config, input_ids, total, drop_frames)
        if temperature < 0 or (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
            raise ValueError(
                f"The sampling options are temperature={temperature}, top_k={top_k}, top_p={top_p}; use temperature >= "
                "0, top_k >= 1 and 0 < top_p <= 1."
            )
        at_once = parallel is not None or compiled
        if at_once:
            check_parallel(self, parallel, use_cache)
        if graph is None:
            graph = input_ids.device.type == "cuda" and use_cache and not at_once and why_not_fast(self) is None
        elif graph:
            check_graph(self, at_once, use_cache)

        ids = torch.empty(input_ids.shape[0], total, dtype=torch.long, device=input_ids.device)
        ids[:, :length] = input_ids
        if at_once:
            window = ParallelWindow(self, ids, drop_frames, recompute, parallel or 1, compiled)
        elif graph:
            window = StaticWindow(self, ids, drop_frames, recompute)
        else:
            window = FrameWindow(self, ids, drop_frames, recompute, use_cache)
        choose = partial(pick, temperature=temperature, top_k=top_k, top_p=top_p)
        was_training = self.training
        self.eval()  # gradient checkpointing, active in training mode, would discard the cache
        try:
            bar = logging.tqdm(range(length, total, config.tokens_per_frame), desc="frames", disable=not progress)
            for begin in bar:
                began, end = time.perf_counter(), begin + config.tokens_per_frame
                window.make_room(end)
                if at_once:
                    noise = None
                    if temperature > 0:  # as much, and in the same order, as below
                        shape = len(ids), config.num_codes
                        noise = [noise_of_draws(*shape, generator, ids.device) for _ in range(begin, end)]
                    window.draw_frame(begin, end, choose, None if noise is None else torch.stack(noise, dim=1))
                else:
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
        """Loss of each frame, predicted from the frames that `generate_frames` would see before it.

        Args:
            input_ids: (B, 1 + F * tokens_per_frame): a start token and F whole frames, without padding or end token. F
                may exceed the model's context.
            drop_frames, recompute: As in `generate_frames`.
        Returns:
            float32 (B, F): mean negative log-likelihood of the frame's codes in nats, over the whole vocabulary as in
            training.
        Raises:
            ValueError: If rows are not a start token and whole frames, or `generate_frames` raises it.
        """
        size = self.config.tokens_per_frame
        frames, rest = divmod(input_ids.shape[1] - 1, size)
        if rest or not frames:
            raise ValueError(
                f"input_ids has rows of {input_ids.shape[1]} ids; pass a start token and whole frames of {size} ids."
            )
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


def check_parallel(model, parallel: int | None, use_cache: bool) -> None:
    """Raise ValueError if a model cannot draw `parallel` places at once."""
    if parallel is not None and not 1 <= parallel <= model.config.tokens_per_frame:
        raise ValueError(
            f"parallel is {parallel}; set 1 to {model.config.tokens_per_frame}, the tokens of a frame, or None."
        )
    if not use_cache:
        raise ValueError("parallel and compiled need the cache; leave use_cache at True.")
    if reason := why_not_fast(model):
        raise ValueError(
            f"parallel and compiled apply the weights of plain layers themselves, but the model has {reason}; leave "
            "both out, or merge the adapters."
        )


def check_graph(model, at_once: bool, use_cache: bool) -> None:
    """Raise ValueError if ordinary decoding with `graph` is impossible."""
    if at_once or not use_cache:
        raise ValueError("graph is an option of ordinary decoding with the cache; leave it out, or the other options.")
    if reason := why_not_fast(model):
        raise ValueError(
            f"graph applies the weights of plain layers itself, but the model has {reason}; leave it out, or merge the "
            "adapters."
        )


def check_rows(config, prompt: torch.LongTensor, total: int, drop_frames: int | None) -> None:
    """Raise ValueError if a prompt (B, L) cannot be continued to `total` ids."""
    if config.attention_mode == "full":
        raise ValueError(
            "A model with full attention predicts no next token; load it with attention_mode='causal' to generate."
        )
    if ((prompt == config.eos_token_id) | (prompt == config.pad_token_id)).any():
        raise ValueError(
            "The prompt contains end or padding ids; create it with add_end_token=False and rows of equal length."
        )
    length, most = prompt.shape[1], config.context_frames
    beyond = total + 1 > config.max_position_embeddings  # the end token needs a position too
    if config.attention_mode == "prefix" and (beyond or config.prefix_length > length):
        raise ValueError(
            f"prefix_length is {config.prefix_length}, the prompt has {length} ids and the model's context {most} "
            "frames; keep the prefix within the prompt and the row within the context, or use attention_mode='causal'."
        )
    if not beyond:
        return
    if (length - 1) % config.tokens_per_frame:
        raise ValueError(
            f"The row of {total} ids exceeds the model's {config.max_position_embeddings} positions, and only whole "
            f"frames can be dropped, but the prompt has {length} ids; pass a start token and whole frames of "
            f"{config.tokens_per_frame} ids."
        )
    if length >= config.row_length(most):  # a prompt has no end token
        raise ValueError(
            f"The prompt has {(length - 1) // config.tokens_per_frame} frames but the model sees {most}; pass a start "
            f"token and the last {most} frames."
        )
    if most == 1:
        raise ValueError(
            "The model's context is a single frame, so dropping it leaves nothing to continue from; generate fewer "
            "frames."
        )
    drop_frames = frames_to_drop(config, drop_frames)
    if not 1 <= drop_frames < most:
        raise ValueError(
            f"drop_frames is {drop_frames}, but the row exceeds the model's context of {most} frames; set 1 to "
            f"{most - 1}."
        )


__all__ = ["FrameGenerationMixin", "draw"]
