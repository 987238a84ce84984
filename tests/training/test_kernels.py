"""`--liger` patches the blocks of the model it is given, or says what is missing."""

import sys
import types

import pytest
import torch

from modeling_toto import TotoConfig, TotoForCausalLM
from training.architectures import use_liger

CUDA = torch.device("cuda")


def test_errors(monkeypatch):
    with pytest.raises(ValueError, match="needs a GPU, but this run is on cpu"):
        use_liger(None, torch.device("cpu"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", None)
    with pytest.raises(ValueError, match=r"pip install 'modeling-toto\[liger\]'"):
        use_liger(None, CUDA)


def test_a_patched_block_goes_the_plain_way(monkeypatch):
    """Liger binds its own forward to norms and MLPs; the lean block would pass these by."""
    model = TotoForCausalLM(TotoConfig(vocab_size=96, hidden_size=32, intermediate_size=48, num_attention_heads=2))

    def patch(model, **what):
        assert not what["cross_entropy"] and not what["fused_linear_cross_entropy"]
        for layer in model.model.layers:
            layer.mlp.forward = types.MethodType(type(layer.mlp).forward, layer.mlp)

    liger = types.ModuleType("liger_kernel.transformers")
    liger.apply_liger_kernel_to_llama = patch
    monkeypatch.setitem(sys.modules, "liger_kernel", types.ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", liger)
    assert model.train().model.layers[0]._goes_lean()
    use_liger(model, CUDA)
    assert not model.model.layers[0]._goes_lean()
