"""The VQGAN is taming-transformers': equal to its modules, and to transformers' two ports of it, on copied weights."""

import json
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAEEncoder, ChameleonVQVAEVectorQuantizer
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAEDecoder

import tokenization
from tokenization.configuration_vqgan import TotoVQGANConfig
from tokenization.modeling_vqgan import TotoVQGANModel

TINY = {
    "num_codes": 48,
    "embed_dim": 6,
    "base_channels": 8,
    "channel_multipliers": [1, 2],
    "num_res_blocks": 1,
    "attention_resolutions": [8],
    "z_channels": 10,
    "norm_groups": 4,
    "resolution": 16,
}


def spread_codes(model):
    """Put the codebook on the encoder's own outputs for noise, so that pictures use many codes."""
    with torch.no_grad():
        noise = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(2))
        latents = model.encode_latents(noise).permute(0, 2, 3, 1).flatten(0, 2)
        step = len(latents) // model.config.num_codes
        model.quantize.embedding.weight.copy_(latents[::step][: model.config.num_codes])
    return model


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return spread_codes(TotoVQGANModel(TotoVQGANConfig(**TINY)).eval())


@pytest.fixture(scope="module")
def pictures():
    return torch.rand(3, 3, 16, 24, generator=torch.Generator().manual_seed(1))


def taming(config):
    """taming's own modules at the sizes of `config`, put together under the names of its VQModel.

    VQModel itself needs PyTorch Lightning; its encoder, decoder and quantizer do not.
    """
    why = "taming-transformers-rom1504 is not installed"
    parts = pytest.importorskip("taming.modules.diffusionmodules.model", reason=why)
    quantize = pytest.importorskip("taming.modules.vqvae.quantize", reason=why)
    sizes = {
        "ch": config.base_channels,
        "ch_mult": tuple(config.channel_multipliers),
        "num_res_blocks": config.num_res_blocks,
        "attn_resolutions": list(config.attention_resolutions),
        "z_channels": config.z_channels,
        "resolution": config.resolution,
        "in_channels": 3,
        "out_ch": 3,
        "double_z": False,
    }
    model = nn.Module()
    model.encoder, model.decoder = parts.Encoder(**sizes), parts.Decoder(**sizes)
    model.quantize = quantize.VectorQuantizer2(config.num_codes, config.embed_dim, beta=0.25, sane_index_shape=True)
    model.quant_conv = nn.Conv2d(config.z_channels, config.embed_dim, 1)
    model.post_quant_conv = nn.Conv2d(config.embed_dim, config.z_channels, 1)
    return model.eval()


@pytest.mark.parametrize("num_codes", [1024, 16384])
def test_published_sizes_have_tamings_names_and_shapes(num_codes):
    with torch.device("meta"):
        ours = TotoVQGANModel(TotoVQGANConfig(num_codes=num_codes))
        theirs = taming(ours.config)
    assert ours.config.stride == 16
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]


SMALL = {"base_channels": 32, "z_channels": 16, "embed_dim": 8, "num_codes": 64, "resolution": 32}
PUBLISHED_PLAN = {**SMALL, "channel_multipliers": [1, 1, 2, 2, 4], "attention_resolutions": [2]}
OTHER_PLAN = {**SMALL, "channel_multipliers": [1, 2, 2], "num_res_blocks": 1, "attention_resolutions": [16, 8]}


def colours(count, height, width, seed):
    """Plain colours under some noise, so that many codes occur."""
    generator = torch.Generator().manual_seed(seed)
    squares = torch.rand(count, 3, 2, 2, generator=generator)
    noise = torch.rand(count, 3, height, width, generator=generator)
    return 0.8 * F.interpolate(squares, size=(height, width)) + 0.2 * noise


@torch.no_grad()
def same_weights(settings):
    """Ours and taming's with the same random weights, norms and biases included, and a codebook near the latents."""
    torch.manual_seed(0)
    ours = TotoVQGANModel(TotoVQGANConfig(**settings)).eval()
    for parameter in ours.parameters():
        if parameter.ndim == 1:  # 0 and 1 at the start, where mistakes would hide
            parameter.add_(0.2 * torch.randn_like(parameter))
    latents = ours.encode_latents(colours(16, 32, 32, seed=1)).permute(0, 2, 3, 1).flatten(0, 2)
    chosen = latents[torch.randperm(len(latents))[:64]]
    ours.quantize.embedding.weight.copy_(chosen + 0.1 * latents.std() * torch.randn_like(chosen))
    theirs = taming(ours.config)
    theirs.load_state_dict(ours.state_dict())  # strict: every name and shape
    return ours, theirs


@torch.no_grad()
@pytest.mark.parametrize("settings", [PUBLISHED_PLAN, OTHER_PLAN], ids=["published plan", "other plan"])
def test_latents_codes_and_pictures_are_tamings(settings):
    ours, theirs = same_weights(settings)
    pictures = colours(8, 32, 48, seed=2)
    z = theirs.quant_conv(theirs.encoder(2 * pictures - 1))
    torch.testing.assert_close(ours.encode_latents(pictures), z, atol=1e-5, rtol=0)
    codes = theirs.quantize(z)[2][2]
    distances = (z.permute(0, 2, 3, 1)[..., None, :] - theirs.quantize.embedding.weight).square().sum(-1)
    nearest = distances.topk(2, largest=False).values
    clear = nearest[..., 1] - nearest[..., 0] > 1e-4
    close = int((~clear).sum())
    assert close < 0.05 * clear.numel(), f"{close} of {clear.numel()} codes are too near to another to tell"
    assert codes.unique().numel() > 10  # not a comparison of constants
    assert torch.equal(ours.encode(pictures)[clear], codes[clear])

    def their_pictures():
        entries = theirs.quantize.get_codebook_entry(codes.flatten(), (*codes.shape, -1))
        return ((theirs.decoder(theirs.post_quant_conv(entries)) + 1) / 2).clamp(0, 1)

    # In fp32 single pixels of the deep decoder differ by up to 2e-5, by rounding: in float64 it is the same function.
    assert (ours.decode(codes) - their_pictures()).abs().mean() < 1e-5
    ours, theirs = ours.double(), theirs.double()
    torch.testing.assert_close(ours.decode(codes), their_pictures(), atol=1e-10, rtol=0)


@pytest.mark.parametrize("legacy", [True, False])
def test_the_losses_are_tamings(legacy):
    """taming's default (`legacy`) puts beta on the codebook's term by mistake; our two terms can make either order.

    Training follows the paper and taming's repaired order, beta on the commitment.
    """
    ours, theirs = same_weights(OTHER_PLAN)
    theirs.quantize.legacy = legacy
    pictures = colours(2, 32, 32, seed=2)
    _, loss, _ = theirs.quantize(theirs.quant_conv(theirs.encoder(2 * pictures - 1)))
    loss.backward()
    out = ours(pictures)
    codebook, commitment = (0.25, 1) if legacy else (1, 0.25)
    total = codebook * out.codebook_loss + commitment * out.commitment_loss
    total.backward()
    torch.testing.assert_close(total, loss, atol=1e-6, rtol=1e-5)
    for name in ("encoder.conv_in.weight", "quant_conv.weight", "quantize.embedding.weight"):  # the terms' shares
        gradient, expected = (model.get_parameter(name).grad for model in (ours, theirs))
        assert expected.abs().max() > 0
        torch.testing.assert_close(gradient, expected, atol=1e-5 * expected.abs().max().item(), rtol=1e-4)


@torch.no_grad()
def test_encoder_and_quantizer_equal_chameleons():
    config = ChameleonVQVAEConfig(
        base_channels=32,
        channel_multiplier=[1, 1, 2],
        attn_resolutions=[8],
        latent_channels=16,
        resolution=32,
        embed_dim=8,
        num_embeddings=64,
    )
    torch.manual_seed(0)
    ours = TotoVQGANModel(
        TotoVQGANConfig(
            base_channels=32,
            channel_multipliers=[1, 1, 2],
            attention_resolutions=[8],
            z_channels=16,
            resolution=32,
            embed_dim=8,
            num_codes=64,
        )
    ).eval()
    theirs = ChameleonVQVAEEncoder(config).eval()
    theirs.load_state_dict(ours.encoder.state_dict())  # strict: every name and shape
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    torch.testing.assert_close(ours.encoder(x), theirs(x), atol=1e-5, rtol=1e-5)
    ours.quantize.embedding.weight.normal_(std=0.1)
    quantizer = ChameleonVQVAEVectorQuantizer(config)
    quantizer.load_state_dict(ours.quantize.state_dict())
    z = torch.randn(2, 8, 5, 7)
    codes = ours.quantize(z)
    assert codes.shape == (2, 5, 7) and codes.unique().numel() > 10
    assert torch.equal(codes.flatten(), quantizer(z)[2])


@torch.no_grad()
def test_decoder_equals_janus():
    torch.manual_seed(0)
    ours = TotoVQGANModel(
        TotoVQGANConfig(
            base_channels=32,
            channel_multipliers=[1, 2, 2],
            num_res_blocks=1,
            attention_resolutions=[8],
            z_channels=16,
            resolution=32,
        )
    ).decoder
    theirs = JanusVQVAEDecoder(
        JanusVQVAEConfig(base_channels=32, channel_multiplier=[1, 2, 2], num_res_blocks=1, latent_channels=16)
    )
    # Janus numbers the levels in the order of use.
    renamed = {re.sub(r"up\.(\d)", lambda m: f"up.{2 - int(m[1])}", k): v for k, v in ours.state_dict().items()}
    theirs.load_state_dict(renamed)
    z = torch.randn(2, 16, 8, 8)
    torch.testing.assert_close(ours(z), theirs.eval()(z), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_shapes_and_ranges(model, pictures):
    codes = model.encode(pictures)
    assert codes.shape == (3, 8, 12) and codes.dtype == torch.int64
    assert codes.min() >= 0 and codes.max() < 48 and codes.unique().numel() > 5
    decoded = model.decode(codes)
    assert decoded.shape == pictures.shape and decoded.is_floating_point()
    assert decoded.min() >= 0 and decoded.max() <= 1
    wild = TotoVQGANModel(TotoVQGANConfig(**TINY)).eval()
    wild.decoder.conv_out.weight.mul_(100)
    assert not wild.decode_latents(torch.randn(1, 6, 8, 8)).abs().max() <= 1  # so clipping has something to do
    decoded = wild.decode(codes)
    assert decoded.min() == 0 and decoded.max() == 1
    assert torch.equal(model.decode(codes.to(torch.int32)), model.decode(codes.to(torch.uint16)))


@torch.no_grad()
def test_the_quantizer_finds_the_nearest_code(model, pictures):
    z = model.encode_latents(pictures).permute(0, 2, 3, 1)
    table = model.quantize.embedding.weight
    distance = (z[..., None, :] - table).double().square().sum(-1)
    codes = model.encode(pictures)
    # Equal up to rounding: the chosen code is as near as the nearest.
    chosen = distance.gather(-1, codes[..., None])[..., 0]
    torch.testing.assert_close(chosen, distance.amin(-1), atol=1e-6, rtol=1e-5)
    assert (codes == distance.argmin(-1)).float().mean() > 0.99
    assert torch.equal(model.quantize(table.T.reshape(1, 6, 6, 8)).flatten(), torch.arange(48))  # a code is its own


@torch.no_grad()
def test_a_picture_has_its_codes_in_any_batch(model, pictures):
    assert torch.equal(model.encode(pictures)[1:2], model.encode(pictures[1:2]))


def test_the_straight_through_gradient_reaches_the_encoder(pictures):
    torch.manual_seed(3)
    model = spread_codes(TotoVQGANModel(TotoVQGANConfig(**TINY)))
    out = model(pictures)
    assert out.reconstruction.shape == pictures.shape and out.codes.shape == (3, 8, 12)
    F.mse_loss(out.reconstruction, pictures).backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    # A bias of attention's keys shifts all logits alike: it has no gradient by nature.
    reached = [g for name, g in grads.items() if name.startswith(("encoder", "quant_conv")) and ".k.bias" not in name]
    assert all(g is not None and g.abs().sum() > 0 for g in reached)
    assert grads["quantize.embedding.weight"] is None  # moved by its own term only
    out = model(pictures)
    out.codebook_loss.backward()
    used = model.quantize.embedding.weight.grad.abs().sum(1) > 0
    assert torch.equal(used.nonzero().flatten(), out.codes.unique())
    assert out.codebook_loss.item() == pytest.approx(out.commitment_loss.item())


@torch.no_grad()
def test_forward_reconstructs_what_encode_and_decode_give(model, pictures):
    out = model(pictures)
    assert torch.equal(out.codes, model.encode(pictures))
    torch.testing.assert_close(out.reconstruction.clamp(0, 1), model.decode(out.codes), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_patches_fold_into_channels(pictures):
    torch.manual_seed(0)
    settings = {**TINY, "patch_size": 4, "resolution": 32, "mid_attention": False, "attention_resolutions": []}
    model = spread_codes(TotoVQGANModel(TotoVQGANConfig(**settings)).eval())
    assert model.config.stride == 8
    assert model.encoder.conv_in.in_channels == model.decoder.conv_out.out_channels == 48
    codes = model.encode(pictures)
    assert codes.shape == (3, 2, 3) and model.decode(codes).shape == pictures.shape
    assert not any("attn" in name for name, _ in model.named_parameters())


LOCAL = {**TINY, "channel_multipliers": [1], "attention_resolutions": [], "mid_attention": False}
LOCAL |= {"patch_size": 4, "norm_groups": 1, "local": True}


@pytest.fixture(scope="module")
def local():
    torch.manual_seed(0)
    return spread_codes(TotoVQGANModel(TotoVQGANConfig(**LOCAL)).eval())


@torch.no_grad()
def test_a_local_code_depends_on_its_own_patch_alone(local, pictures):
    latents, codes = local.encode_latents(pictures), local.encode(pictures)
    changed = pictures.clone()
    changed[1, :, 4:8, 12:16] = 1 - changed[1, :, 4:8, 12:16]
    differs = (local.encode_latents(changed) != latents).any(1)
    assert differs.nonzero().tolist() == [[1, 1, 3]]
    other = codes.clone()
    other[1, 1, 3] = (other[1, 1, 3] + 1) % 48
    differs = (local.decode(other) != local.decode(codes)).any(1)
    assert differs[1, 4:8, 12:16].any()
    differs[1, 4:8, 12:16] = False
    assert not differs.any()


@torch.no_grad()
def test_a_patch_has_the_same_local_code_everywhere(local, pictures):
    codes = local.encode(pictures)
    assert codes.unique().numel() > 20
    assert torch.equal(local.encode(pictures.roll((4, 8), (2, 3))), codes.roll((1, 2), (1, 2)))
    patches = pictures.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 4, 4)
    assert torch.equal(local.encode(patches).flatten(), codes.flatten())


@torch.no_grad()
def test_a_local_tokenizer_saves_and_loads(local, pictures, tmp_path):
    local.save_pretrained(tmp_path)
    loaded = TotoVQGANModel.from_pretrained(tmp_path)
    assert loaded.config.local and torch.equal(loaded.encode(pictures), local.encode(pictures))
    assert torch.equal(loaded.decode(local.encode(pictures)), local.decode(local.encode(pictures)))
    convolutions = [module for module in loaded.modules() if isinstance(module, nn.Conv2d)]
    assert all(module.kernel_size == (1, 1) for module in convolutions)


@torch.no_grad()
def test_a_checkpoint_from_before_the_setting_loads_as_it_was(model, pictures, tmp_path):
    model.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings.pop("local", None)
    (tmp_path / "config.json").write_text(json.dumps(settings))
    loaded = TotoVQGANModel.from_pretrained(tmp_path)
    assert loaded.config.local is False
    assert torch.equal(loaded.encode(pictures), model.encode(pictures))
    shipped = Path(tokenization.__file__).parent / "weights" / "toto-tokenizer-64"
    assert "local" not in json.loads((shipped / "config.json").read_text())
    assert TotoVQGANModel.from_pretrained(shipped).config.local is False


@torch.no_grad()
def test_save_and_load(model, pictures, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = TotoVQGANModel.from_pretrained(tmp_path)
    assert loaded.config.to_diff_dict() == model.config.to_diff_dict() and not loaded.training
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
    codes = model.encode(pictures)
    assert torch.equal(loaded.encode(pictures), codes) and torch.equal(loaded.decode(codes), model.decode(codes))


def test_a_partial_checkpoint_is_initialised(model, tmp_path):
    """from_pretrained builds on the meta device: what the file lacks must come from _init_weights, not from memory."""
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lost = ["decoder.conv_in.weight", "decoder.conv_in.bias", "decoder.norm_out.weight", "decoder.norm_out.bias"]
    lost.append("quantize.embedding.weight")
    save_file({k: v for k, v in weights.items() if k not in lost}, tmp_path / "model.safetensors", {"format": "pt"})
    torch.manual_seed(5)
    loaded, report = TotoVQGANModel.from_pretrained(tmp_path, output_loading_info=True)
    assert set(report["missing_keys"]) == set(lost)
    state = loaded.state_dict()
    bound = (10 * 9) ** -0.5  # torch's own default of a 3 x 3 convolution of 10 channels
    assert 0.9 * bound < state["decoder.conv_in.weight"].abs().max() <= bound
    assert 0 < state["decoder.conv_in.bias"].abs().max() <= bound
    assert (state["decoder.norm_out.weight"] == 1).all() and (state["decoder.norm_out.bias"] == 0).all()
    assert 0.5 / 48 < state["quantize.embedding.weight"].abs().max() <= 1 / 48
    kept = "encoder.conv_in.weight"
    assert torch.equal(state[kept], model.state_dict()[kept])


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "must be floats in"),
        (torch.zeros(3, 16, 16), r"must have the shape \(B, 3, H, W\)"),
        (torch.zeros(1, 16, 16, 3), r"must have the shape \(B, 3, H, W\)"),
        (torch.zeros(1, 3, 17, 16), "multiples of 2"),
        (torch.full((1, 3, 16, 16), 255.0), r"within \[0, 1\]"),
        (torch.full((1, 3, 16, 16), float("nan")), "finite"),
    ],
)
def test_wrong_pictures_are_refused(model, pixels, words):
    for encode in (model.encode, model.encode_latents, model):
        with pytest.raises(ValueError, match=words) as error:
            encode(pixels)
        assert "\n" not in str(error.value) and str(error.value).endswith(".")


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        (torch.zeros(1, 2, 2), "must be an integer tensor"),
        (torch.full((1, 2, 2), 48), r"within the codebook 0\.\.47"),
        (torch.full((1, 2, 2), -1), "within the codebook"),
        (torch.zeros(1, 4, dtype=torch.long), r"must have the shape \(B, h, w\)"),
    ],
)
def test_wrong_codes_are_refused(model, codes, words):
    with pytest.raises(ValueError, match=words):
        model.decode(codes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_codes": 0}, "num_codes must be a positive integer, got 0"),
        ({"patch_size": 1.5}, "patch_size"),
        ({"channel_multipliers": []}, "at least one level"),
        ({"channel_multipliers": [1, 0]}, r"channel_multipliers\[1\]"),
        ({"norm_groups": 3}, "norm_groups must divide"),
        ({"resolution": 15}, "resolution must be a multiple of the stride 2, got 15"),
        ({**LOCAL, "channel_multipliers": [1, 1]}, "local needs one level and no attention"),
        ({**LOCAL, "attention_resolutions": [4]}, "local needs one level and no attention"),
        ({**LOCAL, "mid_attention": True}, "mid_attention false, got .* and True"),
    ],
)
def test_wrong_settings_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        TotoVQGANConfig(**{**TINY, **changes})
