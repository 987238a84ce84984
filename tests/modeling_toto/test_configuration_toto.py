"""The presets are the paper's sizes, and the config says what it must to others."""

import pytest
import torch

from modeling_toto import PRESETS, TotoConfig, TotoForCausalLM

# millions of parameters: paper Table 1 and Table 15; tiny is ours
PAPER_SIZES = {
    "base": 120,
    "large": 280,
    "1b": 1100,
    "a1": 14.8,
    "a2": 77.2,
    "a3": 215,
    "a4": 458,
    "a5": 1200,
    "a6": 1900,
}


def parameter_count(name: str) -> int:
    with torch.device("meta"):
        model = TotoForCausalLM(TotoConfig.from_preset(name))
    model.tie_weights()
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", PAPER_SIZES)
def test_presets_have_the_papers_sizes(name):
    assert parameter_count(name) / 1e6 == pytest.approx(PAPER_SIZES[name], rel=0.05)


def test_exact_sizes():
    assert parameter_count("tiny") == 1_648_256
    assert parameter_count("base") == 119_606_016
    assert parameter_count("large") == 276_923_392


def test_every_preset_is_checked():
    assert set(PRESETS) == set(PAPER_SIZES) | {"tiny"}


def test_the_row_of_the_paper():
    config = TotoConfig.from_preset("base")
    assert config.vocab_size == 8256 and config.num_codes == 8192 and config.max_position_embeddings == 4098
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id, config.image_start_token_id) == (0, 1, 2, 3)
    assert config.grid_size == (16, 16)
    assert TotoConfig.from_preset("tiny").grid_size == (8, 8)
    assert TotoConfig.from_preset("a3").num_attention_heads == 16


def test_overrides_and_unknown_presets():
    config = TotoConfig.from_preset("large", num_hidden_layers=3, rope_theta=50000.0)
    assert config.num_hidden_layers == 3 and config.rope_parameters["rope_theta"] == 50000.0
    with pytest.raises(ValueError, match=r"Preset 'huge' is unknown; choose one of tiny, base, large, 1b, a1"):
        TotoConfig.from_preset("huge")


def test_row_length_and_context_frames():
    config = TotoConfig.from_preset("base")  # paper: start + 16 x 256 codes + end
    assert config.row_length() == 4098 and config.context_frames == 16
    assert (config.row_length(0), config.row_length(1), config.row_length(5)) == (2, 258, 1282)
    assert [TotoConfig.from_preset(name).context_frames for name in PRESETS] == [16] * len(PRESETS)
    # a context that ends inside a frame, or has no room for the end token, holds one frame less
    for length, frames in ((4, 0), (5, 1), (7, 1), (8, 2), (10, 2)):
        assert TotoConfig(tokens_per_frame=3, max_position_embeddings=length).context_frames == frames
    longer = TotoConfig(tokens_per_frame=4, num_frames=2, max_position_embeddings=18)
    assert longer.row_length() == 10 and longer.context_frames == 4  # the context may exceed a row


def test_grids():
    assert TotoConfig(tokens_per_frame=6).grid_size is None
    assert TotoConfig(tokens_per_frame=6, grid_size=[2, 3]).grid_size == (2, 3)
    with pytest.raises(ValueError, match="holds 6 codes but tokens_per_frame is 256"):
        TotoConfig(grid_size=(2, 3))
    assert TotoConfig(vocab_size=128, hidden_size=24, num_attention_heads=3, rms_norm_eps=1).rms_norm_eps == 1


def test_config_roundtrip_and_auto_map(tmp_path):
    config = TotoConfig.from_preset("tiny", num_frames=8)
    config.save_pretrained(tmp_path)
    assert TotoConfig.from_pretrained(tmp_path).to_dict() == config.to_dict() | {
        "transformers_version": TotoConfig.from_pretrained(tmp_path).transformers_version
    }
    # read from the Hub, then saved elsewhere: the code is the one next to it; what others added stays
    config = TotoConfig(auto_map={"AutoModel": "a/b--modeling_toto.TotoModel", "AutoProcessor": "own.Processor"})
    assert config.auto_map["AutoModel"] == "modeling_toto.TotoModel"
    assert config.auto_map["AutoProcessor"] == "own.Processor"
    assert config.auto_map["AutoConfig"] == "configuration_toto.TotoConfig"


def test_auto_map_of_earlier_versions_and_of_others():
    former = {
        "AutoModelForImageClassification": "classification_toto.TotoForImageClassification",
        "AutoModelForVideoClassification": "a/b--classification_toto.TotoForVideoClassification",
        "AutoModelForPreTraining": "a/b--patch_prediction_toto.TotoForPatchPrediction",
    }
    others = {
        "AutoModelForImageSegmentation": "a/b--modeling_toto.TotoForSegmentation",
        "AutoModelForMaskedLM": "classification_toto.TheirOwn",
        "AutoTokenizer": ["own.Slow", None],
    }
    config = TotoConfig(auto_map=former | others)
    for auto_class, reference in former.items():
        assert config.auto_map[auto_class] == f"modeling_toto.{reference.split('.')[1]}"
    for auto_class, reference in others.items():
        assert config.auto_map[auto_class] == reference
    assert TotoConfig().auto_map["AutoModelForPreTraining"] == "modeling_toto.TotoForCausalLM"
