"""Fast decoding: a preallocated cache, a lean decode step, and a sliding window for rows longer than the context."""

import torch
from torch import nn
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, rotate_half

from .block_toto import CPU_IS_AMD, TotoDecoderLayer, has_plain_weight, kept_dtype


class RoomyLayer(DynamicLayer):
    """A cache layer preallocated for `room` positions and written in place.

    transformers' dynamic cache copies all keys and values at every step (which for 8 rows on a CPU takes as long as
    attending to them); its static cache also attends to the empty positions.

    Under autocast, keys and values are kept in its dtype: attention casts them to it in any case, so a smaller copy
    gives the same numbers. (RoPE returns float32 keys.)
    """

    def __init__(self, room: int):
        super().__init__()
        self.room, self.length = room, 0

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Append key_states, value_states (B, H, new, D) and return all keys and values so far, (B, H, seen, D)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            shape = (*key_states.shape[:2], self.room, key_states.shape[3])
            # zeros, because a window of several ids reads places that are masked but must be finite
            self.key_room = key_states.new_zeros(shape, dtype=kept_dtype(key_states))
            self.value_room = value_states.new_zeros(shape, dtype=kept_dtype(value_states))
        seen, self.length = self.length, self.length + key_states.shape[2]
        self.key_room[:, :, seen : self.length] = key_states
        self.value_room[:, :, seen : self.length] = value_states
        self._show()
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.length

    def crop(self, length: int) -> None:
        """Keep the first `length` positions, and the memory of all."""
        self.length = length
        if self.is_initialized:
            self._show()

    def drop(self, count: int, inv_freq: torch.Tensor) -> None:
        """Drop positions 1..count; later ones move down by `count`, with their keys rotated to the new positions.

        inv_freq (D/2,): RoPE's frequencies. Rotating a key by -count positions gives the key at the lower position
        exactly (up to rounding), since rotations add; values carry no position.
        """
        angles = count * torch.cat((inv_freq, inv_freq)).float()
        cos, sin, left = angles.cos(), angles.sin(), self.length - count
        for start in range(1, left, count):  # `count` at a time: source and destination do not overlap
            new, old = slice(start, min(start + count, left)), slice(start + count, min(start + count, left) + count)
            keys = self.key_room[:, :, old].float()
            self.key_room[:, :, new] = keys * cos - rotate_half(keys) * sin
            self.value_room[:, :, new] = self.value_room[:, :, old]
        self.length = left
        self._show()

    def batch_select_indices(self, indices: torch.LongTensor) -> None:
        """Keep these rows, and the memory of no others."""
        if self.is_initialized:
            self.key_room, self.value_room = self.key_room[indices], self.value_room[indices]
            self._show()

    @property
    def kept_bytes(self) -> int:
        """Memory of all positions, filled or not; 0 before the first update."""
        return self.key_room.nbytes + self.value_room.nbytes if self.is_initialized else 0

    def _show(self) -> None:
        self.keys, self.values = self.key_room[:, :, : self.length], self.value_room[:, :, : self.length]


def attend_to_cache(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Attention of queries q (B, G, n, D) to all keys and values k, v (B, G, seen, D): (B, G, n, D)."""
    if q.shape[2] > 1 or not single_query_is_slow(q):
        return scaled_dot_product_attention(q, k, v, scale=scale)
    return scaled_dot_product_attention(q.repeat(1, 1, 2, 1), k, v, scale=scale)[:, :, :1]


def single_query_is_slow(q: torch.Tensor) -> bool:
    """Whether torch's attention takes longer for one query than for two, as for bfloat16 on AMD's CPUs.

    There it takes two to three times as long (measured, benchmarks/generate.md; the reason was not looked for).
    """
    return q.device.type == "cpu" and q.dtype is torch.bfloat16 and CPU_IS_AMD


def product(weight: torch.Tensor, bias: torch.Tensor | None, rows: int, pack: bool = True):
    """The function x (rows, D) -> x W^T + b (rows, out), for many calls without gradients.

    On a CPU it holds a copy of the weight in oneDNN's layout, to which a plain call converts the weight every time (up
    to half of a step's time in bfloat16). torch.compile cannot trace that layout: there, `pack` is False.
    """
    if pack and packing_pays(weight, rows):
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return lambda x: linear(x, weight, bias)


def joined(rows: int, pack: bool, *layers: nn.Linear):
    """One product for several linear layers with the same input; their outputs are concatenated."""
    if len(layers) == 1:
        return product(layers[0].weight, layers[0].bias, rows, pack)
    bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
    return product(torch.cat([layer.weight for layer in layers]), bias, rows, pack)


def packing_pays(weight: torch.Tensor, rows: int) -> bool:
    """Whether oneDNN's layout is faster: in bfloat16 if the CPU supports it, in float32 for two rows or more."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32 and rows > 1


def why_not_fast(model: nn.Module) -> str | None:
    """The reason why a causal Toto cannot use `DecodeStep`, as a phrase, or None.

    The step calls the model's embeddings, norms and activation but applies the weights of its linear layers itself. It
    would bypass anything that replaces or observes those layers: adapters, quantised layers, hooks, patched forwards.
    """
    if "dynamic" in model.model.rotary_emb.rope_type or model.model.rotary_emb.rope_type == "longrope":
        return "RoPE frequencies that depend on the length of the row"
    devices = {parameter.device for parameter in model.parameters()}
    if torch.device("meta") in devices:
        return "offloaded weights"
    if len(devices) > 1:
        return "weights on several devices"
    if torch.is_autocast_enabled(model.device.type):
        return "autocast"
    if not has_plain_weight(model.lm_head) or model.lm_head.bias is not None:
        return "a head that was replaced"
    passed_by = [model.lm_head]
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        if (type(layer), type(attention), type(mlp)) != (TotoDecoderLayer, LlamaAttention, LlamaMLP):
            return "blocks that were replaced"
        linears = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
        linears += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
        if not all(map(has_plain_weight, linears)):
            return "linear layers that were replaced (adapters or quantisation)"
        passed_by += [layer, attention, mlp, *linears]
    for module in (model, model.model, *passed_by):
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        # transformers' own hooks record hidden states on request, and stay in place afterwards
        if any(hook.__module__ != "transformers.utils.output_capturing" for hook in hooks):
            return "forward hooks"
        if "forward" in vars(module):
            return "a patched forward"
    return None


class DecodeStep:
    """The model's forward for one new id per row, over the filled part of a cache, with logits of codes only.

    It equals the plain forward up to rounding. q, k and v are one matmul, as are gate and up; the head has only the
    rows of codes; RoPE's tables are computed once; no mask and no output object is created. On a CPU it holds a copy of
    the weights, so later changes to the weights have no effect on it.
    """

    def __init__(self, model: nn.Module, cache: DynamicCache, width: int = 1, pack: bool = True):
        """width: number of ids per row in a call. pack: see `product`."""
        rows, room = cache.layers[0].key_room.shape[0] * width, cache.layers[0].room
        base = model.model
        self.model, self.cache = model, cache
        positions = torch.arange(room, device=model.device)
        cos, sin = base.rotary_emb(base.embed_tokens.weight, positions[None])  # (1, room, D) in the weights' dtype
        self.cos, self.sin = cos[0], sin[0]
        self.layers = []
        for layer in base.layers:
            attention, mlp = layer.self_attn, layer.mlp
            self.layers.append(
                (
                    layer,
                    joined(rows, pack, attention.q_proj, attention.k_proj, attention.v_proj),
                    joined(rows, pack, attention.o_proj),
                    joined(rows, pack, mlp.gate_proj, mlp.up_proj),
                    joined(rows, pack, mlp.down_proj),
                )
            )
        self.head = product(model.lm_head.weight[model.config.code_offset :], None, rows, pack)

    @torch.no_grad()  # with gradients, oneDNN falls back to a reference loop a hundred times slower
    def __call__(self, ids: torch.LongTensor) -> torch.Tensor:
        """Append ids (B,) to the cache and return the logits of the next codes, (B, num_codes)."""
        position = self.cache.get_seq_length()

        def attend(memory, queries, keys, values, scale):
            keys, values = memory.update(keys[:, :, None], values[:, :, None])  # (B, G, seen, D)
            # heads that share keys are treated as several queries of one head, so that keys are read once
            queries = queries.reshape(len(queries), keys.shape[1], -1, keys.shape[3])  # (B, G, H / G, D)
            return attend_to_cache(queries, keys, values, scale)

        return self.logits(ids, self.cos[position], self.sin[position], attend)

    def logits(self, ids: torch.LongTensor, cos: torch.Tensor, sin: torch.Tensor, attend) -> torch.Tensor:
        """Logits of the codes that follow ids (R,): (R, num_codes).

        Args:
            cos, sin: RoPE's factors, (D,) or (R, 1, D).
            attend: A function of a layer's cache, queries (R, H, D), keys and values (R, G, D), and the scale of
                scores, that remembers keys and values and returns as many numbers as there are in the queries.
        """
        config, base = self.model.config, self.model.model
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        x = base.embed_tokens(ids)  # (R, hidden)
        if base.embedding_multiplier != 1:
            x = x * base.embedding_multiplier
        for (layer, qkv, out, gate_up, down), memory in zip(self.layers, self.cache.layers, strict=True):
            mixed = qkv(layer.input_layernorm(x)).view(len(ids), heads + 2 * groups, -1)  # (R, H + 2 G, D)
            turned, values = mixed[:, : heads + groups], mixed[:, heads + groups :]
            turned = turned * cos + rotate_half(turned) * sin
            attended = attend(memory, turned[:, :heads], turned[:, heads:], values, layer.self_attn.scaling)
            x = x + out(attended.reshape(len(ids), -1))
            gate, up = gate_up(layer.post_attention_layernorm(x)).chunk(2, dim=-1)
            x = x + down(layer.mlp.act_fn(gate) * up)
        x = base.norm(x)
        if self.model.output_multiplier != 1:
            x = x * self.model.output_multiplier
        return self.head(x)


class FrameWindow:
    """The visible part of rows that may outgrow a causal Toto's context: the start token and the newest whole frames.

    When the next frame does not fit, the `drop_frames` oldest frames are dropped and the others move down, so that the
    model never sees a position it was not trained on. With `recompute`, the exact reference, the remaining frames are
    encoded again each time. Otherwise their keys are rotated to the new positions, but the keys and values of the upper
    layers were computed while the dropped frames were visible and still depend on them.
    """

    def __init__(
        self,
        model: nn.Module,
        ids: torch.LongTensor,
        drop_frames: int | None = None,
        recompute: bool = False,
        use_cache: bool = True,
        room: int | None = None,
    ):
        """room: number of positions for which memory is taken; by default as many as are visible at once."""
        config = model.config
        self.model, self.ids = model, ids  # (B, total), of which only the filled part is read
        self.size = window_size(config, ids.shape[1])
        self.drop_ids, self.recompute = frames_to_drop(config, drop_frames) * config.tokens_per_frame, recompute
        self.dropped = 0  # number of ids dropped so far
        self.cache = self.step = None
        if use_cache:
            self.cache = DynamicCache()
            self.cache.layers = [RoomyLayer(room or self.size) for _ in range(config.num_hidden_layers)]
        self.fast = use_cache and why_not_fast(model) is None

    def make_room(self, end: int) -> None:
        """Drop frames until the ids before `end` fit."""
        while end - self.dropped > self.size:
            self.dropped += self.drop_ids
            if self.cache is None or self.cache.get_seq_length() == 0:
                continue  # nothing is encoded yet
            for layer in self.cache.layers:
                if self.recompute:
                    layer.crop(0)
                else:
                    layer.drop(self.drop_ids, self.model.model.rotary_emb.inv_freq)

    def plain_logits(self, end: int, keep: int) -> torch.Tensor:
        """Logits of the last `keep` of the ids before `end`, by the plain forward: (B, keep, vocab_size)."""
        seen = 0 if self.cache is None else self.cache.get_seq_length()
        new = self.ids[:, max(1, seen) + self.dropped : end]
        if seen == 0:
            new = torch.cat([self.ids[:, :1], new], dim=1)
        return self.model(new, past_key_values=self.cache, use_cache=self.cache is not None, logits_to_keep=keep).logits

    def code_logits(self, end: int) -> torch.Tensor:
        """Logits of the code that follows the ids before `end`: (B, num_codes)."""
        seen = self.cache.get_seq_length() if self.fast else 0
        if seen == 0 or seen + self.dropped != end - 1:  # the first pass, or frames to be encoded again
            return self.plain_logits(end, 1)[:, -1, self.model.config.code_offset :]
        if self.step is None:
            self.step = self.make_step()
        return self.step(self.ids[:, end - 1])

    def make_step(self) -> DecodeStep:
        return DecodeStep(self.model, self.cache)


def window_size(config, total: int) -> int:
    """Number of ids visible at once: all of `total`, or a start token and as many frames as fit.

    A position is kept for the end token, which neither includes.
    """
    if total + 1 <= config.max_position_embeddings:
        return total
    return config.row_length(config.context_frames) - 1


def frames_to_drop(config, drop_frames: int | None, context_frames: int | None = None) -> int:
    """Number of frames dropped at a time: `drop_frames`, or by default a quarter of the context.

    context_frames: frames of the context if it is not the model's whole one. Measured with toto-nano: dropping one at a
    time costs more than four, whether states are kept or recomputed (docs/log.md).
    """
    return max(1, (context_frames or config.context_frames) // 4) if drop_frames is None else drop_frames
