"""A decoder block for training: Llama's results with half the memory for the backward pass and fewer memory sweeps.

Autograd saves every intermediate result of a block: two copies of each normalised input, autocast's casts, the
activation and its product. Here two autograd functions, before and after the attention, save only the residual stream,
the queries, keys and values, and the gate and up projections. The rest is elementwise and recomputed in the backward
pass; no matrix product is repeated.

Under bfloat16 autocast the saved tensors are bfloat16. So are the products, except on a CPU where bfloat16 is slower
than float32: there they are computed in float32, which is at least as exact.
"""

import torch
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from .cpu_attention_toto import FloatAttention, StripAttention

# Number of elements of the widest temporary matrix: small in float32, to save memory; larger in bfloat16, which is used
# only where its products are fast, so that the weights' gradients are summed over fewer pieces.
PIECE = {torch.float32: 3 * 2**20, torch.bfloat16: 12 * 2**20, torch.float16: 12 * 2**20}
# Number of elements processed by elementwise operations at a time, which fit in a core's cache.
SWEEP = 2**19


def cpu_bf16_is_fast() -> bool:
    """Whether matrix products on this CPU are faster in bfloat16 than in float32.

    Of the CPUs with AVX512-BF16 but no AMX, AMD's are faster and Intel's slower (docs/log.md). `tokenization.precision`
    has the same function, because a model's files on the Hub cannot import a tokenizer's.
    """
    cpu = torch.cpu.get_capabilities()
    return bool(cpu.get("amx_bf16") or (cpu_is_amd() and cpu.get("avx512_bf16")))


def cpu_is_amd() -> bool:
    return torch.cpu.get_capabilities().get("cpu_name", "").startswith("AMD")


CPU_BF16_IS_FAST, CPU_IS_AMD = cpu_bf16_is_fast(), cpu_is_amd()


def kept_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype in which activations are saved: autocast's if enabled, otherwise their own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype in which matrix products of `dtype` are computed on this device."""
    if dtype is torch.bfloat16 and device.type == "cpu" and not CPU_BF16_IS_FAST:
        return torch.float32
    return dtype


def cpu_kernel(q: torch.Tensor, k: torch.Tensor) -> type[torch.autograd.Function] | None:
    """The function for causal attention that is faster than torch's on this CPU, or None; q, k (B, H, T, d)."""
    if q.device.type != "cpu" or q.dtype is not torch.bfloat16:
        return None
    if CPU_BF16_IS_FAST:
        return None if torch.compiler.is_compiling() else StripAttention
    return FloatAttention if k.shape[1] == q.shape[1] else None


def has_plain_weight(layer: nn.Module) -> bool:
    """Whether this is a linear layer with an ordinary weight, which a quantised one (torchao) is not."""
    return type(layer) is nn.Linear and type(layer.weight) is nn.Parameter


def is_plain(layer: nn.Module, device: torch.device) -> bool:
    """Whether a linear layer may be replaced by products with its weight.

    Not if it is wrapped or hooked, quantised, or offloaded, in which case its weight is elsewhere until the layer is
    called.
    """
    return (
        has_plain_weight(layer)
        and layer.weight.device == device
        and "forward" not in vars(layer)
        and not layer._forward_pre_hooks
        and not layer._forward_hooks
    )


def _slices(tensor: torch.Tensor, step: int | None = None) -> list[slice]:
    """Slices of a tensor's rows, `step` rows or by default SWEEP elements each.

    A single slice on devices other than a CPU, and under torch.compile, which fuses the operations.
    """
    length = len(tensor)
    if step is None:
        step = max(1, SWEEP * length // tensor.numel())
    if tensor.device.type != "cpu" or torch.compiler.is_compiling():
        step = length
    return [slice(start, min(length, start + step)) for start in range(0, length, step)]


def _unit(x: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """x (N, D) -> x / rms(x) in float32, and 1 / rms(x) (N, 1)."""
    x = x.float()
    inverse = (x * x).mean(-1, keepdim=True).add_(eps).rsqrt_()
    return x * inverse, inverse


def _norm(x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
    """RMSNorm of (N, D), computed in float32 and returned in `dtype`."""
    out = torch.empty_like(x, dtype=dtype)
    for rows in _slices(x):
        torch.mul(_unit(x[rows], eps)[0], weight, out=out[rows])
    return out


def _norm_backward(
    d_out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float, d_weight: torch.Tensor, d_x: torch.Tensor
) -> None:
    """Add the gradient of `_norm`'s input to d_x (N, D) and that of its weight to d_weight (D,), float32."""
    for rows in _slices(x):
        unit, inverse = _unit(x[rows], eps)
        part = d_out[rows].float()
        d_weight += (part * unit).sum(0)
        part = part * weight
        d_x[rows] += part.sub_(unit.mul_((part * unit).mean(-1, keepdim=True))).mul_(inverse)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor, back: bool = False) -> None:
    """Write RoPE of x (N, H, d) by cos, sin (N, 1, d / 2), or with `back` its inverse, to out (N, H, d)."""
    for rows in _slices(x):
        first, second = x[rows].float().chunk(2, dim=-1)
        c, s = cos[rows], -sin[rows] if back else sin[rows]
        left, right = out[rows].chunk(2, dim=-1)  # not contiguous: torch.compile supports no `out=` for them
        left.copy_((first * c).sub_(second * s))
        right.copy_((second * c).add_(first * s))


def _linear(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """x (N, I) weight^T -> (N, O) in x's dtype, also written to `out`, whose dtype may differ."""
    if out.dtype == x.dtype:
        return torch.mm(x, weight.T, out=out)
    product = F.linear(x, weight)
    out.copy_(product)
    return product


def add_outer(total: torch.Tensor | None, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """The sum of `total`, if any, and left^T right (O, I), a weight's gradient; left is (N, O), right (N, I)."""
    if total is None:
        return left.T @ right
    return total.addmm_(left.T, right) if total.dtype == left.dtype else total.add_(left.T @ right)


class _BeforeAttention(torch.autograd.Function):
    """x (B, T, D) -> norm -> queries and keys (both rotated by RoPE) and values, (B, T, H, d) each."""

    @staticmethod
    def forward(ctx, x, norm, w_q, w_k, w_v, cos, sin, eps, head_dim):
        kept = kept_dtype(x)
        dtype = product_dtype(kept, x.device)
        # one row of the tables per token: (B * T, 1, d / 2)
        tables = [
            table[..., : head_dim // 2].expand(len(x), -1, -1).reshape(-1, 1, head_dim // 2) for table in (cos, sin)
        ]
        flat = x.flatten(0, 1)
        outs = [
            torch.empty(*x.shape[:2], len(w) // head_dim, head_dim, dtype=kept, device=x.device)
            for w in (w_q, w_k, w_v)
        ]
        q, k, v = (out.flatten(0, 1) for out in outs)
        with torch.autocast(x.device.type, enabled=False):
            weights = [w.to(dtype) for w in (w_q, w_k, w_v)]
            for rows in _slices(flat, PIECE[dtype] // (4 * x.shape[-1])):
                normed = _norm(flat[rows], norm, eps, dtype)
                turn = [table[rows] for table in tables]
                _rotate(F.linear(normed, weights[0]).unflatten(-1, q.shape[1:]), *turn, q[rows])
                _rotate(F.linear(normed, weights[1]).unflatten(-1, k.shape[1:]), *turn, k[rows])
                _linear(normed, weights[2], v[rows].flatten(1))
        ctx.save_for_backward(x, norm, w_q, w_k, w_v, *tables)
        ctx.eps, ctx.dtype = eps, dtype
        return tuple(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx, *d_outs):
        x, norm, w_q, w_k, w_v, cos, sin = ctx.saved_tensors
        dtype = ctx.dtype
        flat, d_x = x.flatten(0, 1), torch.zeros_like(x)
        d_norm = torch.zeros_like(norm, dtype=torch.float32)
        d_q, d_k, d_v = (d_out.flatten(0, 1) for d_out in d_outs)
        totals = [None] * 3
        with torch.autocast(x.device.type, enabled=False):
            weights = [w.to(dtype) for w in (w_q, w_k, w_v)]
            for rows in _slices(flat, PIECE[dtype] // (4 * x.shape[-1])):
                normed = _norm(flat[rows], norm, ctx.eps, dtype)
                turned = [torch.empty_like(d[rows], dtype=dtype) for d in (d_q, d_k)]
                for part, back in zip((d_q, d_k), turned, strict=True):
                    _rotate(part[rows], cos[rows], sin[rows], back, back=True)
                parts = [part.flatten(1) for part in (*turned, d_v[rows].to(dtype))]
                totals = [add_outer(total, part, normed) for total, part in zip(totals, parts, strict=True)]
                d_normed = parts[0] @ weights[0]
                for part, weight in zip(parts[1:], weights[1:], strict=True):
                    d_normed.addmm_(part, weight)
                _norm_backward(d_normed, flat[rows], norm, ctx.eps, d_norm, d_x.flatten(0, 1)[rows])
        return d_x, d_norm.to(norm.dtype), *(total.to(w_q.dtype) for total in totals), None, None, None, None


class _AfterAttention(torch.autograd.Function):
    """x (B, T, D) and the attention's output (B, T, H * d) -> y + MLP(norm(y)), where y = x + attention W_o."""

    @staticmethod
    def forward(ctx, x, attention, w_o, norm, w_gate, w_up, w_down, eps):
        kept = attention.dtype
        dtype = product_dtype(kept, x.device)
        flat, mixed = x.flatten(0, 1), attention.flatten(0, 1)
        middle, out = torch.empty_like(flat), torch.empty_like(x)
        gate, up = (torch.empty(len(flat), len(w), dtype=kept, device=x.device) for w in (w_gate, w_up))
        with torch.autocast(x.device.type, enabled=False):
            o, g, u, d = (w.to(dtype) for w in (w_o, w_gate, w_up, w_down))
            for rows in _slices(flat, PIECE[dtype] // len(w_gate)):
                torch.add(flat[rows], F.linear(mixed[rows].to(dtype), o), out=middle[rows])
                normed = _norm(middle[rows], norm, eps, dtype)
                gated, upped = _linear(normed, g, gate[rows]), _linear(normed, u, up[rows])
                product = F.silu(gated).mul_(upped)
                torch.add(middle[rows], F.linear(product, d), out=out.flatten(0, 1)[rows])
        ctx.save_for_backward(middle, attention, w_o, norm, w_gate, w_up, w_down, gate, up)
        ctx.eps, ctx.dtype = eps, dtype
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, d_out):
        middle, attention, w_o, norm, w_gate, w_up, w_down, gate, up = ctx.saved_tensors
        dtype = ctx.dtype
        mixed, d_flat, d_x = attention.flatten(0, 1), d_out.flatten(0, 1), d_out.clone()
        d_attention = torch.empty_like(mixed)
        d_norm = torch.zeros_like(norm, dtype=torch.float32)
        d_o = d_g = d_u = d_d = None
        with torch.autocast(middle.device.type, enabled=False):
            o, g, u, d = (w.to(dtype) for w in (w_o, w_gate, w_up, w_down))
            for rows in _slices(middle, PIECE[dtype] // len(w_gate)):
                d_rows = d_flat[rows].to(dtype)
                d_product = d_rows @ d
                product, d_up = torch.empty_like(d_product), torch.empty_like(d_product)
                gated, upped = gate[rows], up[rows]
                for sweep in _slices(d_product):
                    a, b = gated[sweep].to(dtype), upped[sweep].to(dtype)
                    active = F.silu(a)
                    torch.mul(active, b, out=product[sweep])
                    torch.mul(active, d_product[sweep], out=d_up[sweep])
                    d_product[sweep] = torch.ops.aten.silu_backward(d_product[sweep].mul_(b), a)
                d_gate = d_product
                d_d = add_outer(d_d, d_rows, product)
                normed = _norm(middle[rows], norm, ctx.eps, dtype)
                d_g, d_u = add_outer(d_g, d_gate, normed), add_outer(d_u, d_up, normed)
                d_normed = (d_gate @ g).addmm_(d_up, u)
                d_y = d_x.flatten(0, 1)[rows]
                _norm_backward(d_normed, middle[rows], norm, ctx.eps, d_norm, d_y)
                d_y = d_y.to(dtype)
                d_o = add_outer(d_o, d_y, mixed[rows].to(dtype))
                d_attention[rows] = d_y @ o
        d_o, d_g, d_u, d_d = (total.to(w_o.dtype) for total in (d_o, d_g, d_u, d_d))
        return d_x, d_attention.view_as(attention), d_o, d_norm.to(norm.dtype), d_g, d_u, d_d, None


class TotoDecoderLayer(LlamaDecoderLayer):
    """Llama's block, which in training uses the functions above wherever they give the same result."""

    def forward(self, hidden_states, attention_mask=None, past_key_values=None, position_embeddings=None, **kwargs):
        """Residual stream (B, T, D) -> (B, T, D); arguments as in Llama."""
        if past_key_values is not None or not self._goes_lean():
            return super().forward(
                hidden_states,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                position_embeddings=position_embeddings,
                **kwargs,
            )
        attention, mlp, norms = self.self_attn, self.mlp, (self.input_layernorm, self.post_attention_layernorm)
        heads = _BeforeAttention.apply(
            hidden_states,
            norms[0].weight,
            attention.q_proj.weight,
            attention.k_proj.weight,
            attention.v_proj.weight,
            *position_embeddings,
            norms[0].variance_epsilon,
            attention.head_dim,
        )
        q, k, v = (part.transpose(1, 2) for part in heads)  # (B, H, T, d)
        plain = attention_mask is None and kwargs.get("is_causal", True)
        kernel = cpu_kernel(q, k) if plain else None
        if kernel is not None:
            mixed = kernel.apply(q, k, v, attention.scaling).transpose(1, 2)
        else:
            kwargs.pop("position_ids", None), kwargs.pop("use_cache", None)
            interface = ALL_ATTENTION_FUNCTIONS[attention.config._attn_implementation]
            mixed, _ = interface(attention, q, k, v, attention_mask, scaling=attention.scaling, **kwargs)
        return _AfterAttention.apply(
            hidden_states,
            mixed.flatten(2),
            attention.o_proj.weight,
            norms[1].weight,
            mlp.gate_proj.weight,
            mlp.up_proj.weight,
            mlp.down_proj.weight,
            norms[1].variance_epsilon,
        )

    def _goes_lean(self) -> bool:
        """Whether gradients are needed and this is a plain block.

        A plain block has no biases, no dropout, SiLU, and no part that is replaced, sharded or hooked (adapters, tensor
        parallelism, hooks).
        """
        attention, mlp = self.self_attn, self.mlp
        config = attention.config
        if not (self.training and torch.is_grad_enabled()) or config._attn_implementation in ("eager", None):
            return False
        if config.hidden_act != "silu" or config.attention_dropout or config.attention_bias or config.mlp_bias:
            return False
        linears = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
        linears += (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        parts = (*linears, mlp, self.input_layernorm, self.post_attention_layernorm)
        plain = all(
            type(p) is nn.Linear and type(p.weight) is nn.Parameter and p.weight.dtype in PIECE for p in linears
        )
        return plain and not any(
            part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or "forward" in vars(part)
            for part in parts
        )


__all__ = ["TotoDecoderLayer", "has_plain_weight", "is_plain"]
