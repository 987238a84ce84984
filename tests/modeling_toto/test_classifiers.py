"""Heads read the layer they say, count only codes, load any checkpoint, and learn next tokens if asked to."""

import copy
import os
import subprocess
import sys

import pytest
import torch
from test_saved_models import BLOCK
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForVideoClassification

from modeling_toto import TotoConfig, TotoForCausalLM, TotoForImageClassification, TotoForVideoClassification, TotoModel

POOLERS = ("mean", "attention", "cross_attention_mlp")
LABELS = torch.tensor([2, 0])


@pytest.fixture
def make(small_config):
    """make(cls=TotoForImageClassification, **fields) -> a model of 4 blocks with 5 labels."""

    def make(cls=TotoForImageClassification, **fields):
        sizes = {k: v for k, v in small_config.to_dict().items() if k not in ("id2label", "label2id")}
        config = TotoConfig(**sizes | {"num_hidden_layers": 4, "num_labels": 5} | fields)
        torch.manual_seed(0)
        return cls(config).eval()

    return make


def ran_blocks(model, *args, **kwargs):
    """Numbers of the blocks that a call runs, and what it returns."""
    ran = []
    hooks = [
        block.register_forward_hook(lambda *_, k=k: ran.append(k)) for k, block in enumerate(model.base_model.layers)
    ]
    output = model(*args, **kwargs)
    for hook in hooks:
        hook.remove()
    return ran, output


@pytest.mark.parametrize("cls", [TotoForImageClassification, TotoForVideoClassification])
@pytest.mark.parametrize("pooler", POOLERS)
def test_shapes_loss_and_learning(make, rows, cls, pooler):
    model = make(cls, pooler=pooler, initializer_range=0.2).train()
    output = model(rows, labels=LABELS)
    assert output.logits.shape == (2, 5) and output.hidden_states is None and output.next_token_loss is None
    torch.testing.assert_close(output.loss, F.cross_entropy(output.logits, LABELS))
    assert torch.equal(output.loss, output.task_loss)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(30):
        optimiser.zero_grad()
        model(rows, labels=LABELS).loss.backward()
        optimiser.step()
    assert model(rows, labels=LABELS).loss < 0.2 < output.loss


@pytest.mark.parametrize(
    ("problem", "labels", "loss"),
    [
        ("single_label_classification", LABELS, F.cross_entropy),
        ("multi_label_classification", torch.eye(5)[:2], F.binary_cross_entropy_with_logits),
        ("regression", torch.randn(2, 5), F.mse_loss),
    ],
)
def test_problem_types(make, rows, problem, labels, loss):
    model = make()
    for given in (problem, None if problem != "regression" else problem):  # given, or found by transformers' rule
        model.config.problem_type = given
        output = model(rows, labels=labels)
        torch.testing.assert_close(output.loss, loss(output.logits, labels))
        assert model.config.problem_type == problem


@pytest.mark.parametrize("layer", [0, 1, 2, 3, 4])
def test_layer_k_is_the_residual_stream_after_block_k(make, rows, layer):
    """Written out: blocks run by hand, layer normalisation, mean over the 16 codes between start and end."""
    model = make(pooler="mean", feature_layer=layer, initializer_range=0.2)
    trunk = model.model
    hidden = trunk.embed_tokens(rows)
    position = trunk.rotary_emb(hidden, position_ids=torch.arange(rows.shape[1])[None])
    for block in trunk.layers[:layer]:
        hidden = block(hidden, position_embeddings=position)
    expected = model.classifier(F.layer_norm(hidden, (32,))[:, 1:-1].mean(1))
    ran, output = ran_blocks(model, rows)
    assert ran == list(range(layer))
    torch.testing.assert_close(output.logits, expected)
    # running the whole depth, for hidden states or the next-token loss, reads the same
    torch.testing.assert_close(model(rows, output_hidden_states=True).logits, expected)
    joint = make(pooler="mean", feature_layer=layer, initializer_range=0.2, next_token_loss="backbone")
    joint.load_state_dict(model.state_dict(), strict=False)
    ran, output = ran_blocks(joint, rows, labels=LABELS)
    assert ran == [0, 1, 2, 3]
    torch.testing.assert_close(output.logits, expected)


def test_the_layer_may_change_per_call(make, rows):
    model, deeper = make(), make(feature_layer=3)
    assert model.feature_layer == 2  # half depth
    assert torch.equal(model(rows, feature_layer=3).logits, deeper(rows).logits)
    assert not torch.equal(model(rows).logits, deeper(rows).logits)
    for wrong in (-1, 5):
        with pytest.raises(ValueError, match=rf"feature_layer is {wrong}, .* layers 0 \(the embeddings\) to 4"):
            model(rows, feature_layer=wrong)
    with pytest.raises(ValueError, match=r"feature_layer is 5, .* layers 0 \(the embeddings\) to 4"):
        make(feature_layer=5)


@pytest.mark.parametrize("pooler", POOLERS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_special_and_pad_positions_stay_out(make, rows, pooler, side):
    model = make(pooler=pooler, attention_mode="full", initializer_range=0.2)
    for module in (model.pooler, model.classifier):
        for weight in module.parameters():
            torch.nn.init.normal_(weight)
    logits = model(rows).logits
    ids, mask = F.pad(rows, (3, 0) if side == "left" else (0, 3)), torch.ones_like(rows)
    mask = F.pad(mask, (3, 0) if side == "left" else (0, 3))
    model.config.max_position_embeddings = 21
    torch.testing.assert_close(model(ids, attention_mask=mask).logits, logits, rtol=1e-4, atol=1e-4)
    # a stream of known features: only those of codes reach the logits
    known = torch.randn(2, 21, 32)
    changed = torch.where(ids[..., None] >= 64, known, torch.randn(known.shape))
    found = []
    for features in (known, changed):
        hook = model.model.register_forward_hook(
            lambda _m, _i, out, x=features: setattr(out, "last_hidden_state", x) or out
        )
        found.append(model(ids, attention_mask=mask).logits)
        hook.remove()
    assert torch.equal(*found)


def test_rows_without_codes_give_numbers(make, rows):
    ids = rows.clone()
    ids[1] = 5
    logits = make()(ids).logits
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits[:1], make()(rows[:1]).logits)


def test_inputs_embeds_pool_what_is_not_hidden(make, rows):
    model = make()
    mask = (rows >= 64).long()  # given by the caller
    embeds = model.get_input_embeddings()(rows)
    full = {"attention_mask": mask, "attention_mode": "full"}
    torch.testing.assert_close(model(inputs_embeds=embeds, **full).logits, model(rows, **full).logits)
    assert not torch.allclose(model(inputs_embeds=embeds).logits, model(rows).logits, rtol=0, atol=1e-7)
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        model(rows, inputs_embeds=embeds)


def test_hidden_states_and_attentions_are_whole(make, rows):
    model = make()
    model.set_attn_implementation("eager")
    output = model(rows, output_hidden_states=True, output_attentions=True)
    assert len(output.hidden_states) == 5 and len(output.attentions) == 4
    backbone = model.model(rows, output_hidden_states=True)
    for ours, theirs in zip(output.hidden_states, backbone.hidden_states, strict=True):
        torch.testing.assert_close(ours, theirs)  # the last one normed
    chosen = model(rows, output_hidden_states=[0, -1]).hidden_states
    assert [state is None for state in chosen] == [False, True, True, True, False]
    assert torch.equal(chosen[4], output.hidden_states[4])
    torch.testing.assert_close(model(rows).logits, output.logits)
    model.config.tie_last_hidden_states = False
    stream = model(rows, output_hidden_states=True).hidden_states[4]
    torch.testing.assert_close(model.model.norm(stream), output.hidden_states[4])
    assert len(model(rows, labels=LABELS, return_dict=False)) == 3  # loss, logits, task loss


def test_what_is_not_read_is_frozen(make, rows, tmp_path):
    """Every trained parameter gets a gradient, also in a model that was loaded."""
    make(feature_layer=1).save_pretrained(tmp_path)
    for model in (make(feature_layer=1), TotoForImageClassification.from_pretrained(tmp_path)):
        model.train()(rows, labels=LABELS).loss.backward()
        for name, weight in model.named_parameters():
            unread = name.startswith(("model.layers.1", "model.layers.2", "model.layers.3", "model.norm"))
            assert weight.requires_grad == (weight.grad is not None) == (not unread), name
    joint = make(next_token_loss="backbone").train()
    joint(rows, labels=LABELS).loss.backward()
    assert all(weight.grad is not None for weight in joint.parameters())


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
@pytest.mark.parametrize("kind", ["backbone", "stop_gradient"])
def test_joint_next_token_loss(make, rows, kind, gradient_checkpointing):
    model = make(next_token_loss=kind, next_token_loss_weight=0.5, initializer_range=0.2).train()
    causal = TotoForCausalLM(model.config).train()
    causal.load_state_dict(model.state_dict(), strict=False)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable()
    labels = rows.masked_fill(rows < 64, -100)  # the codes
    plain = causal(rows, labels=labels)
    output = model(rows, labels=LABELS)
    torch.testing.assert_close(output.next_token_loss, plain.loss)
    torch.testing.assert_close(output.loss, output.task_loss + 0.5 * output.next_token_loss)
    output.loss.backward()
    (0.5 * plain.loss).backward()
    assert model.classifier.weight.grad.abs().sum() > 0 and model.pooler.query.grad.abs().sum() > 0
    expected = dict(causal.named_parameters())
    for name, weight in model.model.named_parameters():
        # above the feature layer (2) the task never reaches; below, only through the backbone
        alone = torch.allclose(weight.grad, expected[f"model.{name}"].grad, rtol=1e-4, atol=1e-6)
        above = name.startswith(("layers.2", "layers.3", "norm"))
        assert alone == (above or kind == "stop_gradient"), name


def test_next_token_loss_counts_what_it_should(make, rows):
    model = make(next_token_loss="backbone")
    loss = model(rows, labels=LABELS).next_token_loss
    padded, mask = F.pad(rows, (0, 3)), F.pad(torch.ones_like(rows), (0, 3))
    model.config.max_position_embeddings = 21
    torch.testing.assert_close(model(padded, attention_mask=mask, labels=LABELS).next_token_loss, loss)
    # under a prefix of 5, as in the causal model: the codes from the sixth token on
    causal = TotoForCausalLM(model.config).eval()
    causal.load_state_dict(model.state_dict(), strict=False)
    prefix = {"attention_mode": "prefix", "prefix_length": 5}
    labels = rows.masked_fill(rows < 64, -100)
    labels[:, :5] = -100
    torch.testing.assert_close(
        model(rows, labels=LABELS, **prefix).next_token_loss, causal(rows, labels=labels, **prefix).loss
    )
    assert model(rows).next_token_loss is None  # without labels there is no loss to join


def test_next_token_loss_refused(make, rows):
    model = make(next_token_loss="stop_gradient")

    def fail(*_):
        raise AssertionError("a block ran")

    model.model.layers[0].register_forward_pre_hook(fail)
    with pytest.raises(ValueError, match="no next-token loss under full attention"):
        model(rows, labels=LABELS, attention_mode="full")
    with pytest.raises(ValueError, match="needs input_ids"):
        model(inputs_embeds=model.get_input_embeddings()(rows), labels=LABELS)
    with pytest.raises(ValueError, match="sequence of 19 tokens is longer than the model's 18 positions"):
        model(F.pad(rows, (0, 1)))
    with pytest.raises(ValueError, match="id 96 is outside the vocabulary of 96"):
        model(rows.masked_fill(rows == rows.max(), 96))


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("next_token_loss", [None, "backbone"])
@pytest.mark.parametrize("pooler", POOLERS)
def test_a_causal_checkpoint_loads_with_only_the_head_new(make, rows, tmp_path, tied, next_token_loss, pooler):
    causal = make(TotoForCausalLM, tie_word_embeddings=tied)
    causal.save_pretrained(tmp_path)
    torch.manual_seed(3)
    model, report = TotoForImageClassification.from_pretrained(
        tmp_path, num_labels=5, pooler=pooler, next_token_loss=next_token_loss, output_loading_info=True
    )
    assert report["missing_keys"] and all(key.startswith(("classifier.", "pooler.")) for key in report["missing_keys"])
    assert not report["unexpected_keys"]
    for name, weight in model.named_parameters():
        assert torch.isfinite(weight).all() and weight.device.type == "cpu", name
        if name.startswith(("pooler", "classifier")) and "bias" not in name and "norm" not in name:
            assert 0.015 < weight.std() < 0.025, name  # drawn, not left as it was in memory
    if next_token_loss:
        assert torch.equal(model.lm_head.weight, causal.lm_head.weight)
        assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
        assert model._tp_plan.keys() >= {"lm_head"} and model._fsdp_plan.keys() >= {"lm_head"}
        labels = rows.masked_fill(rows < 64, -100)
        torch.testing.assert_close(model(rows, labels=LABELS).next_token_loss, causal(rows, labels=labels).loss)
    model.save_pretrained(tmp_path / "again")
    again = TotoForImageClassification.from_pretrained(tmp_path / "again")
    assert torch.equal(again(rows).logits, model(rows).logits)
    # and back: the backbone of a classifier is a backbone
    assert torch.equal(TotoModel.from_pretrained(tmp_path / "again").norm.weight, model.model.norm.weight)


def test_bfloat16_and_autocast(make, rows):
    model = make(pooler="cross_attention_mlp", next_token_loss="backbone")
    exact = model(rows, labels=LABELS)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(rows, labels=LABELS)
    torch.testing.assert_close(output.loss, exact.loss, rtol=0.02, atol=0.0)
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert half(rows).logits.dtype == torch.bfloat16
    torch.testing.assert_close(half(rows, labels=LABELS).loss.float(), exact.loss, rtol=0.02, atol=0.0)


def test_auto_classes(make, rows, tmp_path):
    make(TotoForVideoClassification).save_pretrained(tmp_path)
    assert type(AutoModelForImageClassification.from_pretrained(tmp_path)) is TotoForImageClassification
    model = AutoModelForVideoClassification.from_pretrained(tmp_path)
    assert type(model) is TotoForVideoClassification and model.main_input_name == "input_ids"
    assert model.config.num_labels == 5 and model.base_model is model.model
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(AutoModelForImageClassification.from_config(config)) is TotoForImageClassification


REMOTE = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoModelForImageClassification, AutoModelForVideoClassification
folder = sys.argv[1]
ids = torch.load(folder + "/rows.pt", weights_only=True)
head = AutoModelForVideoClassification.from_pretrained(folder + "/head", trust_remote_code=True)
assert type(head).__module__.startswith("transformers_modules."), type(head)
torch.save({"logits": head(ids).logits.detach(), "joint": head(ids, labels=torch.tensor([0, 1])).loss.detach()},
           folder + "/out.pt")
# a checkpoint saved by the causal model holds the heads' code too, and a head saved from it the causal model's
other = AutoModelForImageClassification.from_pretrained(folder + "/causal", num_labels=5, trust_remote_code=True)
other.save_pretrained(folder + "/again")
AutoModelForCausalLM.from_pretrained(folder + "/again", trust_remote_code=True)
"""


def test_remote_code_where_the_package_is_not_installed(make, rows, tmp_path):
    head = make(TotoForVideoClassification, next_token_loss="backbone", pooler="cross_attention_mlp")
    head.save_pretrained(tmp_path / "head")
    make(TotoForCausalLM).save_pretrained(tmp_path / "causal")
    torch.save(rows, tmp_path / "rows.pt")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", BLOCK + REMOTE, str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    out = torch.load(tmp_path / "out.pt", weights_only=True)
    assert torch.equal(out["logits"], head(rows).logits)
    assert torch.equal(out["joint"], head(rows, labels=torch.tensor([0, 1])).loss)
