"""torch.compile(fullgraph=True) in training: one graph for every class, and the bits of an eager step."""

import copy

import pytest
import torch
from test_with_trainer import HEADS, make
from torch._dynamo.backends.debugging import aot_eager

from modeling_toto import TotoModel

BACKBONE = (TotoModel, {}, {"input_ids": HEADS["images"][2]["input_ids"], "use_cache": False})
MODELS = {name: HEADS[name] for name in ("next tokens", "joint", "padded patches", "codes")} | {"backbone": BACKBONE}


def step(call, model, inputs):
    """Output and gradients of one training step."""
    output = call(**inputs)
    first = output[0]
    first.square().sum().backward()
    return first.detach(), {name: weight.grad for name, weight in model.named_parameters()}


def both(small_config, name, backend, gradient_checkpointing=False, **options):
    """`step` of an eager model and of its compiled twin."""
    cls, fields, inputs = MODELS[name]
    model = make(small_config, cls, fields | {"num_hidden_layers": 1}).train()
    if gradient_checkpointing:
        model.gradient_checkpointing_enable()
    assert model.base_model.layers[0]._goes_lean()
    twin = copy.deepcopy(model)
    torch._dynamo.reset()
    compiled = torch.compile(twin, fullgraph=True, backend=backend)
    return step(model, model, inputs | options), step(compiled, twin, inputs | options)


@pytest.mark.parametrize("name", ["next tokens", "padded patches", "codes", "backbone"])
def test_training_is_one_graph_with_equal_bits(small_config, name):
    graphs = []

    def backend(graph, examples):
        graphs.append(graph)
        return aot_eager(graph, examples)

    (expected, wanted), (found, gradients) = both(small_config, name, backend)
    assert len(graphs) == 1
    assert torch.equal(found, expected)
    for key, gradient in wanted.items():
        assert (gradient is None) == (gradients[key] is None), key
        assert gradient is None or torch.equal(gradients[key], gradient), key


@pytest.mark.parametrize(
    ("name", "options"),
    [("next tokens", {"skip_logits": True}), ("joint", {}), ("joint", {"gradient_checkpointing": True})],
    ids=str,
)
def test_a_loss_without_logits_is_one_graph(small_config, name, options):
    """The chunked loss computes its gradient otherwise when it is traced: equal up to rounding."""
    (expected, wanted), (found, gradients) = both(small_config, name, "aot_eager", **options)
    torch.testing.assert_close(found, expected)
    for key, gradient in wanted.items():
        torch.testing.assert_close(gradients[key], gradient, msg=key)
