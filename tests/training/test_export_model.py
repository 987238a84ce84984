"""`toto export` takes what --model may be, and says in one sentence what it cannot do."""

import json

import pytest
import torch
from tiny_run import CONFIG
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from modeling_toto import TotoConfig, TotoForCausalLM, TotoModel
from training.export import main


@pytest.fixture
def run(tmp_path):
    """A run folder with one checkpoint, of a model with muP."""
    torch.manual_seed(0)
    config = TotoConfig(**CONFIG, mup_base_width=16, mup_base_head_dim=8, tie_word_embeddings=False)
    TotoForCausalLM(config).save_pretrained(tmp_path / "run" / "checkpoints" / "step_000002")
    return tmp_path / "run"


def test_a_run_becomes_a_llama(run, tmp_path, capsys):
    main(["--to", "llama", "--model", str(run), "--output", str(tmp_path / "a")])
    told = capsys.readouterr().out
    assert f"wrote {tmp_path / 'a'}: a LlamaForCausalLM of" in told
    llama = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    toto = TotoForCausalLM.from_pretrained(run / "checkpoints" / "step_000002")
    ids = torch.randint(64, 96, (1, 12))
    assert type(llama) is LlamaForCausalLM
    torch.testing.assert_close(llama(ids).logits, toto(ids).logits, rtol=0, atol=1e-6)
    assert str(tmp_path) not in (tmp_path / "a" / "README.md").read_text()  # nobody's folders in a card
    (tmp_path / "empty").mkdir()
    main(["--model", str(run), "--output", str(tmp_path / "empty"), "--dtype", "bfloat16"])
    assert json.loads((tmp_path / "empty" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--to", "onnx"], "--to onnx is unknown; choose llama"),
        (["--dtype", "int8"], "--dtype int8 is unknown; choose float32, bfloat16"),
        ([], "--model MODEL"),
        (["--model", "nowhere/at/all", "--output", "x"], "no model folder 'nowhere/at/all'"),
    ],
)
def test_wrong_flags(flags, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        main(flags)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported(run, tmp_path):
    def refused(model, words):
        model.save_pretrained(tmp_path / "model")
        with pytest.raises(ValueError, match=words):
            main(["--model", str(tmp_path / "model"), "--output", str(tmp_path / "b")])
        assert not (tmp_path / "b").exists()

    refused(TotoModel(TotoConfig(**CONFIG, tie_word_embeddings=False)), "not a complete next-token model.*lm_head")
    refused(TotoForCausalLM(TotoConfig(**CONFIG, attention_mode="full")), "only causal models")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    refused(LlamaForCausalLM(LlamaConfig(vocab_size=70, **sizes)), "is a 'llama' model, not a Toto")
    with pytest.raises(ValueError, match=r"is not empty; choose another --output"):
        main(["--model", str(run), "--output", str(run)])
