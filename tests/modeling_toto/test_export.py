"""An exported Toto is a plain Llama: same logits, same draws, no code of this project, a card that lists the ids."""

import json
import os
import subprocess
import sys

import pytest
import torch
from test_saved_models import BLOCK
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from modeling_toto import TotoConfig, TotoForCausalLM
from modeling_toto.export import to_llama, write_llama

# None of them a power of two, which would fold without rounding; head sizes other than the base's; grouped queries.
MUP = {"mup_base_width": 12, "mup_base_head_dim": 6, "embedding_multiplier": 3.3, "output_multiplier": 1.7}
# Folding moves a product to another place: float32 rounding, in units of the largest logit. Measured: 6e-7.
TOLERANCE = 2e-6


@pytest.fixture
def perturbed(small_config):
    """Makes a model all of whose weights, norms and biases too, are away from where they start."""

    def make(**fields) -> TotoForCausalLM:
        torch.manual_seed(0)
        model = TotoForCausalLM(TotoConfig(**small_config.to_dict() | fields)).eval().requires_grad_(False)
        for weight in model.parameters():
            weight += 0.2 * torch.randn_like(weight)
        return model

    return make


def far(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    ours, theirs = ours.detach().float(), theirs.detach().float()
    return float((ours - theirs).abs().max() / ours.abs().max())


@pytest.mark.parametrize("kv_heads", [2, 1])
@pytest.mark.parametrize("mup", [{}, MUP], ids=["plain", "mup"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_logits_and_draws_are_the_same(perturbed, rows, tied, mup, kv_heads):
    model = perturbed(tie_word_embeddings=tied, num_key_value_heads=kv_heads, attention_bias=True, **mup)
    llama = to_llama(model).eval()
    assert type(llama) is LlamaForCausalLM and llama.config.tie_word_embeddings is tied
    assert (llama.lm_head.weight is llama.model.embed_tokens.weight) is tied
    assert far(model(rows).logits, llama(rows).logits) < TOLERANCE
    if mup:  # the multipliers do something, or nothing has been shown
        unfolded = LlamaForCausalLM(llama.config).eval()
        unfolded.load_state_dict(model.state_dict())
        assert far(model(rows).logits, unfolded(rows).logits) > 0.1
    else:
        assert torch.equal(model(rows).logits, llama(rows).logits)
    draw = {"max_new_tokens": 8, "do_sample": True, "top_k": 0, "temperature": 0.7}
    torch.manual_seed(1)
    ours = model.generate(rows[:, :5], **draw)
    torch.manual_seed(1)
    assert torch.equal(ours, llama.generate(rows[:, :5], **draw))
    left = torch.ones_like(rows[:, :9])
    left[0, :3] = 0  # padding in front
    assert far(model(rows[:, :9], left).logits[:, 3:], llama(rows[:, :9], left).logits[:, 3:]) < TOLERANCE


def test_the_model_is_left_alone(perturbed, rows):
    model = perturbed(**MUP)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    to_llama(model)
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("tied", [True, False])
def test_bfloat16_rounds_each_weight_once(perturbed, rows, tied):
    model = perturbed(tie_word_embeddings=tied, **MUP)
    exact, rounded = to_llama(model), to_llama(model, torch.bfloat16)
    assert {weight.dtype for weight in rounded.parameters()} == {torch.bfloat16}
    assert rounded.config.dtype == torch.bfloat16 and rounded.config.tie_word_embeddings is tied
    for name, weight in exact.state_dict().items():
        assert torch.equal(weight.bfloat16(), rounded.state_dict()[name]), name
    # a bfloat16 checkpoint stays one; bfloat16 has 8 bits, and 0.03 is what a handful of roundings leave of them
    again = to_llama(model.bfloat16())
    assert again.dtype is torch.bfloat16
    assert far(model(rows).logits, again(rows).logits) < 0.03


def test_the_folder_is_a_llamas(perturbed, rows, tmp_path):
    model = perturbed(**MUP)
    model.generation_config.max_new_tokens = 9
    folder = write_llama(model, tmp_path / "new" / "llama", "user/toto")
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors", "README.md")
    }
    assert not list(folder.parent.glob(".*"))
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == "llama" and config["architectures"] == ["LlamaForCausalLM"]
    own = set(TotoConfig.__annotations__) - {"vocab_size", "hidden_size", "max_position_embeddings"}
    inherited = set(LlamaForCausalLM.config_class().to_dict())
    assert not (own - inherited) & set(config) and "auto_map" not in config
    assert json.loads((folder / "generation_config.json").read_text())["max_new_tokens"] == 9
    _, report = LlamaForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    card = (folder / "README.md").read_text()
    for told in ("| 64 to 95 | the 32 visual codes", "| 1 | start of a video", "| 2 | end", "| 3 |", "`user/toto`"):
        assert told in card, told
    assert "4 codes, 2 x 2 in raster order" in card


PLAIN = """
import sys, torch
from transformers import AutoModelForCausalLM
try:
    import modeling_toto
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("the package is importable, so this proves nothing")
folder = sys.argv[1]
ids = torch.load(folder + "/../rows.pt", weights_only=True)
model = AutoModelForCausalLM.from_pretrained(folder)
assert type(model).__module__ == "transformers.models.llama.modeling_llama", type(model)
greedy = model.generate(ids[:, :5], max_new_tokens=8, do_sample=False)
torch.save({"logits": model(ids).logits.detach(), "greedy": greedy}, folder + "/../out.pt")
"""


def test_it_opens_where_this_project_is_not_installed(perturbed, rows, tmp_path):
    model = perturbed(tie_word_embeddings=False, **MUP)
    write_llama(model, tmp_path / "llama", "user/toto")
    torch.save(rows, tmp_path / "rows.pt")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", BLOCK + PLAIN, str(tmp_path / "llama")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    out = torch.load(tmp_path / "out.pt", weights_only=True)
    assert far(model(rows).logits, out["logits"]) < TOLERANCE
    assert torch.equal(out["greedy"], model.generate(rows[:, :5], max_new_tokens=8, do_sample=False))
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "llama")) is LlamaForCausalLM  # and here


@pytest.mark.parametrize("mode", ["prefix", "full"])
def test_other_attention_is_refused(perturbed, mode):
    model = perturbed(attention_mode=mode, prefix_length=2 if mode == "prefix" else None)
    with pytest.raises(ValueError, match=f"attention_mode is '{mode}'.*export only causal models"):
        to_llama(model)
