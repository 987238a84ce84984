"""A checkpoint at another resolution and RoPE base (paper Table 4): one line, checked, and still there after saving."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from modeling_toto import TotoConfig, TotoForCausalLM, TotoModel


@pytest.fixture
def saved(small_model, tmp_path):
    small_model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def frequencies(base: float, dim: int) -> torch.Tensor:
    return base ** (-torch.arange(0, dim, 2).float() / dim)


def test_the_papers_rows_at_32_x_32():
    """4 frames of 1,024 tokens are as long as 16 of 256: the row of the 16 -> 32 fine-tune."""
    for name in ("base", "large"):
        config = TotoConfig.from_preset(name, tokens_per_frame=1024, num_frames=4, rope_theta=50_000)
        assert config.grid_size == (32, 32) and config.max_position_embeddings == 4098
        assert config.row_length() == 4098 and config.context_frames == 4
        assert config.rope_parameters["rope_theta"] == 50_000
        with torch.device("meta"):
            model = TotoForCausalLM(config)
        assert model.model.rotary_emb.max_seq_len_cached == 4098 and model.model.embed_tokens.num_embeddings == 8256


@pytest.mark.parametrize("load", [TotoForCausalLM.from_pretrained, AutoModelForCausalLM.from_pretrained])
def test_one_line_changes_grid_and_rope_base(saved, small_model, rows, tmp_path, load):
    changes = {"tokens_per_frame": 16, "num_frames": 1, "rope_theta": 50_000.0}
    model = load(saved, **changes)
    dim = model.config.head_dim
    assert model.config.grid_size == (4, 4) and model.config.num_frames == 1
    torch.testing.assert_close(model.model.rotary_emb.inv_freq, frequencies(50_000, dim))
    torch.testing.assert_close(small_model.model.rotary_emb.inv_freq, frequencies(10_000, dim))
    # the weights are the same, and positions mean something else: all but the first logits differ
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(model.parameters(), small_model.parameters(), strict=True)
    )
    ours, theirs = model(rows).logits, small_model(rows).logits
    torch.testing.assert_close(ours[:, 0], theirs[:, 0])
    assert (ours[:, 1:] - theirs[:, 1:]).abs().amax((0, 2)).min() > 0
    model.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again")
    assert torch.equal(again(rows).logits, ours)
    assert again.config.grid_size == (4, 4) and again.config.rope_parameters["rope_theta"] == 50_000
    # and back
    assert torch.equal(load(tmp_path / "again", rope_theta=10_000.0)(rows).logits, theirs)


def test_generated_frames_have_the_new_size(saved, rows):
    model = TotoForCausalLM.from_pretrained(saved, tokens_per_frame=8, num_frames=2, grid_size=(2, 4))
    assert model.generate_frames(rows[:, :9], 1, temperature=0).shape == (2, 17)


def test_changes_of_a_config_are_checked(saved):
    assert TotoConfig.from_pretrained(saved, num_frames=2).grid_size == (2, 2)
    assert AutoConfig.from_pretrained(saved, tokens_per_frame=9).grid_size == (3, 3)
    assert TotoConfig.from_pretrained(saved, tokens_per_frame=6).grid_size is None
    with pytest.raises(ValueError, match=r"grid_size \(2, 2\) holds 4 codes but tokens_per_frame is 16"):
        TotoConfig.from_pretrained(saved, tokens_per_frame=16, grid_size=[2, 2])
    with pytest.raises(ValueError, match="feature_layer is 9"):
        TotoModel.from_pretrained(saved, feature_layer=9)
    # what is not a field of the config goes where transformers expects it
    model = TotoModel.from_pretrained(saved, dtype=torch.bfloat16, attn_implementation="eager", rope_theta=7.0)
    assert model.dtype is torch.bfloat16 and model.config._attn_implementation == "eager"
    config, rest = TotoConfig.from_pretrained(saved, num_labels=7, colour="red", return_unused_kwargs=True)
    assert config.num_labels == 7 and rest == {"colour": "red"}


def test_other_rope_parameters_stay(saved):
    scaled = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}
    config = TotoConfig.from_pretrained(saved, rope_parameters=scaled, rope_theta=50_000.0)
    assert config.rope_parameters == scaled | {"rope_theta": 50_000.0} and scaled["rope_theta"] == 10_000.0
