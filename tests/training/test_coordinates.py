"""The coordinate check: with muP activations move alike at every width, with standard parametrisation they do not."""

import json
import math

import pytest
import torch
from PIL import Image

from modeling_toto import TotoConfig, TotoForCausalLM
from training.sweep import command as sweep
from training.sweep.coordinates import QUANTITIES, config_of_width, coordinates, curve, main, measure, slope

WIDTHS = (64, 128, 256, 512, 1024)
BASE = TotoConfig(
    vocab_size=96,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    tokens_per_frame=16,
    num_frames=1,
    max_position_embeddings=18,
    tie_word_embeddings=False,
)


# Most that a slope of log2 mean |change| over log2 width may be. Measured with muP: 0.04, 0.11 and 0.01.
FLAT = {"logits": 0.1, "attention logits": 0.25, "residual stream": 0.1}


def slopes(parametrisation: str, widths: tuple, steps: int) -> dict[str, list[float]]:
    """Quantity -> slope after each step, from the second one for what moves only then: the readout starts at zero, so
    that it alone learns in the first step."""
    rows = []
    for width in widths:
        found = measure(config_of_width(BASE, width, parametrisation), steps, learning_rate=2**-9, seed=0)
        rows += [{"parametrisation": parametrisation, "width": width} | row for row in found]
    found = {}
    for quantity in QUANTITIES:
        curves = [curve(rows, parametrisation, quantity, step) for step in range(1, steps + 1)]
        assert (max(curves[0].values()) > 0) is (quantity == "logits")
        moved = curves if quantity == "logits" else curves[1:]
        assert all(min(points.values()) > 0 for points in moved)
        found[quantity] = [slope(points) for points in moved]
    return found


def test_mup_is_flat_over_widths_and_standard_parametrisation_is_not():
    flat, steep = slopes("muP", WIDTHS, 10), slopes("standard", WIDTHS, 3)
    for quantity, most in FLAT.items():
        assert max(map(abs, flat[quantity])) < most, (quantity, flat[quantity])
        assert min(steep[quantity]) > 0.9, (quantity, steep[quantity])  # measured: 0.96, 1.3, 1.5


@pytest.mark.parametrize(
    ("where", "without", "quantity"),
    [
        ("training.engine.optim.learning_rate_scales", lambda model: {}, "residual stream"),
        ("modeling_toto.modeling_toto.attention_scaling", lambda config: config.head_dim**-0.5, "attention logits"),
        ("modeling_toto.modeling_toto.output_multiplier", lambda config: 1.0, "logits"),
        ("modeling_toto.modeling_toto.init_weights", lambda model, module: None, "residual stream"),
    ],
)
def test_every_part_of_mup_is_needed(monkeypatch, where, without, quantity):
    """Without one of them the check fails."""
    monkeypatch.setattr(where, without)
    found = slopes("muP", (64, 256, 512), 4)[quantity]
    assert min(found) > 1.2 * FLAT[quantity], found


def test_the_base_width_is_the_same_model_in_both():
    ours, theirs = (
        measure(config_of_width(BASE, 128, name), 2, 0.01, 0, zero_start=False) for name in ("muP", "standard")
    )
    assert ours == theirs


def test_what_is_measured_is_what_the_model_computes():
    torch.manual_seed(0)
    fields = {"initializer_range": 0.3, "num_key_value_heads": 2, "attn_implementation": "eager"}
    config = TotoConfig(**config_of_width(BASE, 64, "muP").to_dict() | fields)
    model = TotoForCausalLM(config).eval()
    ids = torch.randint(64, 96, (2, 9))
    found = coordinates(model, ids)
    model.config.tie_last_hidden_states = False
    out = model(ids, output_hidden_states=True, output_attentions=True)
    assert torch.equal(found["logits"][0], out.logits)
    for block in range(2):
        assert torch.equal(found["residual stream"][block], out.hidden_states[block + 1])
        scores = torch.full((2, 4, 9, 9), -math.inf)
        scores[:, :, torch.ones(9, 9, dtype=torch.bool).tril()] = found["attention logits"][block]
        torch.testing.assert_close(scores.softmax(-1), out.attentions[block])


def test_rows_average_into_curves_and_slopes():
    rows = [
        {
            "parametrisation": "muP",
            "width": w,
            "quantity": "logits",
            "step": 1,
            "layer": 0,
            "change": w * k,
            "size": 1.0,
        }
        for w in (64, 256)
        for k in (1, 3)
    ]
    assert curve(rows, "muP", "logits", 1) == {64: 128, 256: 512}
    assert slope(curve(rows, "muP", "logits", 1)) == pytest.approx(1)
    assert slope(curve(rows, "muP", "logits", 1, "size")) == 0
    assert slope({64: 0.0, 128: 0.0}) == 0
    assert slope({64: 1.0, 128: math.inf}) is slope({64: 1.0, 128: math.nan}) is None


def test_widths_keep_heads_and_proportions():
    config = config_of_width(BASE, 512, "muP")
    assert (config.num_attention_heads, config.head_dim, config.intermediate_size) == (4, 128, 1024)
    assert (config.mup_base_width, config.mup_base_head_dim) == (128, 32)
    assert config_of_width(BASE, 512, "standard").mup_base_width is None
    assert config_of_width(TotoConfig.from_preset("a2"), 768, "muP").mup_base_width == 256  # the family's
    with pytest.raises(ValueError, match="width is 100; it must be a multiple of 8, so that 4 heads"):
        config_of_width(BASE, 100, "muP")


def test_the_command_writes_numbers_and_a_plot(tmp_path, capsys):
    output = tmp_path / "new" / "check.json"
    flags = ["--config", json.dumps({"num_hidden_layers": 1}), "--widths", "32", "16", "--steps", "2", "--seeds", "2"]
    sweep.main(["coordinates", *flags, "--output", str(output)])
    result = json.loads(output.read_text())
    assert result["command"].startswith("toto sweep coordinates --config") and result["versions"]["torch"]
    assert result["seeds"] == [0, 1] and result["model"]["base_width"] == 128
    assert {len(found) for quantities in result["slopes"].values() for found in quantities.values()} == {2}
    assert len(result["rows"]) == 2 * 2 * 2 * 2 * 3
    assert {(row["quantity"], row["layer"]) for row in result["rows"]} == {
        (quantity, int(quantity != "logits")) for quantity in QUANTITIES
    }
    with Image.open(output.with_suffix(".png")) as picture:
        assert min(picture.size) > 400
    told = capsys.readouterr().out
    assert "muP, logits" in told and f"wrote {output} and {output.with_suffix('.png')}" in told


def test_the_verb_teaches(capsys):
    for argv in ([], ["--help"]):
        sweep.main(argv)
        told = capsys.readouterr().out
        assert "usage: toto sweep" in told and "toto sweep coordinates" in told and "no curve may rise" in told
    with pytest.raises(ValueError, match="There is no sweep 'cordinates'; did you mean coordinates"):
        sweep.main(["cordinates"])


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--widths", "64"], "--widths needs at least two different widths"),
        (["--widths", "64", "60"], "The width is 60; it must be a multiple of 8"),
        (["--steps", "0"], "--steps is 0; it must be above 0"),
        (["--output", "check"], "--output is check; it must end in .json"),
        (["--preset", "huge"], "Preset 'huge' is unknown"),
        (["--config", '{"layers": 1}'], "--config has the unknown key 'layers'"),
    ],
)
def test_wrong_flags(flags, words):
    with pytest.raises(ValueError, match=words):
        main(flags)
