"""Bytes that training takes on a device, counted from the code (no GPU has confirmed them)."""

from __future__ import annotations


def block_bytes(config, precision: str) -> int:
    """Bytes that a block keeps of a token for its backward pass (modeling_toto/block_toto.py).

    The residual stream before and after the attention in float32; queries, keys, values and what the attention gave in
    `precision` ("bf16" or "fp32"), and so the gate and the up projection.
    """
    size = 2 if precision == "bf16" else 4
    return 4 * 2 * config.hidden_size + size * (4 * config.hidden_size + 2 * config.intermediate_size)


def memory_of(
    config,
    parameters: int,
    rows: int,
    accumulation: int,
    *,
    checkpointing: bool,
    gpus: int,
    is_sharded: bool,
    precision: str,
) -> dict[str, float]:
    """Bytes on one of `gpus` devices by what they are for, at `rows` rows at a time.

    weights, moments: float32, AdamW's two. gradients: float32, under DDP in its buckets; FSDP2 holds them whole beside
        its share while it accumulates.
    activations: `block_bytes` of every block; with gradient checkpointing the residual stream between the blocks, and
        one block's at a time.
    logits: none, since the loss makes and drops them in chunks.
    work: what the backward pass of one block makes at once (4 MLP widths and 5 widths in `precision`, 4 widths in
        float32), the head's gradient in float32, and a block's weights cast to `precision`; under FSDP2, which gathers
        the next block while one is at work, also two blocks' with a gradient each, and the embeddings twice, float32.
    """
    d, width, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    is_sharded = is_sharded and gpus > 1
    share = gpus if is_sharded else 1
    tokens, size = rows * config.max_position_embeddings, 2 if precision == "bf16" else 4
    block, head, kept = 4 * d * d + 3 * d * width, config.vocab_size * d, block_bytes(config, precision)
    gradients = 4 * parameters / share
    if is_sharded:
        gradients += 4 * parameters if accumulation > 1 else 0
    copies = size * block + (4 * (4 * block + 2 * head) if is_sharded else 0)
    return {
        "weights": 4 * parameters / share,
        "gradients": gradients,
        "moments": 8 * parameters / share,
        "activations": tokens * (4 * layers * d + kept if checkpointing else layers * kept),
        "logits": 0,
        "work": tokens * (size * (4 * width + 5 * d) + 4 * 4 * d) + 4 * head + copies,
    }
