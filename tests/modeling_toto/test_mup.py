"""muP: at the base width a plain Llama, weight for weight and step for step; elsewhere what mup.py's table says."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from modeling_toto import PRESETS, TotoConfig, TotoForCausalLM, TotoModel
from modeling_toto.mup import hidden_matrices, learning_rate_scales
from training.args import OptimArgs
from training.engine.optim import learning_rate, make_optimizer, set_learning_rate

ROWS = {"tokens_per_frame": 4, "num_frames": 4, "max_position_embeddings": 18, "vocab_size": 96}


def config(width: int, base: int | None = 64, **fields) -> TotoConfig:
    """4 heads, so that their size grows with the width; base head size 16."""
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 4}
    mup = {"mup_base_width": base, "mup_base_head_dim": base // 4} if base else {}
    return TotoConfig(**ROWS | sizes | mup | fields)


def fresh(*args, **fields) -> TotoForCausalLM:
    torch.manual_seed(0)
    return TotoForCausalLM(config(*args, **fields))


@pytest.mark.parametrize("tied", [True, False])
def test_the_base_width_is_the_standard_model(rows, tied):
    """Same weights, same logits, same updates, to the last bit."""
    plain, mup = (fresh(64, base, tie_word_embeddings=tied) for base in (None, 64))
    llama_fields = {key: value for key, value in plain.config.to_dict().items() if key in LlamaConfig().to_dict()}
    torch.manual_seed(0)
    llama = LlamaForCausalLM(LlamaConfig(**llama_fields))
    models = [plain, mup, llama]
    optimizers = [make_optimizer(model, OptimArgs(learning_rate=0.01)) for model in models]
    for _ in range(3):
        for ours, theirs in zip(mup.parameters(), plain.parameters(), strict=True):
            assert torch.equal(ours, theirs)
        assert torch.equal(mup(rows).logits, plain(rows).logits)
        for model, optimizer in zip(models, optimizers, strict=True):
            optimizer.zero_grad()
            model(rows, labels=rows).loss.backward()
            optimizer.step()
    for ours, theirs in zip(mup.parameters(), llama.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-3)  # Adam magnifies the rounding of small gradients
    torch.testing.assert_close(mup(rows).logits, llama(rows).logits, rtol=0, atol=1e-3)


def test_initial_scales():
    """Embeddings and readout keep their deviation; matrices of the blocks have one over the root of the width."""
    for width in (64, 256):
        for name, weight in fresh(width, 64, tie_word_embeddings=False).named_parameters():
            if weight.ndim < 2:
                assert torch.equal(weight, torch.ones_like(weight)), name
            else:
                expected = 0.02 * (64 / width) ** 0.5 if ".layers." in name else 0.02
                assert weight.std().item() == pytest.approx(expected, rel=0.03), name


def test_forward_multipliers():
    model = fresh(256)
    assert model.output_multiplier == 64 / 256 and model.model.embedding_multiplier == 1
    assert {layer.self_attn.scaling for layer in model.model.layers} == {16**0.5 / 64}
    assert fresh(256, None).model.layers[0].self_attn.scaling == 64**-0.5


def test_logits_fall_with_the_multiplier(rows):
    model, twice = fresh(256), fresh(256, output_multiplier=2.0)
    twice.load_state_dict(model.state_dict())
    torch.testing.assert_close(twice(rows).logits, 2 * model(rows).logits)
    labels = {"labels": rows, "skip_logits": True}  # the chunked loss sees it too
    torch.testing.assert_close(twice(rows, **labels).loss, twice(rows, labels=rows).loss)


@pytest.mark.parametrize("tied", [True, False])
def test_groups_of_the_optimizer(tied):
    model = fresh(256, 64, tie_word_embeddings=tied)
    optimizer = make_optimizer(model, OptimArgs(learning_rate=0.02, weight_decay=0.3))
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            found[names[parameter]] = group["lr"], group["lr"] * group["weight_decay"]
    assert set(found) == set(names.values())
    for name, (rate, decay) in found.items():
        in_block = ".layers." in name and "norm" not in name
        assert rate == (pytest.approx(0.02 / 4) if in_block else 0.02), name
        assert decay == (pytest.approx(0.02 * 0.3) if "norm" not in name else 0), name  # of a step, at every width


def test_the_schedule_keeps_the_scales_and_so_does_a_resumed_run():
    args = OptimArgs(learning_rate=0.02, warmup_steps=4)
    model = fresh(256)
    optimizer = make_optimizer(model, args)
    set_learning_rate(optimizer, learning_rate(1, 10, args))
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.01 / 4, 0.01]
    resumed = make_optimizer(model, args)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    set_learning_rate(resumed, 0.02)
    assert [group["lr"] for group in resumed.param_groups] == [0.02, 0.02 / 4, 0.02]


def test_without_mup_there_are_two_groups():
    groups = make_optimizer(fresh(64, None), OptimArgs()).param_groups
    assert [group["lr_scale"] for group in groups] == [1, 1] and groups[1]["weight_decay"] == 0
    assert learning_rate_scales(fresh(64, None)) == {} == learning_rate_scales(fresh(64, 64))


def test_one_step_moves_a_block_by_the_scaled_rate(rows):
    """Adam's first step is the learning rate in every coordinate that has a gradient."""
    model = fresh(256, tie_word_embeddings=False)
    before = copy.deepcopy(model.state_dict())
    optimizer = make_optimizer(model, OptimArgs(learning_rate=0.01, weight_decay=0.0))
    model(rows, labels=rows).loss.backward()
    optimizer.step()
    for name, rate in (("lm_head.weight", 0.01), ("model.layers.1.mlp.up_proj.weight", 0.0025)):
        moved = (model.state_dict()[name] - before[name]).abs()
        assert moved.median().item() == pytest.approx(rate, rel=0.01), name


def test_saved_weights_are_not_drawn_again(tmp_path, rows):
    model = fresh(256).eval()
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(rows).logits, model(rows).logits)
    assert again.config.mup_base_width == 64 and again.output_multiplier == 0.25


def test_missing_weights_are_drawn_with_mups_scale():
    model = fresh(256)
    state = {name: weight for name, weight in model.state_dict().items() if ".layers.1." not in name}
    torch.manual_seed(1)
    loaded = TotoForCausalLM.from_pretrained(None, config=model.config, state_dict=state)
    drawn = loaded.model.layers[1].mlp.up_proj.weight
    assert (
        drawn.std().item() == pytest.approx(0.01, rel=0.03)
        and drawn.std() != model.model.layers[1].mlp.up_proj.weight.std()
    )
    assert torch.equal(loaded.model.layers[0].mlp.up_proj.weight, model.model.layers[0].mlp.up_proj.weight)


def test_the_backbone_alone_has_the_same_blocks():
    torch.manual_seed(0)
    backbone = TotoModel(config(256))
    for ours, theirs in zip(hidden_matrices(backbone), hidden_matrices(fresh(256)), strict=True):
        assert torch.equal(ours, theirs) and ours.std().item() == pytest.approx(0.01, rel=0.03)


def test_presets_of_the_family_share_one_base():
    """a1 is the base, a plain Llama; all of a1..a6 take one learning rate (paper App. A.7: 2^-7)."""
    for name in PRESETS:
        fields = PRESETS[name]
        assert fields.get("mup_base_width") == (256 if name.startswith("a") else None), name
        assert fields.get("mup_base_head_dim") == (16 if name.startswith("a") else None), name
    a1 = TotoConfig.from_preset("a1")
    assert (a1.hidden_size, a1.head_dim) == (a1.mup_base_width, a1.mup_base_head_dim)


def test_sizes_that_are_invalid(small_config):
    with pytest.raises(ValueError, match="mup_base_width is 0; set a positive size, or None for no muP"):
        TotoConfig(mup_base_width=0)
    assert TotoConfig().mup_base_width is None
