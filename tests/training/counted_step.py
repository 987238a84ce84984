"""Counts of a real training step on a CPU, run as a GPU would run it: whole tensors, products in bfloat16.

The storages that are alive, and the bytes that operations other than products and attention read and write.
"""

import contextlib
import weakref
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

PRODUCTS = ("mm", "addmm", "addmm_", "bmm", "linear")
ATTENTION = tuple(f"_scaled_dot_product_flash_attention_for_cpu{end}" for end in ("", "_backward"))
NOTHING = ("empty", "empty_like", "new_empty", "empty_strided", "_unsafe_view", "detach")


def tensors(tree):
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


class Alive(TorchDispatchMode):
    """Bytes of all storages that operations made and that are alive: now, and at most."""

    def __init__(self):
        super().__init__()
        self.now, self.peak, self.sizes = 0, 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tensors(out):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._free, storage._cdata)
        return out

    def _free(self, storage):
        self.now -= self.sizes.pop(storage)


class Moved(TorchDispatchMode):
    """Bytes that operations read and write, but for views, products and attention."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out, kwargs = func(*args, **(kwargs or {})), kwargs or {}
        name = func.overloadpacket.__name__
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not is_view and name not in (*PRODUCTS, *ATTENTION, *NOTHING):
            read = tensors((args[1:] if name == "copy_" else args, {k: v for k, v in kwargs.items() if k != "out"}))
            self.total += sum(t.numel() * t.element_size() for t in (*read, *tensors(out)))
        return out


@contextlib.contextmanager
def as_on_a_gpu():
    whole = mock.patch("modeling_toto.block_toto._slices", lambda tensor, step=None: [slice(0, len(tensor))])
    products = [
        mock.patch(f"modeling_toto.{module}.product_dtype", lambda dtype, device: dtype)
        for module in ("block_toto", "loss_toto")
    ]
    with whole, products[0], products[1], torch.autocast("cpu", torch.bfloat16):
        yield


# the blocks' own attention is for CPUs alone; recomputation calls it outside of `as_on_a_gpu`
torch_attention = mock.patch("modeling_toto.block_toto.cpu_kernel", lambda q, k: None)


def make(preset, layers, frames, **fields):
    from modeling_toto import TotoConfig, TotoForCausalLM

    length = 256 * frames + 2
    config = TotoConfig.from_preset(
        preset, num_hidden_layers=layers, num_frames=frames, max_position_embeddings=length, **fields
    )
    return TotoForCausalLM(config).train()


@torch_attention
def counted_memory(preset, layers, rows, frames, accumulation, checkpointing):
    """(bytes alive at the peak of a step, the model)."""
    alive = Alive()
    with alive:
        model = make(preset, layers, frames)
        if checkpointing:
            model.gradient_checkpointing_enable()
        optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
        for weight in model.parameters():
            moments = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[weight] = {"step": torch.zeros(()), **moments}
        for _ in range(accumulation):
            ids = torch.randint(64, 576, (rows, model.config.max_position_embeddings))
            ids[:, 0], ids[:, -1] = 1, 2
            with as_on_a_gpu():
                loss = model(input_ids=ids, labels=ids, skip_logits=True).loss
            loss.backward()
        del loss
        optimizer.step()
    return alive.peak, model


@torch_attention
def moved_a_token(preset, **fields):
    """Bytes a token and block; those that are the same for any number of tokens (casts of weights) are left out."""
    totals = {}
    for layers in (1, 2):
        model = make(preset, layers, 4, **fields)
        for tokens in (256, 512):
            ids, moved = torch.randint(64, 576, (1, tokens)), Moved()
            with as_on_a_gpu(), moved:
                states = model.model(input_ids=ids, use_cache=False).last_hidden_state
                states.backward(torch.ones_like(states))
            totals[layers, tokens] = moved.total
            model.zero_grad()
    of_block = {tokens: totals[2, tokens] - totals[1, tokens] for tokens in (256, 512)}
    return (of_block[512] - of_block[256]) / 256
