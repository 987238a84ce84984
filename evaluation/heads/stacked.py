"""Many heads as one module: heads that differ only in task or setting are slices of stacked parameters.

T tasks (label columns) x S settings (learning rate and weight decay) share batches but no weights, so that one matrix
product trains them together. All settings start from the same weights, so that heads differ only in their setting.
"""

import torch
from torch import distributed, nn
from torch.nn import functional as F

from modeling_toto.pooling_toto import QUERY_STD, attention_pool

# Width of an attention head of the cross-attention, as in the models whose features are read and in V-JEPA 2's probe.
HEAD_WIDTH = 64


def sum_over_ranks(x: torch.Tensor) -> torch.Tensor:
    """Sums x over all processes, in place; with one process x is unchanged."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(x)
    return x


class StackedAdamW:
    """AdamW (Loshchilov and Hutter 2019) with a learning rate and a weight decay for each slice of stacked parameters.

    torch.optim has one of each per tensor. heads: a `LinearHeads` or `TokenHeads`; rates, decays: (S,).
    """

    def __init__(self, heads: nn.Module, rates: torch.Tensor, decays: torch.Tensor):
        self.betas, self.steps = (0.9, 0.999), 0
        self.slots = {}
        for name, p in heads.named_parameters():
            shape = (-1, *[1] * (p.ndim - heads.settings_axis - 1))
            # biases, norms and queries have no weight decay, as usual (and as in V-JEPA 2's probe)
            decay = decays if name in heads.decayed else torch.zeros_like(decays)
            self.slots[name] = (p, rates.view(shape), decay.view(shape), torch.zeros_like(p), torch.zeros_like(p))

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """Make an update; `scale` is the schedule's factor on all learning rates."""
        self.steps += 1
        first, second = self.betas
        root = (1 - second**self.steps) ** 0.5  # bias corrections, applied where they are cheapest
        for p, rate, decay, mean, square in self.slots.values():
            mean.lerp_(p.grad, 1 - first)
            square.mul_(second).addcmul_(p.grad, p.grad, value=1 - second)
            update = mean / square.sqrt().add_(1e-8 * root)
            if decay.any():
                p.mul_(1 - scale * rate * decay)
            p.sub_(update.mul_(rate * (scale * root / (1 - first**self.steps))))
            p.grad = None

    def state(self) -> dict[str, torch.Tensor]:
        """Weights and moments, by name."""
        kinds = (("weights", 0), ("mean", 3), ("square", 4))
        return {f"{kind}.{name}": slot[index].detach() for name, slot in self.slots.items() for kind, index in kinds}

    @torch.no_grad()
    def load(self, state: dict[str, torch.Tensor], steps: int) -> None:
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
        self.steps = steps


class LinearHeads(nn.Module):
    """Linear heads on the mean-pooled features of all layers: (L, B, P) -> logits (L, B, T, S, C).

    mean, std: (L, 1, P) of the training set; features are standardised by them. With `batch_norm`, training uses the
    mean and deviation of each batch instead (MAE's linear probe: batch normalisation without affine parameters, epsilon
    1e-6). At test both use those of the training set, which running averages would only estimate; so batch
    normalisation differs by the noise that the statistics of a batch add to training, and by the epsilon.
    """

    settings_axis = 3
    decayed = ("weight",)
    whole_batches = False  # whether every rank trains its own heads on whole batches, not all heads on a part

    def __init__(self, mean, std, tasks: int, settings: int, classes: int, batch_norm: bool = False):
        super().__init__()
        layers, _, dim = mean.shape
        self.shape, self.batch_norm = (tasks, settings, classes), batch_norm
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.weight = nn.Parameter(torch.zeros(layers, dim, *self.shape))
        self.bias = nn.Parameter(torch.zeros(layers, 1, *self.shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean, std = self._batch_moments(x) if self.batch_norm and self.training else (self.mean, self.std)
        x = (x - mean).mul_(1 / std)
        return torch.baddbmm(self.bias.flatten(2), x, self.weight.flatten(2)).unflatten(-1, self.shape)

    def _batch_moments(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation of the whole batch, of which each rank has a part unless `whole_batches`."""
        if self.whole_batches:
            variance, mean = torch.var_mean(x, 1, correction=0, keepdim=True)
            return mean, (variance + 1e-6).sqrt()
        count = sum_over_ranks(torch.tensor(float(x.shape[1]), device=x.device))
        mean = sum_over_ranks(x.sum(1, keepdim=True)) / count
        variance = sum_over_ranks((x - mean).square().sum(1, keepdim=True)) / count
        return mean, (variance + 1e-6).sqrt()

    @torch.no_grad()
    def keep(self, best: torch.Tensor) -> None:
        """Drops all settings but one for each layer and task: best (L, T)."""
        for p in (self.weight, self.bias):
            index = best[:, None, :, None, None].expand(-1, p.shape[1], -1, 1, p.shape[-1])
            p.data = p.gather(3, index)
        self.shape = (self.shape[0], 1, self.shape[2])


class TokenHeads(nn.Module):
    """Base of the heads on tokens: (1, B, n, D), one layer at a time -> logits (1, B, T, S, C).

    mean, std: (D,) of all training tokens. Tokens are read as stored and standardised inside the head, where it is
    cheap: softmax ignores a shift common to all tokens, and the weights of a clip sum to 1.
    """

    settings_axis = 1
    decayed: tuple[str, ...]

    def __init__(self, mean: torch.Tensor, std: torch.Tensor, tasks: int, settings: int, classes: int, seed: int):
        super().__init__()
        dim, self.shape = len(mean), (tasks, settings)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self._draw = torch.Generator().manual_seed(seed)
        self.query = self._start(dim, scale=QUERY_STD)
        self.key = self._start(dim, dim, scale=dim**-0.5)
        self.value = self._start(dim, dim, scale=dim**-0.5)
        self.weight = self._start(dim, classes, scale=0)
        self.bias = self._start(classes, scale=0)

    def _start(self, *size: int, scale: float) -> nn.Parameter:
        """(T, S, *size): normal with this deviation, the same for every setting."""
        start = torch.randn(self.shape[0], 1, *size, generator=self._draw) * scale
        return nn.Parameter(start.expand(*self.shape, *size).clone())

    @torch.no_grad()
    def keep(self, best: torch.Tensor) -> None:
        """Drops all settings but one for each task: best (1, T)."""
        for p in self.parameters():
            p.data = p[torch.arange(len(p)), best[0]][:, None].contiguous()
        self.shape = (self.shape[0], 1)


class AttentionHeads(TokenHeads):
    """Attention pooling (paper Sec. 3.5, `AttentionPooling`) and a linear classifier, for every task and setting."""

    decayed = ("key", "value", "weight")

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        # W_k acts on (x - mean) / std; the shift drops out of the softmax
        key = self.key.flatten(0, 1) / self.std
        pooled = attention_pool(tokens[0], self.query.flatten(0, 1), key)  # (B, T * S, D), not standardised yet
        # W_v and the classifier are two linear maps in a row: multiplied first, they cost less than W_v on every clip
        readout = self.value.flatten(0, 1).mT @ self.weight.flatten(0, 1)  # (T * S, D, C)
        logits = torch.einsum("bmd,mdc->bmc", (pooled - self.mean) / self.std, readout) + self.bias.flatten(0, 1)
        return logits.unflatten(1, self.shape)[None]


class CrossAttentionHeads(TokenHeads):
    """Cross-attention with several heads and an MLP (paper Table 17, `CrossAttentionPooling`), then a classifier."""

    decayed = ("key", "value", "output", "expand", "contract", "weight")

    def __init__(self, mean: torch.Tensor, std: torch.Tensor, tasks: int, settings: int, classes: int, seed: int):
        super().__init__(mean, std, tasks, settings, classes, seed)
        dim = len(mean)
        self.num_heads = max((h for h in range(1, dim // HEAD_WIDTH + 1) if dim % h == 0), default=1)
        self.output, self.output_bias = self._start(dim, dim, scale=dim**-0.5), self._start(dim, scale=0)
        self.norm, self.norm_bias = self._start(dim, scale=0), self._start(dim, scale=0)
        self.expand, self.expand_bias = self._start(4 * dim, dim, scale=dim**-0.5), self._start(4 * dim, scale=0)
        self.contract, self.contract_bias = (
            self._start(dim, 4 * dim, scale=(4 * dim) ** -0.5),
            self._start(dim, scale=0),
        )
        nn.init.ones_(self.norm)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        p = {name: value.flatten(0, 1) for name, value in self.named_parameters()}  # (M, ...), M = T * S
        heads, mean, std = (self.num_heads, -1), self.mean, self.std
        query = p["query"].unflatten(1, heads).flatten(0, 1)  # (M * H, d)
        key = (p["key"] / std).unflatten(1, heads).flatten(0, 1)  # (M * H, d, D)
        pooled = (attention_pool(tokens[0], query, key) - mean) / std  # (B, M * H, D)
        value = p["value"].unflatten(1, heads).flatten(0, 1)
        pooled = (pooled.transpose(0, 1) @ value.mT).unflatten(0, (-1, self.num_heads))  # (M, H, B, d)
        pooled = self._linear(pooled.transpose(1, 2).flatten(2), p["output"], p["output_bias"])
        pooled = pooled + p["query"][:, None]  # (M, B, D)
        hidden = F.layer_norm(pooled, pooled.shape[-1:]) * p["norm"][:, None] + p["norm_bias"][:, None]
        hidden = F.gelu(self._linear(hidden, p["expand"], p["expand_bias"]))  # (M, B, 4 D)
        pooled = pooled + self._linear(hidden, p["contract"], p["contract_bias"])
        logits = torch.baddbmm(p["bias"][:, None], pooled, p["weight"])  # (M, B, C)
        return logits.transpose(0, 1).unflatten(1, self.shape)[None]

    @staticmethod
    def _linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """x (M, B, I), weight (M, O, I), bias (M, O) -> (M, B, O)."""
        return torch.baddbmm(bias[:, None], x, weight.mT)
