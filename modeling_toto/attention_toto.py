"""Who sees whom: causal, prefix and full attention, and what a call must fulfil before anything is computed."""

import copy

import torch
from transformers import Cache
from transformers.masking_utils import create_bidirectional_mask, create_causal_mask

from .configuration_toto import ATTENTION_MODES, TotoConfig


def resolve_mode(
    config: TotoConfig, attention_mode: str | None, prefix_length: int | torch.Tensor | None
) -> tuple[str, int | torch.Tensor | None]:
    """The mode and prefix length of a call: what it asks for, or else what the config says.

    Raises:
        ValueError: an unknown mode, a prefix without its length or a length without prefix mode, or a mode that the
            attention implementation cannot do.
    """
    mode = attention_mode or config.attention_mode
    if mode not in ATTENTION_MODES:
        raise ValueError(f"attention_mode {mode!r} is unknown; choose one of {', '.join(ATTENTION_MODES)}.")
    if mode != "prefix":
        if prefix_length is not None:
            raise ValueError(f"prefix_length belongs to attention_mode='prefix', but the mode is {mode!r}.")
        return mode, None
    length = config.prefix_length if prefix_length is None else prefix_length
    if length is None:
        raise ValueError("attention_mode='prefix' needs prefix_length, the number of first tokens that see each other.")
    if isinstance(length, int) and length < 0:
        raise ValueError(f"prefix_length must be 0 or more, not {length}.")
    implementation = config._attn_implementation or ""
    if "flash" in implementation or "paged" in implementation:
        raise ValueError(
            f"{implementation} cannot mask a prefix; load the model with attn_implementation='sdpa', 'flex_attention' "
            "or 'eager'."
        )
    return mode, length


def is_padding_mask(attention_mask) -> bool:
    """True for (B, past + L) with 0 for padding; False for None and for masks that say everything, 4-D or flex."""
    return isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2


def in_prefix(
    length: int,
    prefix_length: int | torch.Tensor,
    attention_mask: torch.Tensor | None,
    device: torch.device,
    past: int | torch.Tensor = 0,
) -> torch.BoolTensor:
    """True for the first `prefix_length` tokens of each row, left padding not counted: (1 or B, L).

    Args:
        length: L, the tokens to tell about, which come after `past` others.
        prefix_length: an integer, or one per row (B,).
        attention_mask: (B, past + L), 0 for padding, or None.
    """
    if isinstance(prefix_length, torch.Tensor):
        prefix_length = prefix_length.to(device).reshape(-1, 1)
    if not is_padding_mask(attention_mask):
        return (torch.arange(length, device=device) + past)[None] < prefix_length
    real = attention_mask.to(device).bool()
    return ((real.cumsum(-1) <= prefix_length) & real)[:, past : past + length]


def next_token_labels(
    labels: torch.LongTensor,
    mode: str,
    prefix_length: int | torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    past: int | torch.Tensor = 0,
) -> torch.LongTensor:
    """Labels (B, L) without those whose token has been seen by what predicts it: -100 inside a prefix.

    Raises:
        ValueError: full attention, under which every token sees the next one.
    """
    if mode == "full":
        raise ValueError(
            "There is no next-token loss under full attention: every token sees the one it should predict. "
            "Use attention_mode='causal' or 'prefix'."
        )
    if mode == "causal":
        return labels
    return labels.masked_fill(in_prefix(labels.shape[1], prefix_length, attention_mask, labels.device, past), -100)


def _at_this_length(cache: Cache) -> Cache:
    """The cache for a flex mask, which is evaluated in the attention, after a static cache has counted the new tokens.

    transformers hands the mask the cache's own counter, and so every query would see one position too many.
    """
    offset = cache.get_query_offset()
    if not isinstance(offset, torch.Tensor):
        return cache
    cache, offset = copy.copy(cache), offset.clone()
    cache.get_query_offset = lambda layer_idx=0: offset
    return cache


def make_mask(
    config: TotoConfig,
    inputs_embeds: torch.Tensor,
    attention_mask: torch.Tensor | None,
    past_key_values: Cache | None,
    position_ids: torch.Tensor | None,
    mode: str = "causal",
    prefix_length: int | torch.Tensor | None = None,
):
    """The mask that the attention implementation takes; None where `is_causal` (or nothing) says the same.

    A mask that is already 4-D, or a flex BlockMask, is passed through.

    Args:
        inputs_embeds: (B, L, D), of which only the shape, dtype and device are read.
        attention_mask: (B, past + L), 0 for padding, or None.
    Raises:
        ValueError: a prefix that reaches beyond the first call of a cached sequence.
    """
    given = (config, inputs_embeds, attention_mask)
    if mode == "full":
        return create_bidirectional_mask(*given)
    if config._attn_implementation == "flex_attention" and past_key_values is not None:
        past_key_values = _at_this_length(past_key_values)
    shared = {"past_key_values": past_key_values, "position_ids": position_ids}
    if mode == "causal" or not (attention_mask is None or is_padding_mask(attention_mask)):
        return create_causal_mask(*given, **shared)
    batch, length = inputs_embeds.shape[:2]
    past = 0 if past_key_values is None else past_key_values.get_seq_length()
    if isinstance(past, torch.Tensor) and torch.compiler.is_compiling():
        raise ValueError("With a static cache, torch.compile needs the prefix mask made outside, by make_mask.")
    if past == 0:
        inside = in_prefix(length, prefix_length, attention_mask, inputs_embeds.device).expand(batch, -1)
        # equal ids see each other; -1 stays causal
        return create_causal_mask(*given, **shared, block_sequence_ids=torch.where(inside, 0, -1))
    longest = int(torch.as_tensor(prefix_length).max())
    if longest > past:
        raise ValueError(
            f"The prefix of {longest} tokens must come in one call, but the cache holds only {past} of them: its first "
            "tokens have not seen the others. Pass the whole prefix at once."
        )
    return create_causal_mask(*given, **shared)


def check_backward(config: TotoConfig, module: torch.nn.Module, device: torch.device) -> None:
    """Refuse what would need a gradient that the attention implementation does not have.

    Raises:
        ValueError: FlexAttention on a CPU outside `torch.no_grad()`.
    """
    if config._attn_implementation != "flex_attention" or device.type != "cpu" or not torch.is_grad_enabled():
        return
    if any(weight.requires_grad for weight in module.parameters()):
        raise ValueError(
            "flex_attention has no backward pass on a CPU: call the model under torch.no_grad(), or load it with "
            "attn_implementation='sdpa' to train."
        )


def check_ids(input_ids: torch.LongTensor, vocab_size: int) -> None:
    """Refuse ids outside the vocabulary: at once on a CPU, without waiting for the device elsewhere.

    Raises:
        ValueError: on a CPU. On other devices an assertion of the device fails, as a check here would have to wait
            for the device at every call.
    """
    if torch.compiler.is_compiling() or input_ids.numel() == 0 or input_ids.device.type == "meta":
        return
    low, high = input_ids.aminmax()
    if input_ids.device.type != "cpu":
        torch._assert_async((low >= 0) & (high < vocab_size), f"an id is outside the vocabulary of {vocab_size}")
    elif low < 0 or high >= vocab_size:
        wrong = int(low if low < 0 else high)
        raise ValueError(
            f"The id {wrong} is outside the vocabulary of {vocab_size}: the ids come from another tokenizer than the "
            "model's, or the padding of labels (-100) was passed as ids."
        )


def check_cache(cache: Cache, batch: int, length: int, num_layers: int, attention_mask: torch.Tensor | None) -> None:
    """Refuse a cache that does not continue with `batch` rows of `length` more tokens.

    Raises:
        ValueError: another model's cache, other rows, no room left, or an attention mask of another length.
    """
    past = cache.get_seq_length()
    if torch.compiler.is_compiling() or (isinstance(past, torch.Tensor) and past.device.type != "cpu"):
        return  # a look at the number would break the graph, or wait for the device
    room = cache.get_max_length() if cache.layers else -1
    if 0 < room < past + length:
        raise ValueError(
            f"The cache has room for {room} tokens, {int(past)} are in it and {length} more do not fit; make it with "
            f"max_cache_len={int(past) + length} or more."
        )
    if past == 0:
        return
    if len(cache.layers) != num_layers:
        raise ValueError(f"The cache has {len(cache.layers)} layers and the model {num_layers}: it is another model's.")
    keys = cache.layers[0].keys
    if keys is not None and keys.ndim == 4 and keys.shape[0] != batch:
        raise ValueError(f"The cache holds {keys.shape[0]} rows and the input {batch}; start with an empty cache.")
    if is_padding_mask(attention_mask) and attention_mask.shape[1] not in (past + length, room):
        raise ValueError(
            f"attention_mask covers {attention_mask.shape[1]} tokens, but the cache holds {int(past)} and {length} "
            f"are new: it must be ({batch}, {int(past) + length})."
        )


def check_length(length: int, past: int | torch.Tensor, most: int) -> None:
    """Refuse a row longer than the positions that the model was trained on.

    Raises:
        ValueError: with both numbers.
    """
    if torch.compiler.is_compiling() or (isinstance(past, torch.Tensor) and past.device.type != "cpu"):
        return
    if past + length > most:
        raise ValueError(
            f"The sequence of {int(past) + length} tokens is longer than the model's {most} positions "
            "(max_position_embeddings): pass fewer frames, or raise it in the config together with a RoPE scaling."
        )
