"""Weights that are on disk until a layer is called, or that are quantised, give the same results in every model."""

import importlib.util

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from torch import nn
from torch.nn import functional as F

from modeling_toto import TotoConfig, TotoForCausalLM, TotoForImageClassification

POOLERS = ("mean", "attention", "cross_attention_mlp")
LABELS = torch.tensor([2, 0])


class CalledOnly(torch.Tensor):
    """A weight that only F.linear may read, as torchao's quantised ones."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            if function is F.linear:
                args = [each.as_subclass(torch.Tensor) if isinstance(each, cls) else each for each in args]
                return function(*args, **kwargs or {})
            if function is torch.Tensor.detach:
                return function(*args).as_subclass(cls)
            if getattr(function, "__name__", "") in ("__get__", "__set__", "requires_grad_"):  # shape, dtype, device
                return function(*args, **kwargs or {})
        raise TypeError(f"{function} of a quantised weight")


def quantised(model):
    for module in model.modules():
        if type(module) is nn.Linear:
            module.weight = nn.Parameter(module.weight.detach().as_subclass(CalledOnly), requires_grad=False)


def make(small_config, cls, **fields):
    torch.manual_seed(0)
    sizes = {k: v for k, v in small_config.to_dict().items() if k not in ("id2label", "label2id")}
    fields = {"num_labels": 3, "initializer_range": 0.2, "tie_word_embeddings": False} | fields
    return cls(TotoConfig(**sizes | fields)).eval()


@pytest.fixture(params=["disk", "cpu", "quantised"])
def moved(request, tmp_path):
    """Puts a model's weights elsewhere, or quantises them."""
    if request.param == "quantised":
        return quantised
    if request.param == "cpu":
        return lambda model: cpu_offload(model, execution_device=torch.device("cpu"))
    return lambda model: disk_offload(model, str(tmp_path), execution_device=torch.device("cpu"))


@torch.no_grad()
@pytest.mark.parametrize("next_token_loss", [None, "backbone"])
@pytest.mark.parametrize("pooler", POOLERS)
def test_heads(small_config, rows, moved, pooler, next_token_loss):
    model = make(small_config, TotoForImageClassification, pooler=pooler, next_token_loss=next_token_loss)
    expected = model(rows, labels=LABELS)
    moved(model)
    found = model(rows, labels=LABELS)
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.loss, expected.loss)


@torch.no_grad()
def test_losses_and_frames(small_config, rows, moved):
    """Also beyond the context, where cached keys are rotated."""
    model = make(small_config, TotoForCausalLM)
    expected = model(rows, labels=rows, skip_logits=True).token_losses
    frames = model.generate_frames(rows[:, :5], 5, temperature=0)
    moved(model)
    torch.testing.assert_close(model(rows, labels=rows, skip_logits=True).token_losses, expected)
    assert torch.equal(model.generate_frames(rows[:, :5], 5, temperature=0), frames)


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
@torch.no_grad()
@pytest.mark.parametrize("pooler", POOLERS)
def test_torchao_int8(small_config, rows, pooler, tmp_path):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_
    from transformers import TorchAoConfig

    model = make(small_config, TotoForImageClassification, pooler=pooler)
    expected = model(rows).logits
    quantize_(model, Int8WeightOnlyConfig())
    torch.testing.assert_close(model(rows).logits, expected, atol=0.2 * expected.std().item(), rtol=0)
    causal = make(small_config, TotoForCausalLM)
    causal.save_pretrained(tmp_path)
    loaded = TotoForCausalLM.from_pretrained(tmp_path, quantization_config=TorchAoConfig(Int8WeightOnlyConfig()))
    assert loaded.generate_frames(rows[:, :5], 5, temperature=0).shape == (2, 25)
