"""One token at a time, fast: a cache with room, a lean decode step, and the window of a row longer than the context."""

import torch
from torch import nn
from torch.nn.functional import linear, scaled_dot_product_attention
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, rotate_half

from .block_toto import TotoDecoderLayer


class RoomyLayer(DynamicLayer):
    """A cache layer with room for `room` positions, written in place.

    transformers' own copies all keys and values at every step (for 8 rows on a CPU as long as attending to them); its
    static cache attends to the empty positions as well.
    """

    def __init__(self, room: int):
        super().__init__()
        self.room, self.length = room, 0

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """key_states, value_states (B, H, new, D) -> everything seen so far (B, H, seen, D)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            shape = (*key_states.shape[:2], self.room, key_states.shape[3])
            self.key_room, self.value_room = key_states.new_empty(shape), value_states.new_empty(shape)
        seen, self.length = self.length, self.length + key_states.shape[2]
        self.key_room[:, :, seen : self.length] = key_states
        self.value_room[:, :, seen : self.length] = value_states
        self._show()
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.length

    def clear(self) -> None:
        """Forget everything and keep the room."""
        self.length = 0
        if self.is_initialized:
            self._show()

    def drop(self, count: int, inv_freq: torch.Tensor) -> None:
        """Forget positions 1..count: what follows moves down by `count`, its keys turned to where they now are.

        inv_freq (D/2,): RoPE's frequencies. Turning a key by -count positions gives the key of the lower position
        exactly (up to rounding), since rotations add; values carry no position.
        """
        angles = count * torch.cat((inv_freq, inv_freq)).float()
        keys = self.keys[:, :, 1 + count :].float()
        keys = keys * angles.cos() - rotate_half(keys) * angles.sin()
        values = self.values[:, :, 1 + count :].clone()  # source and goal overlap
        self.length -= count
        self._show()
        self.keys[:, :, 1:] = keys
        self.values[:, :, 1:] = values

    def _show(self) -> None:
        self.keys, self.values = self.key_room[:, :, : self.length], self.value_room[:, :, : self.length]


def product(weight: torch.Tensor, bias: torch.Tensor | None, rows: int):
    """x (rows, D) -> x W^T + b (rows, out), as a function to be called many times, without gradients.

    On a CPU the weight is laid out as oneDNN's kernels want it, once, where a plain call does so every time (up to half
    of a step's time in bfloat16); that is a copy of it.
    """
    if packing_pays(weight, rows):
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return lambda x: linear(x, weight, bias)


def joined(rows: int, *layers: nn.Linear):
    """One product for several linear layers of the same input: their outputs side by side."""
    if len(layers) == 1:
        return product(layers[0].weight, layers[0].bias, rows)
    bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
    return product(torch.cat([layer.weight for layer in layers]), bias, rows)


def packing_pays(weight: torch.Tensor, rows: int) -> bool:
    """Whether oneDNN's own layout is faster: in bfloat16 where the CPU has it, in float32 from two rows on."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32 and rows > 1


def why_not_fast(model: nn.Module) -> str | None:
    """What keeps a causal Toto from `DecodeStep`, as a phrase; None where nothing does.

    The step calls the model's embeddings, norms and activation but applies the weights of its linear layers itself, so
    whatever replaces or watches those layers would go unseen: adapters, quantised layers, hooks, patched forwards.
    """
    if "dynamic" in model.model.rotary_emb.rope_type or model.model.rotary_emb.rope_type == "longrope":
        return "RoPE frequencies that depend on the length of the row"
    if len({parameter.device for parameter in model.parameters()}) > 1:
        return "weights on several devices"
    if torch.is_autocast_enabled(model.device.type):
        return "autocast"
    if type(model.lm_head) is not nn.Linear or model.lm_head.bias is not None:
        return "a head that was replaced"
    passed_by = [model.lm_head]
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        if (type(layer), type(attention), type(mlp)) != (TotoDecoderLayer, LlamaAttention, LlamaMLP):
            return "blocks that were replaced"
        linears = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
        linears += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
        if any(type(part) is not nn.Linear for part in linears):
            return "linear layers that were replaced (adapters or quantisation)"
        passed_by += [layer, attention, mlp, *linears]
    for module in (model, model.model, *passed_by):
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        # those of transformers record hidden states when a call asks for them, and stay in place afterwards
        if any(hook.__module__ != "transformers.utils.output_capturing" for hook in hooks):
            return "forward hooks"
        if "forward" in vars(module):
            return "a patched forward"
    return None


class DecodeStep:
    """The model's forward for one new id per row, over the filled part of a cache, with logits of codes only.

    The same numbers as the plain forward, up to rounding: q, k, v and gate, up are one matmul each, the head has only
    the rows of codes, RoPE's tables are made once, no mask and no output object is made. Holds a copy of the weights
    while it lives (on a CPU), so weights that change later go unseen.
    """

    def __init__(self, model: nn.Module, cache: DynamicCache):
        rows, room = cache.layers[0].key_room.shape[0], cache.layers[0].room
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
                    joined(rows, attention.q_proj, attention.k_proj, attention.v_proj),
                    joined(rows, attention.o_proj),
                    joined(rows, mlp.gate_proj, mlp.up_proj),
                    joined(rows, mlp.down_proj),
                )
            )
        self.head = product(model.lm_head.weight[model.config.code_offset :], None, rows)

    @torch.no_grad()  # with gradients, oneDNN falls back to a reference loop a hundred times slower
    def __call__(self, ids: torch.LongTensor) -> torch.Tensor:
        """ids (B,), which enter the cache -> logits of the codes that may follow, (B, num_codes)."""
        config, base = self.model.config, self.model.model
        heads, groups = config.num_attention_heads, config.num_key_value_heads
        position = self.cache.get_seq_length()
        cos, sin = self.cos[position], self.sin[position]  # (D,)
        x = base.embed_tokens(ids)  # (B, hidden)
        if base.embedding_multiplier != 1:
            x = x * base.embedding_multiplier
        for (layer, qkv, out, gate_up, down), memory in zip(self.layers, self.cache.layers, strict=True):
            mixed = qkv(layer.input_layernorm(x)).view(len(ids), heads + 2 * groups, 1, -1)  # (B, H + 2 G, 1, D)
            turned, value = mixed[:, : heads + groups], mixed[:, heads + groups :]
            turned = turned * cos + rotate_half(turned) * sin
            keys, values = memory.update(turned[:, heads:], value)  # (B, G, seen, D)
            # the heads that share keys stand in as several queries of one head: keys are read once
            queries = turned[:, :heads].reshape(len(ids), groups, heads // groups, -1)
            attended = scaled_dot_product_attention(queries, keys, values, scale=layer.self_attn.scaling)
            x = x + out(attended.reshape(len(ids), -1))
            gate, up = gate_up(layer.post_attention_layernorm(x)).chunk(2, dim=-1)
            x = x + down(layer.mlp.act_fn(gate) * up)
        x = base.norm(x)
        if self.model.output_multiplier != 1:
            x = x * self.model.output_multiplier
        return self.head(x)


class FrameWindow:
    """What a causal Toto sees of rows that may outgrow its context: the start token and the newest whole frames.

    Where the next frame does not fit, `drop_frames` oldest frames leave and the others move down, so that no position
    is one that the model was not trained on. With `recompute` the frames kept are encoded afresh each time: the exact
    reference. Otherwise their keys are turned to the new positions; but keys and values of the upper layers were made
    when the dropped frames could still be seen, and go on remembering them.
    """

    def __init__(
        self,
        model: nn.Module,
        ids: torch.LongTensor,
        drop_frames: int | None = None,
        recompute: bool = False,
        use_cache: bool = True,
    ):
        config = model.config
        self.model, self.ids = model, ids  # (B, total), read up to the position asked for
        self.size = window_size(config, ids.shape[1])
        self.drop_ids, self.recompute = frames_to_drop(config, drop_frames) * config.tokens_per_frame, recompute
        self.dropped = 0  # ids that have left
        self.cache = self.step = None
        if use_cache:
            self.cache = DynamicCache()
            self.cache.layers = [RoomyLayer(self.size) for _ in range(config.num_hidden_layers)]
        self.fast = use_cache and why_not_fast(model) is None

    def make_room(self, end: int) -> None:
        """Drop frames until the ids before `end` fit."""
        while end - self.dropped > self.size:
            self.dropped += self.drop_ids
            if self.cache is None or self.cache.get_seq_length() == 0:
                continue  # nothing was encoded yet
            for layer in self.cache.layers:
                if self.recompute:
                    layer.clear()
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
        if seen == 0 or seen + self.dropped != end - 1:  # the first pass, or frames to be encoded afresh
            return self.plain_logits(end, 1)[:, -1, self.model.config.code_offset :]
        if self.step is None:
            self.step = DecodeStep(self.model, self.cache)
        return self.step(self.ids[:, end - 1])


def window_size(config, total: int) -> int:
    """Ids that the model sees at once: all of `total`, or where they do not fit a start and as many frames as do.

    The end token keeps its position: a full row is start + frames + end.
    """
    if total + 1 <= config.max_position_embeddings:
        return total
    return 1 + context_frames(config) * config.tokens_per_frame


def context_frames(config) -> int:
    """Whole frames between start and end token in the model's context."""
    return (config.max_position_embeddings - 2) // config.tokens_per_frame


def frames_to_drop(config, drop_frames: int | None) -> int:
    """How many frames leave at a time: what was asked for, or a quarter of the context.

    Measured with toto-nano: one at a time costs more than four, whether states are kept or made afresh (docs/log.md).
    """
    return max(1, context_frames(config) // 4) if drop_frames is None else drop_frames
