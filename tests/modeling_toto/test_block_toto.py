"""The lean block of training is Llama's block: same losses, same gradients, less kept."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import modeling_toto.block_toto as block
from modeling_toto import TotoConfig, TotoForCausalLM

SIZES = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 3}
SIZES |= {"num_attention_heads": 4, "max_position_embeddings": 300, "rms_norm_eps": 1e-6, "tie_word_embeddings": True}


@pytest.fixture(autouse=True)
def small_steps(monkeypatch):
    """Several uneven slices a row, so that every border is crossed."""
    monkeypatch.setattr(block, "PIECE", dict.fromkeys(block.PIECE, 100 * 160))
    monkeypatch.setattr(block, "SWEEP", 33 * 64)


@pytest.fixture(params=[4, 2], ids=["all-heads", "grouped-heads"])
def pair(request):
    """Toto and transformers' Llama with the same weights, none of them at its initial value."""
    torch.manual_seed(0)
    toto = TotoForCausalLM(TotoConfig(**SIZES, num_key_value_heads=request.param)).train()
    for parameter in toto.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    llama = LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=request.param)).train()
    llama.load_state_dict(toto.state_dict())
    return toto, llama


@pytest.fixture
def ids():
    return torch.randint(64, 128, (2, 257), generator=torch.Generator().manual_seed(1))


def run(model, ids, autocast=False, **inputs):
    """Loss and gradients of one training step."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(input_ids=ids, labels=ids, use_cache=False, **inputs).loss
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def farthest(found, wanted):
    return max(((found[name] - wanted[name]).norm() / wanted[name].norm()).item() for name in wanted)


@pytest.mark.parametrize("padded", [False, True])
def test_float32_equals_llama(pair, ids, padded):
    toto, llama = pair
    mask = {}
    if padded:
        mask = {"attention_mask": torch.ones_like(ids)}
        mask["attention_mask"][0, :40] = 0
    assert toto.model.layers[0]._goes_lean()
    loss, gradients = run(toto, ids, skip_logits=True, **mask)
    wanted_loss, wanted = run(llama.double(), ids, **mask)
    assert abs(loss - wanted_loss) < 1e-5
    assert farthest(gradients, {name: g.float() for name, g in wanted.items()}) < 1e-5


@pytest.mark.parametrize("fast", [True, False])
def test_bfloat16_autocast_is_as_exact_as_llamas(pair, ids, fast, monkeypatch):
    monkeypatch.setattr(block, "CPU_BF16_IS_FAST", fast)
    toto, llama = pair
    loss, gradients = run(toto, ids, autocast=True, skip_logits=True)
    their_loss, theirs = run(llama, ids, autocast=True)
    exact_loss, exact = run(llama, ids)
    assert abs(loss - exact_loss) < max(2e-3, 2 * abs(their_loss - exact_loss))
    assert farthest(gradients, exact) < 1.2 * farthest(theirs, exact)


@pytest.mark.parametrize("mode", ["prefix", "full"])
def test_other_masks(pair, ids, mode):
    """Against the plain block of the same model."""
    toto, _ = pair
    inputs = {"attention_mode": mode} | ({"prefix_length": 100} if mode == "prefix" else {})
    target = torch.randn(2, 257, 64, generator=torch.Generator().manual_seed(2))
    results = []
    for lean in (True, False):
        model = copy.deepcopy(toto.model)
        if not lean:
            for layer in model.layers:
                layer._goes_lean = lambda: False
        out = model(ids, use_cache=False, **inputs).last_hidden_state
        (out * target).sum().backward()
        results.append((out.detach(), {n: p.grad for n, p in model.named_parameters()}))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-5)
    assert farthest(results[0][1], results[1][1]) < 1e-5


def test_a_block_keeps_less(pair, ids):
    """Bytes that autograd saves for one block's backward pass, weights not counted."""
    toto, llama = pair
    kept = {}
    for name, model in (("toto", toto), ("llama", llama)):
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        saved = {}

        def pack(tensor, weights=weights, saved=saved):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        x = torch.randn(2, 257, 64)
        tables = model.model.rotary_emb(x, torch.arange(257)[None])
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16):
            model.model.layers[0](x, position_embeddings=tables)
        kept[name] = sum(saved.values())
    assert kept["toto"] < 0.6 * kept["llama"]


def test_gradient_checkpointing_and_frozen_parts(pair, ids):
    toto, _ = pair
    _, wanted = run(toto, ids, skip_logits=True)
    toto.gradient_checkpointing_enable()
    _, gradients = run(toto, ids, skip_logits=True)
    assert farthest(gradients, wanted) < 1e-5
    toto.model.layers[0].requires_grad_(False)
    toto.zero_grad()
    toto(input_ids=ids, labels=ids, skip_logits=True).loss.backward()
    assert toto.model.layers[0].mlp.up_proj.weight.grad is None
    torch.testing.assert_close(
        toto.model.layers[1].mlp.up_proj.weight.grad, wanted["model.layers.1.mlp.up_proj.weight"]
    )


def test_whatever_differs_goes_the_plain_way(pair):
    toto, _ = pair
    layer = toto.model.layers[0]
    assert layer._goes_lean() and not layer.eval()._goes_lean()
    layer.train()
    with torch.no_grad():
        assert not layer._goes_lean()
    hook = layer.mlp.register_forward_hook(lambda *_: None)
    assert not layer._goes_lean()
    hook.remove()
    layer.mlp.up_proj = torch.nn.Sequential(layer.mlp.up_proj)
    assert not layer._goes_lean()
    assert not toto.model.layers[1].double()._goes_lean()  # here everything elementwise is float32


def test_compiled_block(pair, ids):
    toto, _ = pair
    _, wanted = run(toto, ids, skip_logits=True)
    toto.model.layers[0].compile(dynamic=False)
    _, gradients = run(toto, ids, skip_logits=True)
    assert farthest(gradients, wanted) < 1e-5


@pytest.mark.parametrize("part", ["mlp", "self_attn.q_proj", "input_layernorm"])
def test_a_hooked_part_is_called(pair, ids, part):
    toto, _ = pair
    called = []
    toto.model.layers[1].get_submodule(part).register_forward_hook(lambda *_: called.append(part))
    toto(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    assert called == [part] and toto.model.layers[0]._goes_lean() and not toto.model.layers[1]._goes_lean()
