"""What transformers' own models promise, Toto's promise too: loading, caches, resizing, tracing, sharding."""

import inspect
import os
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from torch.nn.functional import pad
from transformers import AutoModelForPreTraining, DynamicCache, LlamaConfig, LlamaForCausalLM, StaticCache
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from modeling_toto import (
    TotoConfig,
    TotoForCausalLM,
    TotoForImageClassification,
    TotoForPatchPrediction,
    TotoForVideoClassification,
    TotoModel,
)

ALL = [TotoModel, TotoForCausalLM, TotoForImageClassification, TotoForVideoClassification, TotoForPatchPrediction]
UNTIED_ATTENTION = {"tie_word_embeddings": False, "pooler": "attention", "next_token_loss": "backbone"}


@pytest.fixture
def config(small_config):
    return small_config


def configured(config, changes):
    return TotoConfig(**{**config.to_dict(), **changes})


def tensors(model):
    return dict(model.named_parameters()) | dict(model.named_buffers())


# --- loading


@pytest.mark.parametrize("changes", [{}, UNTIED_ATTENTION, {"pooler": "cross_attention_mlp"}], ids=str)
@pytest.mark.parametrize("cls", ALL)
def test_every_weight_and_buffer_is_made_from_the_meta_device(config, cls, changes):
    """An empty checkpoint leaves everything to `_init_weights`: the same draws as making the model afresh."""
    config = configured(config, changes)
    torch.manual_seed(0)
    afresh = tensors(cls(config))
    loaded = cls.from_pretrained(None, config=config, state_dict={})
    assert tensors(loaded).keys() == afresh.keys()
    for name, tensor in tensors(loaded).items():
        assert tensor.device.type == "cpu" and tensor.isfinite().all(), name
        if "inv_freq" in name:
            assert torch.equal(tensor, afresh[name]), name
        else:  # other draws of the same distribution; norms and biases are constant
            torch.testing.assert_close(tensor.std(correction=0), afresh[name].std(correction=0), atol=0.01, rtol=0.3)
            torch.testing.assert_close(tensor.mean(), afresh[name].mean(), atol=0.02, rtol=0)


@pytest.mark.parametrize("tied", [True, False])
def test_shards_and_bfloat16(config, rows, tmp_path, tied):
    config = configured(config, {"tie_word_embeddings": tied})
    model = TotoForCausalLM(config).eval().to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    names = {name for shard in shards for name in safe_open(shard, "pt").keys()}  # noqa: SIM118 - no iterator
    assert ("lm_head.weight" in names) != tied
    loaded = TotoForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16 and (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    # not equal: `.to(torch.bfloat16)` rounds the frequencies of RoPE, which loading leaves in float32
    torch.testing.assert_close(loaded(rows).logits, model(rows).logits, atol=0.02, rtol=0.02)
    assert TotoForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).dtype == torch.float32


@torch.no_grad()
def test_the_attention_can_be_chosen_when_loading_and_later(small_model, rows, tmp_path):
    small_model.save_pretrained(tmp_path)
    model = TotoForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    assert len(model(rows, output_attentions=True).attentions) == 2
    torch.testing.assert_close(model(rows).logits, small_model(rows).logits, atol=1e-5, rtol=1e-5)
    model.set_attn_implementation("sdpa")
    torch.testing.assert_close(model(rows).logits, small_model(rows).logits, atol=1e-5, rtol=1e-5)


# --- calling


@torch.no_grad()
def test_hidden_states_by_layer_index(small_model, rows):
    every = small_model(rows, output_hidden_states=True).hidden_states
    for asked, kept in ((1, {1}), ([0, 2], {0, 2}), ([-1], {2})):
        states = small_model(rows, output_hidden_states=asked).hidden_states
        assert len(states) == 3
        for k, state in enumerate(states):
            assert (state is not None) == (k in kept)
            assert state is None or torch.equal(state, every[k])


@torch.no_grad()
def test_attentions_are_rows_of_probabilities(config, rows):
    config._attn_implementation = "eager"
    attentions = TotoForCausalLM(config).eval()(rows, output_attentions=True).attentions
    assert len(attentions) == 2 and attentions[0].shape == (2, 2, 18, 18)
    torch.testing.assert_close(attentions[1].sum(-1), torch.ones(2, 2, 18))
    assert attentions[0].triu(1).abs().max() == 0


@torch.no_grad()
def test_logits_to_keep(small_model, rows):
    every = small_model(rows).logits
    for keep, expected in ((1, every[:, -1:]), (3, every[:, -3:]), (torch.tensor([0, 5]), every[:, [0, 5]])):
        torch.testing.assert_close(small_model(rows, logits_to_keep=keep).logits, expected)


@torch.no_grad()
def test_embeddings_instead_of_ids(small_model, rows):
    embeds = small_model.get_input_embeddings()(rows)
    torch.testing.assert_close(small_model(inputs_embeds=embeds).logits, small_model(rows).logits)
    kwargs = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    prompt = rows[:, :5]
    expected = small_model.generate(prompt, **kwargs)
    assert torch.equal(small_model.generate(inputs_embeds=embeds[:, :5], **kwargs), expected[:, 5:])
    assert torch.equal(small_model.generate(prompt, inputs_embeds=embeds[:, :5], **kwargs), expected)
    with pytest.raises(ValueError, match="exactly one of input_ids or inputs_embeds"):
        small_model.model(prompt, inputs_embeds=embeds[:, :5])


@torch.no_grad()
def test_left_padding_changes_nothing(small_model, rows):
    short = rows[:1, :5]
    batch = torch.cat([pad(short, (4, 0)), rows[1:, :9]])
    mask = torch.tensor([[0] * 4 + [1] * 5, [1] * 9])
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = small_model(batch, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(logits[0, 4:], small_model(short).logits[0], atol=1e-5, rtol=1e-5)
    kwargs = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    together = small_model.generate(batch, attention_mask=mask, **kwargs)
    assert torch.equal(together[0, 9:], small_model.generate(short, **kwargs)[0, 5:])
    assert torch.equal(together[1, 9:], small_model.generate(rows[1:, :9], **kwargs)[0, 9:])


@torch.no_grad()
def test_packed_rows_see_only_themselves(small_model, rows):
    """Positions that start again mark the next row, as transformers' flattening collator makes them."""
    lengths = (7, 11)
    packed = torch.cat([rows[0, :7], rows[1, :11]])[None]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    logits = small_model(packed, position_ids=positions, use_cache=False).logits[0]
    torch.testing.assert_close(logits[:7], small_model(rows[:1, :7]).logits[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits[7:], small_model(rows[1:, :11]).logits[0], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_packed_rows_may_be_longer_than_the_context(small_model, rows):
    """As in Llama: what counts is the highest position, 17 in each of these two rows."""
    llama = LlamaForCausalLM(LlamaConfig(**small_model.config.to_dict() | {"architectures": None})).eval()
    llama.load_state_dict(small_model.state_dict())
    packed = rows.flatten()[None]
    positions = torch.arange(18).repeat(2)[None]
    logits = small_model(packed, position_ids=positions, use_cache=False).logits
    assert torch.equal(logits, llama(packed, position_ids=positions, use_cache=False).logits)
    torch.testing.assert_close(logits[0, 18:], small_model(rows[1:]).logits[0], atol=1e-5, rtol=1e-5)
    labels = {"labels": packed, "skip_logits": True}
    assert small_model(packed, position_ids=positions, **labels).loss.isfinite()
    classifier = TotoForVideoClassification(small_model.config).eval()
    assert classifier(packed, position_ids=positions).logits.isfinite().all()
    for wrong in (small_model, classifier):
        with pytest.raises(ValueError, match="position_ids reach 18, but the model has the positions 0 to 17"):
            wrong(packed, position_ids=positions + 1)
        with pytest.raises(ValueError, match="sequence of 36 tokens is longer than the model's 18 positions"):
            wrong(packed)


def test_auto_classes_make_new_models(config):
    for architectures, cls in ((None, TotoForCausalLM), (["TotoForPatchPrediction"], TotoForPatchPrediction)):
        model = AutoModelForPreTraining.from_config(configured(config, {"architectures": architectures}))
        assert type(model) is cls


def test_keyword_arguments_are_those_of_transformers():
    for cls in ALL:
        assert inspect.signature(cls.forward).parameters["kwargs"].annotation == Unpack[TransformersKwargs]


# --- caches and generation


@torch.no_grad()
def test_caches_give_the_logits_of_a_whole_pass(config, small_model, rows):
    whole = small_model(rows).logits
    for cache in (DynamicCache(config=config), StaticCache(config=config, max_cache_len=18)):
        parts = [small_model(rows[:, i:j], past_key_values=cache).logits for i, j in ((0, 6), (6, 7), (7, 18))]
        torch.testing.assert_close(torch.cat(parts, 1), whole, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_generate_in_every_mode(small_model, rows):
    prompt = rows[:, :5]
    fixed = {"max_new_tokens": 6, "min_new_tokens": 6}
    greedy = small_model.generate(prompt, do_sample=False, **fixed)
    for same in ({"cache_implementation": "static"}, {"use_cache": False}, {"prefill_chunk_size": 2}):
        assert torch.equal(small_model.generate(prompt, do_sample=False, **fixed, **same), greedy), same
    for one in ({"prompt_lookup_num_tokens": 2}, {"assistant_model": small_model}):
        assert torch.equal(small_model.generate(prompt[:1], do_sample=False, **fixed, **one), greedy[:1]), one
    for other in ({"do_sample": True, "top_p": 0.9}, {"num_beams": 3}, {"num_beams": 2, "do_sample": True}):
        torch.manual_seed(0)
        out = small_model.generate(prompt, **fixed, **other)
        assert out.shape == (2, 11) and torch.equal(out[:, :5], prompt)
    first = small_model.generate(prompt, do_sample=False, max_new_tokens=3, return_dict_in_generate=True)
    rest = small_model.generate(
        first.sequences, past_key_values=first.past_key_values, do_sample=False, max_new_tokens=3, min_new_tokens=3
    )
    assert torch.equal(rest, greedy)


# --- other sizes of the vocabulary


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_resized_embeddings(config, rows, tmp_path, tied):
    model = TotoForCausalLM(configured(config, {"tie_word_embeddings": tied})).eval()
    before = model(rows).logits
    model.resize_token_embeddings(104)
    assert model.config.vocab_size == 104 and model.lm_head.out_features == 104
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    after = model(rows, labels=rows)
    assert after.logits.shape == (2, 18, 104) and after.loss.isfinite()
    torch.testing.assert_close(after.logits[..., :96], before)
    torch.testing.assert_close(model(rows, labels=rows, skip_logits=True).loss, after.loss)
    assert model(torch.full((1, 3), 103)).logits.isfinite().all()
    model.save_pretrained(tmp_path)
    assert torch.equal(TotoForCausalLM.from_pretrained(tmp_path)(rows).logits, after.logits)
    model.resize_token_embeddings(80)
    with pytest.raises(ValueError, match="outside the vocabulary of 80"):
        model(rows)


# --- tracing


@torch.no_grad()
def test_fullgraph_compilation_and_export(config, small_model, rows):
    """One graph each, also with a static cache; the checks of values are for eager calls."""
    expected = small_model(rows).logits
    compiled = torch.compile(small_model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(rows).logits, expected)
    cache = StaticCache(config=config, max_cache_len=18)
    small_model(rows[:, :6], past_key_values=cache)
    torch.testing.assert_close(compiled(rows[:, 6:7], past_key_values=cache).logits, expected[:, 6:7])
    mask = torch.ones_like(rows)
    program = torch.export.export(
        small_model, (), {"input_ids": rows, "attention_mask": mask, "use_cache": False}, strict=False
    )
    exported = program.module()(input_ids=rows.flip(0), attention_mask=mask, use_cache=False)
    torch.testing.assert_close(exported.logits, expected.flip(0))


# --- sharding


def test_the_plans_are_llamas(config):
    sizes = {k: getattr(config, k) for k in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")}
    llama = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2))
    toto = TotoForCausalLM(config)
    assert toto.tp_plan and toto.tp_plan == llama.tp_plan and toto.pp_plan == llama.pp_plan
    assert toto._fsdp_plan and toto._fsdp_plan == llama._fsdp_plan
    joint = configured(config, {"next_token_loss": "backbone"})
    for head in (TotoForImageClassification(joint), TotoForPatchPrediction(config)):
        assert head.tp_plan.items() >= {k: v for k, v in llama.tp_plan.items() if k.startswith("model.")}.items()
        assert head._fsdp_plan.items() >= {k: v for k, v in llama._fsdp_plan.items() if k.startswith("model.")}.items()


FSDP = """
import gc, sys, torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from modeling_toto import TotoForCausalLM

def train_both():
    rank = dist.get_rank()
    rows = torch.load(sys.argv[1] + "/rows.pt", weights_only=True)
    whole, sharded = (TotoForCausalLM.from_pretrained(sys.argv[1]).train() for _ in range(2))
    for layer in sharded.model.layers:
        fully_shard(layer)
    fully_shard(sharded)
    assert isinstance(sharded.model.norm.weight, DTensor)
    for model in (whole, sharded):
        model.gradient_checkpointing_enable()
        optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
        for step in range(2):
            optimiser.zero_grad()
            # two rows of equal length: the loss of both is the mean of their means
            batch = rows if model is whole else rows[rank : rank + 1]
            loss = model(batch, labels=batch, skip_logits=True).loss
            loss.backward()
            optimiser.step()
    expected = dict(whole.named_parameters())
    for name, weight in sharded.named_parameters():
        torch.testing.assert_close(weight.full_tensor(), expected[name], atol=1e-4, rtol=1e-4, msg=name)

dist.init_process_group("gloo")
train_both()
gc.collect()  # what holds the process group goes before it: a group that goes with a model may abort the process
dist.destroy_process_group()
"""


def test_two_fsdp2_ranks_train_as_one_process(small_model, rows, tmp_path):
    folder = tmp_path / "model"
    small_model.save_pretrained(folder)
    torch.save(rows, folder / "rows.pt")
    script = tmp_path / "train.py"  # not next to the model's code, which would be imported before the package
    script.write_text(FSDP)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(["", *sys.path])}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, str(script), str(folder)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
