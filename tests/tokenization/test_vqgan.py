"""The VQGAN has taming-transformers' names and sizes, and equals transformers' two ports of it on copied weights."""

import re

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers.models.chameleon.configuration_chameleon import ChameleonVQVAEConfig
from transformers.models.chameleon.modeling_chameleon import ChameleonVQVAEEncoder, ChameleonVQVAEVectorQuantizer
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAEDecoder

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


def test_published_size_has_tamings_names():
    with torch.device("meta"):
        model = TotoVQGANModel(TotoVQGANConfig())
        encoder = ChameleonVQVAEEncoder(ChameleonVQVAEConfig(resolution=256, attn_resolutions=[16]))
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    part = {name: shape for name, shape in shapes.items() if name.startswith("encoder.")}
    assert part == {f"encoder.{name}": tuple(value.shape) for name, value in encoder.state_dict().items()}
    rest = {name: shape for name, shape in shapes.items() if not name.startswith(("encoder.", "decoder."))}
    assert rest == {
        "quantize.embedding.weight": (1024, 256),
        "quant_conv.weight": (256, 256, 1, 1),
        "quant_conv.bias": (256,),
        "post_quant_conv.weight": (256, 256, 1, 1),
        "post_quant_conv.bias": (256,),
    }
    # taming numbers the decoder's levels by resolution, finest first: up.4 comes right after the middle.
    assert shapes["decoder.up.4.attn.2.proj_out.weight"] == (512, 512, 1, 1)
    assert shapes["decoder.up.3.block.0.nin_shortcut.weight"] == (256, 512, 1, 1)
    assert shapes["decoder.up.1.upsample.conv.weight"] == (128, 128, 3, 3)
    assert "decoder.up.0.upsample.conv.weight" not in shapes
    assert model.config.stride == 16


def test_published_size_has_as_many_weights_as_the_architecture_asks():
    """Counted by hand from the published settings: ch 128, ch_mult 1 1 2 2 4, 2 blocks, attention at 16, z 256."""

    def conv(i, o, k):
        return i * o * k * k + o

    def block(i, o):
        return 2 * i + conv(i, o, 3) + 2 * o + conv(o, o, 3) + (conv(i, o, 1) if i != o else 0)

    def attention(c):
        return 2 * c + 4 * conv(c, c, 1)

    middle = 2 * block(512, 512) + attention(512)
    down = block(128, 128) * 2 + conv(128, 128, 3) + block(128, 128) * 2 + conv(128, 128, 3)
    down += block(128, 256) + block(256, 256) + conv(256, 256, 3) + block(256, 256) * 2 + conv(256, 256, 3)
    down += block(256, 512) + block(512, 512) + 2 * attention(512)
    up = 3 * block(512, 512) + 3 * attention(512) + conv(512, 512, 3)
    up += block(512, 256) + 2 * block(256, 256) + conv(256, 256, 3) + 3 * block(256, 256) + conv(256, 256, 3)
    up += block(256, 128) + 2 * block(128, 128) + conv(128, 128, 3) + 3 * block(128, 128)
    with torch.device("meta"):
        model = TotoVQGANModel(TotoVQGANConfig())
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    assert count["encoder"] == conv(3, 128, 3) + down + middle + 2 * 512 + conv(512, 256, 3) == 29_298_176
    assert count["decoder"] == conv(256, 512, 3) + middle + up + 2 * 128 + conv(128, 3, 3) == 42_449_795
    assert sum(count.values()) == 29_298_176 + 42_449_795 + 1024 * 256 + 2 * conv(256, 256, 1) == 72_141_699


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
    with pytest.raises(ValueError, match=words):
        model.encode(pixels)


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
    ],
)
def test_wrong_settings_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        TotoVQGANConfig(**{**TINY, **changes})
