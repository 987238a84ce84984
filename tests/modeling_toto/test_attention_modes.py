"""Causal, prefix and full attention against a dense mask, in every implementation, with and without a cache."""

import pytest
import torch
import torch.nn.attention.flex_attention as flex
import transformers.integrations.flex_attention as flex_integration
from torch.nn import functional as F
from transformers import DynamicCache, StaticCache, masking_utils
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from modeling_toto import TotoConfig, TotoForCausalLM, TotoForImageClassification

IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention")
MODES = {"causal": {}, "prefix": {"prefix_length": 7}, "full": {}}


@pytest.fixture(autouse=True)
def flex_without_a_compiler(request, monkeypatch):
    """FlexAttention's own unfused arithmetic: compiling its kernel again for every mask takes minutes."""
    if "compiled" not in request.node.name:
        monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
        monkeypatch.setattr(flex_integration.WrappedFlexAttention, "__call__", lambda self: flex.flex_attention)
        monkeypatch.setattr(masking_utils, "create_block_mask", lambda _compile, **how: flex.create_block_mask(**how))


@pytest.fixture
def model(small_config):
    sizes = small_config.to_dict() | {"initializer_range": 0.3}
    torch.manual_seed(0)
    return TotoForCausalLM(TotoConfig(**sizes)).eval()


def seen(mode: str, mask: torch.Tensor, prefix: torch.Tensor) -> torch.BoolTensor:
    """(B, L, L), True where a query (row) sees a key (column), pair by pair; mask (B, L), prefix (B,)."""
    batch, length = mask.shape
    numbers = mask.cumsum(1) - 1  # of a token among the real ones of its row
    allowed = torch.zeros(batch, length, length, dtype=torch.bool)
    for row in range(batch):
        for query in range(length):
            for key in range(length):
                both_in_prefix = max(numbers[row, query], numbers[row, key]) < prefix[row]
                wanted = {"causal": key <= query, "full": True, "prefix": key <= query or both_in_prefix}[mode]
                allowed[row, query, key] = bool(wanted) and bool(mask[row, query]) and bool(mask[row, key])
    return allowed


def reference(model: TotoForCausalLM, ids: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
    """Logits (B, L, V) with the attention written out under a dense mask."""
    trunk = model.model
    hidden = trunk.embed_tokens(ids)
    cos, sin = trunk.rotary_emb(hidden, position_ids=torch.arange(ids.shape[1])[None])
    for block in trunk.layers:
        attention, normed = block.self_attn, block.input_layernorm(hidden)
        q, k, v = (
            project(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        q, k = apply_rotary_pos_emb(q, k, cos, sin)
        scores = (q @ k.mT * attention.scaling).masked_fill(~allowed[:, None], -torch.inf)
        mixed = scores.softmax(-1).nan_to_num() @ v
        hidden = hidden + attention.o_proj(mixed.transpose(1, 2).flatten(2))
        hidden = hidden + block.mlp(block.post_attention_layernorm(hidden))
    return model.lm_head(trunk.norm(hidden))


def padded(rows: torch.Tensor, side: str | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The first row whole and the second cut to 12 ids and padded: ids (2, 18), attention_mask."""
    if side is None:
        return rows, None
    pad = (6, 0) if side == "left" else (0, 6)
    ids = torch.stack([rows[0], F.pad(rows[1, :12], pad)])
    return ids, torch.stack([torch.ones(18, dtype=torch.long), F.pad(torch.ones(12, dtype=torch.long), pad)])


@pytest.mark.parametrize("side", [None, "left", "right"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@torch.no_grad()
def test_equal_to_the_dense_mask(model, rows, implementation, mode, side):
    ids, mask = padded(rows, side)
    real = torch.ones_like(ids) if mask is None else mask
    expected = reference(model, ids, seen(mode, real, torch.tensor([7, 7])))
    model.set_attn_implementation(implementation)
    logits = model(ids, attention_mask=mask, attention_mode=mode, **MODES[mode]).logits
    torch.testing.assert_close(logits[real == 1], expected[real == 1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_compiled_flex_attention(model, rows):
    ids, mask = padded(rows, "left")
    expected = reference(model, ids, seen("prefix", mask, torch.tensor([7, 7])))
    model.set_attn_implementation("flex_attention")
    logits = model(ids, attention_mask=mask, attention_mode="prefix", prefix_length=7).logits
    torch.testing.assert_close(logits[mask == 1], expected[mask == 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_in_the_config_and_per_call(small_config, model, rows, mode):
    per_call = model(rows, attention_mode=mode, **MODES[mode]).logits
    sizes = small_config.to_dict() | {"attention_mode": mode} | MODES[mode]
    configured = TotoForCausalLM(TotoConfig(**sizes)).eval()
    configured.load_state_dict(model.state_dict())
    assert torch.equal(configured(rows).logits, per_call)
    # a call overrules the config
    assert torch.equal(configured(rows, attention_mode="causal").logits, model(rows).logits)
    other = configured(rows, attention_mode="prefix", prefix_length=3).logits
    assert torch.equal(other, model(rows, attention_mode="prefix", prefix_length=3).logits)
    assert not torch.equal(other, model(rows).logits)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@torch.no_grad()
def test_no_prefix_is_causal_and_all_prefix_is_full(model, rows, implementation):
    model.set_attn_implementation(implementation)
    causal, full = (model(rows, attention_mode=mode).logits for mode in ("causal", "full"))
    assert not torch.allclose(causal, full, atol=1e-2)
    prefix = [model(rows, attention_mode="prefix", prefix_length=n).logits for n in (0, 1, 18, 100)]
    for found, expected in zip(prefix, (causal, causal, full, full), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("side", [None, "left", "right"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@torch.no_grad()
def test_prefix_length_per_row(model, rows, implementation, side):
    ids, mask = padded(rows, side)
    real = torch.ones_like(ids) if mask is None else mask
    lengths = torch.tensor([3, 9])
    expected = reference(model, ids, seen("prefix", real, lengths))
    model.set_attn_implementation(implementation)
    logits = model(ids, attention_mask=mask, attention_mode="prefix", prefix_length=lengths).logits
    torch.testing.assert_close(logits[real == 1], expected[real == 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
@torch.no_grad()
def test_classifiers_pass_the_mode_on(small_config, model, rows, mode):
    sizes = small_config.to_dict() | {"pooler": "mean", "feature_layer": 2}
    head = TotoForImageClassification(TotoConfig(**sizes)).eval()
    head.load_state_dict(model.state_dict(), strict=False)
    stream = model.model(rows, attention_mode=mode, exit_layer=2, **MODES[mode]).last_hidden_state
    expected = head.classifier(F.layer_norm(stream, (32,))[:, 1:-1].mean(1))
    torch.testing.assert_close(head(rows, attention_mode=mode, **MODES[mode]).logits, expected)


def stepwise(model, ids, mask, cache, start, **mode):
    """Logits (B, L, V): `start` ids in one call, then one at a time."""
    found = []
    for first, last in [(0, start), *((t, t + 1) for t in range(start, ids.shape[1]))]:
        part = None if mask is None else mask[:, :last]
        output = model(ids[:, first:last], attention_mask=part, past_key_values=cache, use_cache=True, **mode)
        cache = output.past_key_values
        found.append(output.logits)
    return torch.cat(found, 1)


@pytest.mark.parametrize("side", [None, "left"])
@pytest.mark.parametrize("mode", ["causal", "prefix"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@torch.no_grad()
def test_cached_equals_whole(model, rows, implementation, mode, side):
    """The prefix in one call, then token by token, in dynamic and static caches."""
    ids, mask = padded(rows, side)
    real = torch.ones_like(ids) if mask is None else mask
    expected = reference(model, ids, seen(mode, real, torch.tensor([5, 5])))
    how = {"attention_mode": mode} | ({"prefix_length": 5} if mode == "prefix" else {})
    model.set_attn_implementation(implementation)
    for cache in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=20)):
        logits = stepwise(model, ids, mask, cache, 13, **how)
        torch.testing.assert_close(logits[real == 1], expected[real == 1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@torch.no_grad()
def test_generate_under_a_prefix(model, rows, implementation):
    """Greedy drawing without a cache, written out, and `generate` with every cache."""
    model.set_attn_implementation(implementation)
    for lengths, mask in ((5, None), (torch.tensor([4, 6]), torch.tensor([[1] * 8, [0] * 2 + [1] * 6]))):
        how = {"attention_mode": "prefix", "prefix_length": lengths}
        ids, grown = rows[:, :8], mask
        for _ in range(8):
            logits = model(ids, attention_mask=grown, use_cache=False, **how).logits[:, -1]
            logits[:, model.config.eos_token_id] = -torch.inf
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], 1)
            grown = None if grown is None else F.pad(grown, (0, 1), value=1)
        options = {"attention_mask": mask, "max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
        for cache in ({"use_cache": False}, {}, {"cache_implementation": "static", "disable_compile": True}):
            assert torch.equal(model.generate(rows[:, :8], **options, **how, **cache), ids), cache
        causal = model.generate(rows[:, :8], **options)
        assert not torch.equal(causal, ids)
        # beams repeat the prefix lengths of their rows
        beams = model.generate(rows[:, :8], **options, **how, num_beams=2)
        alone = [
            model.generate(
                rows[r : r + 1, :8],
                **options | {"attention_mask": None if mask is None else mask[r : r + 1]},
                attention_mode="prefix",
                prefix_length=lengths if mask is None else int(lengths[r]),
                num_beams=2,
            )
            for r in range(2)
        ]
        assert torch.equal(beams, torch.cat(alone))


@pytest.mark.parametrize("skip_logits", [True, False])
@pytest.mark.parametrize("side", [None, "left", "right"])
def test_prefix_loss_counts_suffix_tokens_only(model, rows, side, skip_logits):
    ids, mask = padded(rows, side)
    real = torch.ones_like(ids) if mask is None else mask
    how = {"attention_mask": mask, "attention_mode": "prefix", "prefix_length": 7, "skip_logits": skip_logits}
    labels = ids.masked_fill(real == 0, -100)
    output = model(ids, labels=labels, **how)
    suffix = (real.cumsum(1) > 7) & (real == 1)
    log_p = reference(model, ids, seen("prefix", real, torch.tensor([7, 7]))).log_softmax(-1)
    expected = -log_p[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    expected = F.pad(expected, (1, 0)).masked_fill(~suffix, 0.0)
    torch.testing.assert_close(output.token_losses, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(output.loss, expected.sum() / suffix.sum(), rtol=1e-4, atol=1e-4)
    # the label of a prefix token is worth nothing
    wrong = torch.where(suffix | (real == 0), labels, torch.full_like(labels, 70))
    assert torch.equal(model(ids, labels=wrong, **how).loss, output.loss)


def test_prefix_loss_has_nothing_to_copy(model, rows):
    """What predicts a counted token does not see it: its logits stay when that token and all after it change."""
    how = {"attention_mode": "prefix", "prefix_length": 7}
    logits = model(rows, **how).logits
    for t in range(7, 18):  # counted labels
        changed = rows.clone()
        changed[:, t:] = 70
        torch.testing.assert_close(model(changed, **how).logits[:, t - 1], logits[:, t - 1])
    changed = rows.clone()
    changed[:, 6] = 70  # while inside the prefix everything sees everything
    assert not torch.allclose(model(changed, **how).logits[:, 0], logits[:, 0], atol=1e-3)


def test_prefix_loss_of_a_later_cached_call(model, rows):
    how = {"attention_mode": "prefix", "prefix_length": 5}
    whole = model(rows, labels=rows, **how).token_losses
    cache = model(rows[:, :9], use_cache=True, **how).past_key_values
    later = model(rows[:, 9:], labels=rows[:, 9:], past_key_values=cache, **how).token_losses
    torch.testing.assert_close(later[:, 1:], whole[:, 10:], rtol=1e-4, atol=1e-4)


@pytest.fixture
def untouched(model):
    """A model in which no matrix product may happen."""

    def fail(module, _):
        raise AssertionError(f"{type(module).__name__} ran")

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(fail)
    return model


def refused(pattern: str, call, *args, **kwargs):
    with pytest.raises(ValueError, match=pattern) as caught:
        call(*args, **kwargs)
    assert "\n" not in str(caught.value)


def test_modes_refused(untouched, rows):
    refused("attention_mode is 'block'; choose one of causal, prefix, full", untouched, rows, attention_mode="block")
    refused("'prefix' but prefix_length is None; set the prefix's length", untouched, rows, attention_mode="prefix")
    refused(
        "prefix_length is set but attention_mode is 'causal'; use attention_mode='prefix'",
        untouched,
        rows,
        prefix_length=3,
    )
    refused("prefix_length is -1; set 0 or more", untouched, rows, attention_mode="prefix", prefix_length=-1)
    refused("no next-token loss under full attention", untouched, rows, labels=rows, attention_mode="full")
    refused("Full attention has no cache", untouched, rows, attention_mode="full", past_key_values=DynamicCache())
    refused("needs labels", untouched, rows, skip_logits=True)


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2"])
def test_flash_attention_cannot_mask_a_prefix(untouched, rows, implementation):
    untouched.config._attn_implementation_internal = implementation  # as if it were installed
    for call in (untouched, untouched.model):
        refused(
            f"{implementation} does not support prefix attention; .*'sdpa', 'flex_attention' or 'eager'",
            call,
            rows,
            attention_mode="prefix",
            prefix_length=3,
        )


def test_flex_attention_has_no_backward_on_a_cpu(untouched, rows):
    untouched.set_attn_implementation("flex_attention")
    refused("flex_attention has no backward pass on a CPU; .*torch.no_grad.*'sdpa' to train", untouched, rows)


def test_bad_ids_and_lengths_refused(untouched, rows):
    for wrong in (96, -100, 10**6):
        ids = rows.clone()
        ids[1, 3] = wrong
        refused(f"id {wrong} is outside the vocabulary of 96", untouched, ids)
        refused(f"id {wrong} is outside the vocabulary of 96", untouched.model, ids)
    longer = F.pad(rows, (0, 1), value=70)
    refused("sequence of 19 tokens is longer than the model's 18 positions", untouched, longer)
    refused("exactly one of input_ids or inputs_embeds", untouched, rows, inputs_embeds=torch.zeros(2, 18, 32))
    for wrong in (-1, 3):
        refused(
            rf"exit_layer is {wrong}, but the model has layers 0 \(the embeddings\) to 2",
            untouched.model,
            rows,
            exit_layer=wrong,
        )


def filled(layers: int = 2, rows: int = 2, length: int = 5, room: int | None = None) -> DynamicCache | StaticCache:
    """A cache that holds `length` positions of another model run."""
    config = TotoConfig(hidden_size=32, num_hidden_layers=layers, num_attention_heads=2)
    cache = DynamicCache(config=config) if room is None else StaticCache(config=config, max_cache_len=room)
    for layer in range(layers):
        cache.update(torch.zeros(rows, 2, length, 16), torch.zeros(rows, 2, length, 16), layer)
    return cache


def test_caches_that_do_not_fit_refused(untouched, rows):
    new = rows[:, :4]
    refused(
        r"attention_mask covers 7 tokens, but the cache holds 5 and 4 are new; pass a mask of shape \(2, 9\)",
        untouched,
        new,
        attention_mask=torch.ones(2, 7),
        past_key_values=filled(),
    )
    refused("room for 8 tokens and holds 5, so 4 more do not fit", untouched, new, past_key_values=filled(room=8))
    refused("The cache has 3 layers but the model has 2; pass", untouched, new, past_key_values=filled(layers=3))
    refused("The cache holds 3 rows but the input has 2; start", untouched, new, past_key_values=filled(rows=3))
    refused("sequence of 19 tokens is longer than the model's 18", untouched, new, past_key_values=filled(length=15))
    refused(
        "prefix has 7 tokens but the cache holds only 5 of them, .*; pass the whole prefix in one call",
        untouched,
        new,
        past_key_values=filled(),
        attention_mode="prefix",
        prefix_length=7,
    )
