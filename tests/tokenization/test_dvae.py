"""The dVAE is OpenAI's: equal to transformers' and to the `dall_e` package's on copied weights, at both ends."""

import re

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import FlavaImageCodebook, FlavaImageCodebookConfig

from modeling_toto.block_toto import cpu_bf16_is_fast
from tokenization.configuration_dvae import TotoDVAEConfig
from tokenization.modeling_dvae import TotoDVAEModel, map_pixels, unmap_pixels
from tokenization.precision import bf16_is_fast
from tokenization.tokenizer_base import check_codes, check_pixels

TINY = {"n_hid": 16, "n_init": 8, "num_codes": 64, "resolution": 32}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return TotoDVAEModel(TotoDVAEConfig(**TINY)).eval()


@pytest.fixture(scope="module")
def pictures():
    generator = torch.Generator().manual_seed(1)
    patches = torch.randint(2, (3, 3, 4, 4), generator=generator).float()  # plain colours, so that many codes occur
    return 0.8 * F.interpolate(patches, size=32) + 0.2 * torch.rand(3, 3, 32, 32, generator=generator)


@torch.no_grad()
def telling_weights(model):
    """Biases and residual branches that count: at the start they are 0 and 1 / n_layers^2, and would hide mistakes."""
    for name, parameter in model.named_parameters():
        if name.endswith(("bias", ".b")):
            parameter.normal_(std=0.1)
        elif "conv_4" in name:
            parameter.mul_(64)
    return model


def flava_name(name):
    """encoder.blocks.group_1.block_1.res_path.conv_1.weight -> FlavaImageCodebook's name."""
    name = re.sub(r"(group_\d+)\.", r"\1.group.", name.removeprefix("encoder."))
    return name.replace("res_path.", "res_path.path.")


def ours(part, name):
    """The name mapping that the module documents: a name of the `dall_e` package -> our name."""
    stem, last = name.rsplit(".", 1)
    return f"{part}.{stem}.{ {'w': 'weight', 'b': 'bias'}[last] }"


def assert_same_codes(codes, logits):
    """`codes` are the likeliest of another's `logits` wherever the top two differ by more than 1e-4."""
    top = logits.topk(2, dim=1).values
    clear = top[:, 0] - top[:, 1] > 1e-4
    close = int((~clear).sum())
    assert close < 0.05 * clear.numel(), f"{close} of {clear.numel()} codes are too near to another to tell"
    assert logits.argmax(1).unique().numel() > 5  # not a comparison of constants
    assert torch.equal(codes[clear], logits.argmax(1)[clear])


@torch.no_grad()
@pytest.mark.parametrize("blocks", [1, 2])
def test_encoder_equals_flava(blocks, pictures):
    torch.manual_seed(0)
    model = telling_weights(TotoDVAEModel(TotoDVAEConfig(**TINY, n_blk_per_group=blocks)))
    # Random networks favour a few codes everywhere; centred logits let many win.
    model.encoder.blocks.output.conv.bias.sub_(model.encode_logits(pictures).mean(dim=(0, 2, 3)))
    flava = FlavaImageCodebook(
        FlavaImageCodebookConfig(hidden_size=16, vocab_size=64, num_blocks_per_group=blocks)
    ).eval()
    weights = model.state_dict().items()
    flava.load_state_dict({flava_name(k): v for k, v in weights if k.startswith("encoder.")})
    theirs = flava(map_pixels(pictures))
    torch.testing.assert_close(model.encode_logits(pictures), theirs, atol=1e-5, rtol=1e-5)
    assert_same_codes(model.encode(pictures), theirs)


def test_published_sizes_are_flavas_and_dalles():
    with torch.device("meta"):
        model, flava = TotoDVAEModel(TotoDVAEConfig()), FlavaImageCodebook(FlavaImageCodebookConfig())
    shapes = {flava_name(k): v.shape for k, v in model.state_dict().items() if k.startswith("encoder.")}
    assert shapes == {k: v.shape for k, v in flava.state_dict().items()}
    assert model.config.stride == 8
    # Counted from dall_e 0.1's Encoder() and Decoder().
    assert sum(p.numel() for p in model.encoder.parameters()) == 53_786_240
    assert sum(p.numel() for p in model.decoder.parameters()) == 43_829_766


@torch.no_grad()
def test_both_ends_equal_the_original_package(pictures):
    dall_e = pytest.importorskip("dall_e", reason="OpenAI's package is not installed")
    torch.manual_seed(0)
    sizes = {"n_hid": 64, "vocab_size": 512}  # the smallest that the package accepts
    originals = {"encoder": dall_e.Encoder(**sizes), "decoder": dall_e.Decoder(**sizes, n_init=16)}
    weights = {}
    for part, original in originals.items():
        weights.update({ours(part, name): p for name, p in telling_weights(original).named_parameters()})
    model = TotoDVAEModel(TotoDVAEConfig(n_hid=64, n_init=16, num_codes=512)).eval()
    model.load_state_dict(weights)  # strict: the mapping leaves nothing over
    logits = originals["encoder"](dall_e.map_pixels(pictures))
    torch.testing.assert_close(model.encode_logits(pictures), logits, atol=1e-5, rtol=1e-5)
    codes = model.encode(pictures)
    assert_same_codes(codes, logits)
    one_hot = F.one_hot(codes, 512).permute(0, 3, 1, 2).float()
    stats = originals["decoder"](one_hot).float()
    torch.testing.assert_close(torch.cat(model.decode_stats(one_hot), dim=1), stats, atol=1e-5, rtol=1e-5)
    pixels = dall_e.unmap_pixels(torch.sigmoid(stats[:, :3]))
    torch.testing.assert_close(model.decode(codes), pixels, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_codes_decode_as_their_one_hot_vectors(model):
    codes = torch.randint(64, (2, 3, 5))
    mean, log_scale = model.decode_stats(F.one_hot(codes, 64).permute(0, 3, 1, 2).float())
    pixels = model.decode(codes)
    assert pixels.shape == mean.shape == log_scale.shape == (2, 3, 24, 40)
    assert pixels.min() >= 0 and pixels.max() <= 1
    torch.testing.assert_close(pixels, unmap_pixels(mean.sigmoid()))
    for dtype in (torch.uint8, torch.uint16):  # token shards hold uint16
        assert torch.equal(model.decode(codes.to(dtype)), pixels)


@torch.no_grad()
def test_any_side_batch_and_number_of_groups(model, pictures):
    assert model.encode(torch.rand(1, 3, 16, 40)).shape == (1, 2, 5)
    alone = torch.cat([model.encode_logits(picture[None]) for picture in pictures])
    torch.testing.assert_close(alone, model.encode_logits(pictures), atol=1e-5, rtol=1e-5)
    small = TotoDVAEModel(TotoDVAEConfig(**TINY, group_count=3))
    output = small(pictures)
    assert small.config.stride == 4 and output.codes.shape == (3, 8, 8) and output.codes.dtype == torch.int64
    assert output.reconstruction.shape == pictures.shape and output.logits.shape == (3, 64, 8, 8)
    assert torch.equal(output.codes, small.encode(pictures))


def test_pixel_mapping_inverts(pictures):
    mapped = map_pixels(pictures)
    assert mapped.min() >= 0.1 and mapped.max() <= 0.9
    torch.testing.assert_close(unmap_pixels(mapped), pictures)


def test_gradients_reach_the_encoder_through_soft_codes(pictures):
    model = TotoDVAEModel(TotoDVAEConfig(**TINY))
    soft = F.gumbel_softmax(model.encode_logits(pictures), tau=1.0, dim=1)
    mean, log_scale = model.decode_stats(soft)
    (mean.abs().mean() + log_scale.mean()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.encoder.blocks.input.weight.grad.abs().sum() > 0


@torch.no_grad()
def test_channels_last_and_bf16(pictures):
    torch.manual_seed(0)
    model = TotoDVAEModel(TotoDVAEConfig(**TINY)).eval()
    logits, pixels = model.encode_logits(pictures), model.decode(model.encode(pictures))
    codes = logits.argmax(1)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model.encode_logits(pictures)
    model = model.to(memory_format=torch.channels_last)
    torch.testing.assert_close(model.encode_logits(pictures), logits, atol=1e-5, rtol=1e-5)
    model = model.to(torch.bfloat16)
    top = logits.topk(2, dim=1).values
    clear = top[:, 0] - top[:, 1] > 0.1
    assert clear.any()
    for low in (mixed, model.encode_logits(pictures), model.encode_logits(pictures.bfloat16())):
        assert low.dtype == torch.float32  # ties of rounded logits never decide a code
        assert torch.equal(low.argmax(1)[clear], codes[clear])
    assert model.decode(codes).dtype == torch.float32
    torch.testing.assert_close(model.decode(codes), pixels, atol=0.02, rtol=0)


@torch.no_grad()
def test_save_and_load(tmp_path, model, pictures):
    model.save_pretrained(tmp_path)
    again = TotoDVAEModel.from_pretrained(tmp_path)
    assert again.config.to_dict() == {**model.config.to_dict(), "_name_or_path": again.config._name_or_path}
    assert not any(p.is_meta for p in again.parameters()) and not again.training
    assert torch.equal(again.encode_logits(pictures), model.encode_logits(pictures))
    assert torch.equal(again.decode(model.encode(pictures)), model.decode(model.encode(pictures)))
    low = TotoDVAEModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert low.dtype == torch.bfloat16


def test_missing_weights_are_initialised_and_the_others_kept(tmp_path, model):
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    missing = "decoder.blocks.group_1.block_1.res_path.conv_4"  # (128, 32, 3, 3)
    for suffix in (".weight", ".bias"):
        weights.pop(missing + suffix)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again = TotoDVAEModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(again[name], weight) for name, weight in weights.items())
    assert again[missing + ".weight"].std().item() == pytest.approx((32 * 9) ** -0.5, rel=0.05)
    assert again[missing + ".bias"].eq(0).all()


@pytest.mark.parametrize("name, size", [("conv_1", 16 * 9), ("conv_4", 8)])
def test_initialisation_is_the_packages(model, name, size):
    layer = getattr(model.encoder.blocks.group_2.block_1.res_path, name)  # n_in * kw^2 = 144 and 8
    assert layer.weight[0].numel() == size and layer.bias.eq(0).all()
    assert layer.weight.std().item() == pytest.approx(size**-0.5, rel=0.15)


@pytest.mark.parametrize(
    "pixels, words",
    [
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "divide 8-bit pictures by 255"),
        (torch.zeros(3, 32, 32), r"shape \(B, 3, H, W\)"),
        (torch.zeros(1, 32, 32, 3), "RGB channels second"),
        (torch.zeros(1, 3, 32, 36), "multiples of 8"),
        (torch.zeros(1, 3, 0, 32), "at least one picture"),
        (torch.zeros(0, 3, 32, 32), "at least one picture"),
        (torch.full((1, 3, 32, 32), 255.0), r"within \[0, 1\]"),
        (torch.full((1, 3, 32, 32), -0.5), r"within \[0, 1\]"),
        (torch.rand(1, 3, 32, 32).index_fill(3, torch.tensor([7]), float("nan")), "finite"),
        (torch.rand(1, 3, 32, 32).index_fill(3, torch.tensor([7]), float("inf")), "finite"),
        (torch.zeros(1, 3, 32, 32).numpy(), "torch tensor"),
    ],
)
def test_bad_pictures_are_refused(model, pixels, words):
    for encode in (model.encode, model.encode_logits, model):
        with pytest.raises(ValueError, match=words) as error:
            encode(pixels)
        assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_rounding_at_the_ends_of_the_range_is_accepted():
    check_pixels(torch.tensor([-9e-4, 1.0009, 0.5]).view(1, 3, 1, 1), stride=1)
    check_pixels(torch.rand(1, 3, 8, 8).half(), stride=8)


@pytest.mark.parametrize(
    "codes, words",
    [
        (torch.full((1, 4, 4), 64), r"0\.\.63"),
        (torch.full((1, 4, 4), -1), r"0\.\.63"),
        (torch.zeros(1, 4, 4), "integer"),
        (torch.zeros(1, 4, 4, dtype=torch.bool), "integer"),
        (torch.zeros(1, 16, dtype=torch.long), r"\(B, h, w\)"),
        ([[0, 1], [2, 3]], "integer tensor, got list"),
    ],
)
def test_bad_codes_are_refused(model, codes, words):
    with pytest.raises(ValueError, match=words):
        model.decode(codes)


def test_codes_are_checked_in_any_shape_and_integer_type():
    check_codes(torch.arange(64).view(2, 2, 16), 64)
    check_codes(torch.tensor([65535], dtype=torch.int32).to(torch.uint16), 65536)
    check_codes(torch.zeros(0, dtype=torch.long), 64)


@pytest.mark.parametrize("soft", [torch.zeros(1, 63, 4, 4), torch.zeros(64, 4, 4), torch.zeros(1, 4, 4).long()])
def test_bad_soft_codes_are_refused(model, soft):
    with pytest.raises(ValueError, match=r"\(B, 64, h, w\)"):
        model.decode_stats(soft)


@pytest.mark.parametrize(
    "field, value, words",
    [("n_hid", 18, "multiple of 4"), ("n_hid", "a", "positive"), ("num_codes", 0, "positive"), ("resolution", 60, "8")],
)
def test_bad_configs_are_refused(field, value, words):
    with pytest.raises(ValueError, match=words):
        TotoDVAEConfig(**{**TINY, field: value})


@pytest.mark.parametrize(
    "cpu, fast",
    [
        ({"amx_bf16": True, "avx512_bf16": True, "cpu_name": "INTEL(R) XEON(R)"}, True),
        ({"amx_bf16": False, "avx512_bf16": True, "cpu_name": "INTEL(R) XEON(R)"}, False),
        ({"amx_bf16": False, "avx512_bf16": True, "cpu_name": "AMD EPYC"}, True),
        ({"amx_bf16": False, "avx512_bf16": False, "cpu_name": "AMD EPYC"}, False),
        ({}, False),  # not an x86
    ],
)
def test_where_bf16_is_fast(cpu, fast, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: cpu)
    assert bf16_is_fast(torch.device("cpu")) is fast
    assert cpu_bf16_is_fast() is fast


def test_fp32_codes_are_computed_without_tf32(monkeypatch):
    """A GPU's default is TF32 in convolutions; only the settings can be seen on a CPU."""
    from training.tiny_scale import tiny_processor

    def settings():
        return torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision

    processor, seen, before = tiny_processor("tiny-dvae", 16, 1), [], settings()
    encode = type(processor.visual_tokenizer).encode
    monkeypatch.setattr(
        type(processor.visual_tokenizer), "encode", lambda *args, **how: seen.append(settings()) or encode(*args, **how)
    )
    processor.encode_frames(torch.zeros(1, 32, 32, 3, dtype=torch.uint8))
    assert seen == [("ieee", "ieee")] and settings() == before and before[1] == "tf32"
