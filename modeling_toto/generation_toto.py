"""Drawing frames: rows of ids in, the same rows with whole new frames of codes out."""

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.utils import logging


class RoomyLayer(DynamicLayer):
    """A cache layer with room for `max_length` positions, written in place.

    transformers' own copies all keys and values at every step (a quarter of a step's time for 8 rows on a CPU); its
    static cache attends to the empty positions as well.
    """

    def __init__(self, max_length: int):
        super().__init__()
        self.max_length = max_length

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """key_states, value_states (B, H, new, D) -> everything seen so far (B, H, seen, D)."""
        seen = self.get_seq_length()
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            shape = (*key_states.shape[:2], self.max_length, key_states.shape[3])
            self.key_room, self.value_room = key_states.new_empty(shape), value_states.new_empty(shape)
        total = seen + key_states.shape[2]
        self.key_room[:, :, seen:total] = key_states
        self.value_room[:, :, seen:total] = value_states
        self.keys, self.values = self.key_room[:, :, :total], self.value_room[:, :, :total]
        return self.keys, self.values


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
    """Adds `generate_frames` to a causal language model with a TotoConfig."""

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
    ) -> torch.LongTensor:
        """Continue every row by `num_frames` frames (paper App. A.10 prompts with real frames in the same way).

        input_ids (B, L): equally long prompts without padding or end token -> (B, L + num_frames * tokens_per_frame).
        Only codes can be drawn, never a special id, so the result decodes. `progress` shows a bar that moves once per
        frame; `use_cache=False` recomputes everything at each step (slow; for checks).
        Raises ValueError for a prompt that cannot be continued, a result too long for the model, or sampling options
        out of range.
        """
        config = self.config
        total = input_ids.shape[1] + num_frames * config.tokens_per_frame
        if num_frames < 1:
            raise ValueError(f"num_frames is {num_frames}; ask for at least one frame.")
        if total + 1 > config.max_position_embeddings:  # the end token needs a position too
            most = max(0, (config.max_position_embeddings - 1 - input_ids.shape[1]) // config.tokens_per_frame)
            raise ValueError(
                f"A prompt of {input_ids.shape[1]} ids and {num_frames} new frames of {config.tokens_per_frame} do not "
                f"fit the model's {config.max_position_embeddings} positions; ask for at most {most} frames or shorten "
                "the prompt."
            )
        if ((input_ids == config.eos_token_id) | (input_ids == config.pad_token_id)).any():
            raise ValueError(
                "The prompt contains end or padding ids; make it with add_end_token=False and rows of equal length."
            )
        if temperature < 0 or (top_k is not None and top_k < 1) or (top_p is not None and not 0 < top_p <= 1):
            raise ValueError(
                f"temperature={temperature}, top_k={top_k}, top_p={top_p}: use temperature >= 0, top_k >= 1 and "
                "0 < top_p <= 1."
            )

        ids = torch.empty(input_ids.shape[0], total, dtype=torch.long, device=input_ids.device)
        ids[:, : input_ids.shape[1]] = input_ids
        cache = None
        if use_cache:
            cache = DynamicCache()
            cache.layers = [RoomyLayer(total) for _ in range(config.num_hidden_layers)]
        was_training = self.training
        self.eval()  # gradient checkpointing, active in training mode, would drop the cache
        try:
            position = input_ids.shape[1]
            for _ in logging.tqdm(range(num_frames), desc="frames", disable=not progress):
                for _ in range(config.tokens_per_frame):
                    seen = cache.get_seq_length() if use_cache else 0
                    outputs = self(ids[:, seen:position], past_key_values=cache, use_cache=use_cache, logits_to_keep=1)
                    codes = draw(outputs.logits[:, -1, config.code_offset :], temperature, top_k, top_p, generator)
                    ids[:, position] = codes + config.code_offset
                    position += 1
        finally:
            self.train(was_training)
        return ids


__all__ = ["FrameGenerationMixin", "draw"]
