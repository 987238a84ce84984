"""The lean decode step is the plain forward or is not taken; a drop leaves keys where they would have stood."""

import pytest
import torch
from torch import nn

from modeling_toto import TotoConfig, TotoForCausalLM, decoding_toto
from modeling_toto.decoding_toto import FrameWindow, RoomyLayer, why_not_fast

KINDS = {
    "plain": {},
    "grouped": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "one_key_head": {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 16},
    "untied": {"tie_word_embeddings": False},
    "biased": {"attention_bias": True, "mlp_bias": True},
    "gelu": {"hidden_act": "gelu"},
    "multipliers": {
        "mup_base_width": 16,
        "mup_base_head_dim": 8,
        "embedding_multiplier": 3.0,
        "output_multiplier": 0.5,
    },
    "yarn": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}},
}


def make(small_config, **changes) -> TotoForCausalLM:
    torch.manual_seed(0)
    model = TotoForCausalLM(TotoConfig(**{**small_config.to_dict(), "head_dim": None, **changes})).eval()
    for name, parameter in model.named_parameters():  # biases start at zero, norms at one: both would hide mistakes
        if parameter.ndim == 1:
            nn.init.normal_(parameter, mean=float("norm" in name), std=0.2)
    return model


@pytest.fixture
def lively(small_config) -> TotoForCausalLM:
    """A model whose likeliest codes are not just repetitions, so that any change inside shows in them."""
    return make(small_config, initializer_range=0.3, tie_word_embeddings=False)


@torch.no_grad()
def steps(model, ids, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of codes after each of ids[:, first:], by the decode step and by one plain forward."""
    window = FrameWindow(model, ids)
    assert window.fast
    stepped = torch.stack([window.code_logits(end) for end in range(first, ids.shape[1] + 1)], dim=1)
    assert window.step is not None
    return stepped, model(ids).logits[:, first - 1 :, model.config.code_offset :]


@pytest.mark.parametrize("rows_at_once", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_the_plain_forward(small_config, rows, kind, rows_at_once):
    model = make(small_config, **KINDS[kind])
    stepped, whole = steps(model, rows[:rows_at_once, :-1], 5)
    assert whole.std() > 0.01
    torch.testing.assert_close(stepped, whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rows_at_once", [1, 2])
def test_bfloat16_differs_by_rounding(small_config, rows, rows_at_once):
    model = make(small_config, initializer_range=0.2).to(torch.bfloat16)
    ids = rows[:rows_at_once, :-1]
    stepped, whole = steps(model, ids, 5)
    assert stepped.dtype == torch.bfloat16
    exact = model.float()(ids).logits[:, 4:, 64:]
    ours, theirs = ((logits.float() - exact).pow(2).mean().sqrt() for logits in (stepped, whole))
    assert 0 < ours < 1.5 * theirs < 0.1 * exact.std()


@pytest.mark.parametrize("amd", [False, True])
def test_on_amd_a_bfloat16_query_is_not_alone_and_attention_is_the_same(amd, monkeypatch):
    monkeypatch.setattr(decoding_toto, "CPU_IS_AMD", amd)
    kernel, counts = decoding_toto.scaled_dot_product_attention, []

    def counted(q, k, v, scale):
        counts.append(q.shape[2])
        return kernel(q, k, v, scale=scale)

    monkeypatch.setattr(decoding_toto, "scaled_dot_product_attention", counted)
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 3, 1, 8), torch.randn(2, 3, 40, 8), torch.randn(2, 3, 40, 8)
    expected = (torch.einsum("bhnd,bhsd->bhns", q, k) * 0.7).softmax(-1) @ v
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.03)):
        found = decoding_toto.attend_to_cache(q.to(dtype), k.to(dtype), v.to(dtype), 0.7)
        torch.testing.assert_close(found.float(), expected, atol=tolerance, rtol=0)
    assert counts == [1, 2 if amd else 1]


def test_packed_weights_change_nothing(small_config, rows, monkeypatch):
    model, ids = make(small_config, attention_bias=True), rows[:, :-1]
    packed, _ = steps(model, ids, 5)
    monkeypatch.setattr(decoding_toto, "packing_pays", lambda weight, rows: False)
    plain, _ = steps(model, ids, 5)
    torch.testing.assert_close(packed, plain, atol=1e-6, rtol=1e-5)


def test_weights_are_read_again_in_every_call(lively, rows):
    before = lively.generate_frames(rows[:, :5], 2, temperature=0)
    with torch.no_grad():
        for layer in lively.model.layers:
            layer.self_attn.o_proj.weight.mul_(-1)
    after = lively.generate_frames(rows[:, :5], 2, temperature=0)
    assert not torch.equal(before, after)
    assert torch.equal(after, lively.generate_frames(rows[:, :5], 2, temperature=0, use_cache=False))


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


def adapter(model):
    model.model.layers[1].mlp.down_proj.__class__ = Doubled


def hook(model):
    model.model.layers[0].self_attn.v_proj.register_forward_hook(lambda module, given, output: output * 2)


def hook_of_a_block(model):
    model.model.layers[0].register_forward_hook(lambda module, given, output: output * 2)


def patched(model):
    mlp = model.model.layers[0].mlp
    plain = mlp.forward
    mlp.forward = lambda x: 2 * plain(x)


def head(model):
    model.lm_head.register_forward_pre_hook(lambda module, given: -given[0])


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (adapter, "adapters or quantisation"),
        (hook, "forward hooks"),
        (hook_of_a_block, "forward hooks"),
        (patched, "patched forward"),
        (head, "forward hooks"),
    ],
)
def test_what_the_step_would_miss_goes_by_the_plain_forward(lively, rows, change, reason):
    plain = lively.generate_frames(rows[:, :5], 3, temperature=0)
    assert why_not_fast(lively) is None
    change(lively)
    assert reason in why_not_fast(lively)
    changed = lively.generate_frames(rows[:, :5], 3, temperature=0)
    assert not torch.equal(plain, changed)
    assert torch.equal(changed, lively.generate_frames(rows[:, :5], 3, temperature=0, use_cache=False))


def test_other_reasons(small_config, small_model, rows):
    dynamic = make(small_config, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    assert "RoPE" in why_not_fast(dynamic)
    with torch.autocast("cpu", torch.bfloat16):
        assert why_not_fast(small_model) == "autocast"
        assert small_model.generate_frames(rows[:, :5], 1, temperature=0).shape == (2, 9)
    small_model(rows, output_hidden_states=True)  # leaves transformers' own hooks behind
    assert small_model.model.layers[0]._forward_hooks and why_not_fast(small_model) is None


@pytest.mark.parametrize("count", [4, 5, 8])
@pytest.mark.parametrize("kind", ["plain", "yarn"])
def test_what_stays_after_a_drop_stands_where_it_would_have_stood(small_config, rows, kind, count):
    model = make(small_config, **KINDS[kind])
    memory = first_layer(model, rows[:, :17])
    memory.drop(count, model.model.rotary_emb.inv_freq)
    fresh = first_layer(model, torch.cat([rows[:, :1], rows[:, 1 + count : 17]], dim=1))
    assert memory.get_seq_length() == fresh.get_seq_length() == 17 - count
    torch.testing.assert_close(memory.keys, fresh.keys, atol=1e-6, rtol=1e-5)
    assert torch.equal(memory.values, fresh.values)
    memory.crop(0)
    assert memory.get_seq_length() == 0 and memory.keys.shape[2] == 0


def first_layer(model, ids, room=20):
    """The cache of the first layer, whose keys and values know only their own id and position."""
    cache = decoding_toto.DynamicCache()
    cache.layers = [RoomyLayer(room) for _ in model.model.layers]
    with torch.no_grad():
        model(ids, past_key_values=cache)
    return cache.layers[0]


def test_keys_and_values_are_kept_in_the_dtype_of_attention(small_model, rows):
    whole = first_layer(small_model, rows[:, :17])
    with torch.autocast("cpu", torch.bfloat16):
        half = first_layer(small_model, rows[:, :17])
    assert whole.keys.dtype == whole.values.dtype == torch.float32
    assert half.keys.dtype == half.values.dtype == torch.bfloat16
    assert whole.kept_bytes == 2 * half.kept_bytes == 2 * 4 * 20 * whole.keys[:, :, 0].numel()


def test_rows_of_the_cache_can_be_selected(small_model, rows):
    memory = first_layer(small_model, rows[:, :9])
    keys, values = memory.keys, memory.values
    memory.batch_select_indices(torch.tensor([1]))
    assert torch.equal(memory.keys, keys[1:2]) and torch.equal(memory.values, values[1:2])
    memory.update(keys[1:2, :, :3], values[1:2, :, :3])  # and it still grows in place
    assert memory.keys.shape[2] == 12 and memory.keys.data_ptr() == memory.key_room.data_ptr()
