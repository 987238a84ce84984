"""Files written as the originals were become tokenizers that give the originals' codes and pictures."""

import hashlib
import io
import json
import sys
import types
import urllib.request
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from transformers import AutoImageProcessor, AutoModel, FlavaImageCodebook, FlavaImageCodebookConfig

from tokenization import convert_tokenizer
from tokenization.configuration_dvae import TotoDVAEConfig
from tokenization.convert_tokenizer import ConvertArgs, convert, main
from tokenization.modeling_dvae import TotoDVAEModel, map_pixels
from tokenization.originals import fetch as originals
from tokenization.originals.fetch import ORIGINALS, fetch
from tokenization.processing_toto import TotoProcessor

pytestmark = pytest.mark.filterwarnings("ignore:Couldn't retrieve source code")
DDCONFIG = {"double_z": False, "z_channels": 16, "resolution": 32, "in_channels": 3, "out_ch": 3, "ch": 32}
DDCONFIG |= {"ch_mult": [1, 2], "num_res_blocks": 1, "attn_resolutions": [16], "dropout": 0.0}


@pytest.fixture(scope="module")
def pictures():
    generator = torch.Generator().manual_seed(1)
    patches = torch.randint(2, (3, 3, 4, 4), generator=generator).float()
    return 0.8 * F.interpolate(patches, size=32) + 0.2 * torch.rand(3, 3, 32, 32, generator=generator)


@pytest.fixture(scope="module")
def dall_e():
    return pytest.importorskip("dall_e", reason="OpenAI's package is not installed")


@pytest.fixture(scope="module")
def dvae(dall_e):
    """OpenAI's encoder and decoder at the smallest sizes, with weights that differ by name."""
    torch.manual_seed(0)
    parts = dall_e.Encoder(n_hid=64, vocab_size=512), dall_e.Decoder(n_hid=64, n_init=16, vocab_size=512)
    return tuple(telling_weights(part) for part in parts)


@pytest.fixture
def dvae_files(tmp_path):
    """Small files with the tensors of encoder.pkl and decoder.pkl, as plain state_dicts."""
    torch.manual_seed(0)
    weights = TotoDVAEModel(TotoDVAEConfig(n_hid=16, n_init=8, num_codes=64)).state_dict()
    for part in ("encoder", "decoder"):
        own = {name.removeprefix(f"{part}."): value for name, value in weights.items() if name.startswith(part)}
        torch.save(
            {name.replace(".weight", ".w").replace(".bias", ".b"): own[name] for name in own}, tmp_path / f"{part}.pkl"
        )
    return tmp_path / "encoder.pkl", tmp_path / "decoder.pkl"


@pytest.fixture(scope="module")
def taming():
    """A VQModel's parts as taming builds them, with a codebook on its own latents, and what its loss holds."""
    model = pytest.importorskip("taming.modules.diffusionmodules.model", reason="taming-transformers is not installed")
    quantize = pytest.importorskip("taming.modules.vqvae.quantize")
    torch.manual_seed(0)
    vqgan = torch.nn.Module()
    vqgan.encoder, vqgan.decoder = model.Encoder(**DDCONFIG), model.Decoder(**DDCONFIG)
    vqgan.quantize = quantize.VectorQuantizer2(64, 8, beta=0.25, sane_index_shape=True)
    vqgan.quant_conv, vqgan.post_quant_conv = torch.nn.Conv2d(16, 8, 1), torch.nn.Conv2d(8, 16, 1)
    vqgan.loss = torch.nn.Module()
    vqgan.loss.perceptual_loss = torch.nn.Module()
    vqgan.loss.perceptual_loss.net = torch.nn.Conv2d(3, 4, 3)
    vqgan.loss.discriminator = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 4), torch.nn.BatchNorm2d(4))
    with torch.no_grad():
        latents = vqgan.quant_conv(vqgan.encoder(torch.rand(4, 3, 32, 32) * 2 - 1)).permute(0, 2, 3, 1).flatten(0, 2)
        vqgan.quantize.embedding.weight.copy_(latents[:: len(latents) // 64][:64])
    return vqgan.eval()


def telling_weights(module):
    """Biases and residual branches that count: at the start they are about 0, and would hide mistakes."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith((".b", ".bias")):
                parameter.normal_(std=0.1)
            elif parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
                parameter.mul_(64 if "conv_4" in name else 1)
    return module.eval()


def write_taming(model, folder, monkeypatch, zipped=True, **changes):
    """last.ckpt as Lightning 1.0 wrote it, and model.yaml as taming publishes it."""
    callback = types.ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    callback.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": callback.__name__})
    optimizer = torch.optim.Adam(model.quant_conv.parameters(), lr=4.5e-6, betas=(0.5, 0.9))
    checkpoint = {
        "epoch": 12,
        "global_step": 345,
        "pytorch-lightning_version": "1.0.8",
        "callbacks": {callback.ModelCheckpoint: {"monitor": "val/rec_loss", "best_model_score": torch.tensor(0.5)}},
        "optimizer_states": [optimizer.state_dict()],
        "lr_schedulers": [],
        "state_dict": model.state_dict(),
    }
    with monkeypatch.context() as patch:
        for name in ("pytorch_lightning", "pytorch_lightning.callbacks", callback.__name__):
            patch.setitem(sys.modules, name, callback)
        torch.save(checkpoint, folder / "last.ckpt", _use_new_zipfile_serialization=zipped)
    params = {"embed_dim": 8, "n_embed": 64, "ddconfig": DDCONFIG, **changes}
    params["lossconfig"] = {"target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator", "params": {}}
    model = {"base_learning_rate": 4.5e-06, "target": "taming.models.vqgan.VQModel", "params": params}
    (folder / "model.yaml").write_text(yaml.safe_dump({"model": model}))
    return ["--checkpoint", str(folder / "last.ckpt"), "--config", str(folder / "model.yaml")]


def clear(logits):
    """Places where rounding cannot change the likeliest code."""
    top = logits.topk(2, dim=1).values
    keep = top[:, 0] - top[:, 1] > 1e-4
    assert keep.float().mean() > 0.9
    return keep


def sentence(capsys, argv):
    """The error of the command, which must be one line that names no class of Python."""
    from toto_cli import run

    with pytest.raises(SystemExit) as end:
        run(main, [str(word) for word in argv])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert end.value.code == 1 and error.startswith("error: ")
    return error


@torch.no_grad()
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_openais_files(dall_e, dvae, pictures, tmp_path, zipped, capsys):
    for part, name in zip(dvae, ("encoder.pkl", "decoder.pkl"), strict=True):
        torch.save(part, tmp_path / name, _use_new_zipfile_serialization=zipped)
    out = tmp_path / "out" / "dvae"
    main(["--encoder", f"{tmp_path}/encoder.pkl", "--decoder", f"{tmp_path}/decoder.pkl", "--output", str(out)])
    digest = hashlib.sha256((tmp_path / "encoder.pkl").read_bytes()).hexdigest()
    assert digest in capsys.readouterr().out and digest in (out / "README.md").read_text()
    source = json.loads((out / "source.json").read_text())
    assert [file["file"] for file in source["files"]] == ["encoder.pkl", "decoder.pkl"]
    assert source["files"][0]["sha256"] == digest and source["label_contaminated"] is False

    model = AutoModel.from_pretrained(out)
    logits = dvae[0](dall_e.map_pixels(pictures))
    torch.testing.assert_close(model.encode_logits(pictures), logits, atol=1e-5, rtol=1e-5)
    keep, codes = clear(logits), logits.argmax(1)
    assert torch.equal(model.encode(pictures)[keep], codes[keep]) and codes.unique().numel() > 1
    stats = dvae[1](F.one_hot(codes, 512).permute(0, 3, 1, 2).float())
    expected = dall_e.unmap_pixels(torch.sigmoid(stats[:, :3]))
    torch.testing.assert_close(model.decode(codes), expected, atol=1e-5, rtol=1e-5)

    processor = TotoProcessor.from_visual_tokenizer(out)
    assert processor.resolution == AutoImageProcessor.from_pretrained(out).resolution == 128
    if not zipped:
        return
    frames = (pictures[:1] * 255).round().byte().repeat(1, 1, 4, 4).permute(0, 2, 3, 1).numpy()
    assert processor(images=frames)["input_ids"].shape == (1, 258)


@torch.no_grad()
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_tamings_files(taming, pictures, tmp_path, monkeypatch, zipped):
    main([*write_taming(taming, tmp_path, monkeypatch, zipped), "--output", str(tmp_path / "out")])
    model = AutoModel.from_pretrained(tmp_path / "out")
    quantized, _, (_, _, codes) = taming.quantize(taming.quant_conv(taming.encoder(2 * pictures - 1)))
    assert codes.unique().numel() > 10
    assert torch.equal(model.encode(pictures), codes)
    expected = ((taming.decoder(taming.post_quant_conv(quantized)) + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(model.decode(codes), expected, atol=1e-5, rtol=1e-5)
    assert not any("loss" in name for name in model.state_dict())
    assert TotoProcessor.from_visual_tokenizer(tmp_path / "out").grid == (16, 16)
    assert json.loads((tmp_path / "out" / "source.json").read_text())["label_contaminated"] is True
    assert "label-contaminated]" in (tmp_path / "out" / "README.md").read_text()


@torch.no_grad()
@pytest.mark.parametrize("form", ["folder", "bin", "safetensors"])
def test_flavas_codebook(pictures, tmp_path, form, capsys):
    torch.manual_seed(0)
    flava = telling_weights(FlavaImageCodebook(FlavaImageCodebookConfig(hidden_size=16, vocab_size=64)))
    flava.save_pretrained(tmp_path / "flava")
    given = {"folder": tmp_path / "flava", "safetensors": tmp_path / "flava" / "model.safetensors"}.get(form)
    if given is None:
        given = tmp_path / "pytorch_model.bin"
        torch.save(flava.state_dict(), given)
    main(["--from", "flava", "--checkpoint", str(given), "--output", str(tmp_path / "out")])
    assert "it can only encode" in capsys.readouterr().out
    assert "Encoder only" in (tmp_path / "out" / "README.md").read_text()
    model = AutoModel.from_pretrained(tmp_path / "out")
    logits = flava(map_pixels(pictures))
    torch.testing.assert_close(model.encode_logits(pictures), logits, atol=1e-5, rtol=1e-5)
    keep = clear(logits)
    assert torch.equal(model.encode(pictures)[keep], logits.argmax(1)[keep])
    assert not any(name.startswith("decoder") for name in model.state_dict())
    for decode in (lambda: model.decode(model.encode(pictures)), lambda: model.decode_stats(logits.softmax(1))):
        with pytest.raises(ValueError, match=r"can only encode.*--decoder"):
            decode()


def test_openais_decoder_completes_flavas_codebook(dvae_files, pictures, tmp_path):
    flava = FlavaImageCodebook(FlavaImageCodebookConfig(hidden_size=16, vocab_size=64))
    flava.save_pretrained(tmp_path / "flava")
    convert(ConvertArgs(checkpoint=f"{tmp_path}/flava", decoder=str(dvae_files[1]), output=f"{tmp_path}/out"))
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert model.config.has_decoder and model.decode(model.encode(pictures)).shape == pictures.shape
    decoder = torch.load(dvae_files[1], weights_only=True)
    assert torch.equal(model.decoder.blocks.input.weight, decoder["blocks.input.w"])


# --- fetching


class Response(io.BytesIO):
    def __init__(self, data, length=None):
        super().__init__(data)
        self.headers = {"Content-Length": str(len(data) if length is None else length)}


def test_published_files_are_fetched_once(dvae_files, tmp_path, monkeypatch):
    opened = []

    def serve(url):
        opened.append(url)
        return Response((tmp_path / url.rsplit("/", 1)[1]).read_bytes())

    monkeypatch.setattr(originals, "_open", serve)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(convert_tokenizer, "PUBLISHED_CODES", {"dvae": 64})
    args = ["--from", "dvae", "--cache_dir", str(tmp_path / "cache"), "--output"]
    main([*args, str(tmp_path / "a")])
    main([*args, str(tmp_path / "b")])
    assert opened == ["https://cdn.openai.com/dall-e/encoder.pkl", "https://cdn.openai.com/dall-e/decoder.pkl"]
    assert opened[0] in (tmp_path / "b" / "README.md").read_text()
    assert "license_name: modified-mit" in (tmp_path / "b" / "README.md").read_text()
    assert not list((tmp_path / "cache").rglob("*.partial"))
    main([*args, str(tmp_path / "c"), "--mirror", "https://mirror.example/files/"])
    assert opened[2:] == [f"https://mirror.example/files/{part}.pkl" for part in ("encoder", "decoder")]


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_a_folder_is_a_mirror(dvae_files, tmp_path, monkeypatch, prefix):
    monkeypatch.setattr(convert_tokenizer, "PUBLISHED_CODES", {"dvae": 64})
    main(["--from", "dvae", "--mirror", f"{prefix}{tmp_path}", "--output", str(tmp_path / "out")])
    assert AutoModel.from_pretrained(tmp_path / "out").config.num_codes == 64


def test_a_cut_download_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(originals, "_open", lambda url: Response(b"half", length=8))
    with pytest.raises(OSError, match="sent 4 of 8 bytes"):
        fetch("https://mirror.example/a", tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_every_published_address_is_https_and_has_its_name():
    assert all(url.startswith("https://") for files in ORIGINALS.values() for _, url, _ in files.values())
    names = [name for files in ORIGINALS.values() for name, _, _ in files.values()]
    assert len(set(names)) == len(names) == 6


def test_http_is_refused(tmp_path, monkeypatch, capsys):
    out = ["--output", tmp_path / "out"]
    assert "must be an https address" in sentence(capsys, ["--from", "dvae", "--mirror", "http://127.0.0.1:1/", *out])
    with pytest.raises(ValueError, match="is not https"):
        fetch("http://127.0.0.1:1/a", tmp_path / "a")
    request = urllib.request.Request("https://mirror.example/a")
    redirect = originals._HttpsOnly().redirect_request
    with pytest.raises(ValueError, match=r"redirects to http://.* which is not https"):
        redirect(request, None, 302, "Found", {}, "http://mirror.example/a")
    assert redirect(request, None, 302, "Found", {}, "https://other.example/a").full_url == "https://other.example/a"


@pytest.mark.parametrize("kind", ["dvae", "vqgan-1k", "vqgan-16k"])
def test_offline_it_says_what_it_needs(tmp_path, monkeypatch, capsys, kind):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(originals, "_open", lambda url: pytest.fail("the network was asked"))
    error = sentence(capsys, ["--from", kind, "--cache_dir", tmp_path / "cache", "--output", tmp_path / "out"])
    for flag, (name, url, _) in ORIGINALS[kind].items():
        assert name in error and url in error and f"--{flag} FILE" in error
    assert "HF_HUB_OFFLINE is set" in error and "--mirror" in error and not (tmp_path / "out").exists()


def test_a_dead_server_is_offline_too(tmp_path, monkeypatch, capsys):
    def fail(url):
        raise urllib.request.URLError("no route")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(originals, "_open", fail)
    error = sentence(capsys, ["--from", "dvae", "--cache_dir", tmp_path / "cache", "--output", tmp_path / "out"])
    assert "no route" in error and "--decoder FILE" in error


# --- bad input


def test_a_wrong_hash_stops_before_parsing(dvae_files, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "tokenization.originals.pickles.read_state_dict", lambda path: pytest.fail("the file was parsed")
    )
    files = ["--encoder", dvae_files[0], "--decoder", dvae_files[1], "--output", tmp_path / "out"]
    error = sentence(capsys, [*files, "--sha256", f"decoder.pkl={'0' * 64}"])
    assert "decoder.pkl has the sha256" in error and "was not read" in error
    assert "not among the files" in sentence(capsys, [*files, "--sha256", f"other.pkl={'0' * 64}"])
    assert "64 hex digits" in sentence(capsys, [*files, "--sha256", "decoder.pkl=12"])
    known = {"encoder": ("encoder.pkl", "https://x", "1" * 64), "decoder": ("decoder.pkl", "https://x", None)}
    monkeypatch.setitem(ORIGINALS, "dvae", known)  # a published hash counts as well
    assert f"not {'1' * 64}" in sentence(capsys, ["--from", "dvae", *files])


def test_a_right_hash_is_accepted(dvae_files, tmp_path, capsys):
    digest = hashlib.sha256(dvae_files[0].read_bytes()).hexdigest().upper()
    args = ["--encoder", str(dvae_files[0]), "--sha256", f"encoder.pkl={digest}", "--output", str(tmp_path / "out")]
    main(args)
    assert "(as expected)" in capsys.readouterr().out


def test_truncated_and_hostile_files_leave_nothing(dvae_files, tmp_path, capsys):
    import os

    class Attack:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/marker",)

    cut = tmp_path / "cut.pkl"
    cut.write_bytes(dvae_files[0].read_bytes()[:50_000])
    torch.save({"state_dict": {"a": Attack()}}, tmp_path / "bad.pkl")
    out = ["--output", tmp_path / "out"]
    assert "truncated or damaged" in sentence(capsys, ["--encoder", cut, *out])
    assert ".system, which is not on the list" in sentence(capsys, ["--encoder", tmp_path / "bad.pkl", *out])
    assert not (tmp_path / "marker").exists() and not list(tmp_path.glob("out*"))
    short = tmp_path / "short.safetensors"
    short.write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    assert "truncated or damaged" in sentence(capsys, ["--checkpoint", short, *out])


def test_an_unsafe_or_foreign_yaml_is_refused(taming, tmp_path, monkeypatch, capsys):
    argv = [*write_taming(taming, tmp_path, monkeypatch), "--output", tmp_path / "out"]
    settings = tmp_path / "model.yaml"
    good = settings.read_text()
    settings.write_text(f"model: !!python/object/apply:os.system ['touch {tmp_path}/marker']")
    assert "is not the model.yaml of a taming VQGAN" in sentence(capsys, argv)
    assert not (tmp_path / "marker").exists()
    for old, new, words in (
        ("models.vqgan.VQModel", "models.vqgan.GumbelVQ", "GumbelVQ"),
        ("double_z: false", "double_z: true", "other channels or codes"),
        ("n_embed: 64", "n_embed: 65", "quantize.embedding.weight is"),
        ("n_embed: 64", "n_embed: many", "not a positive integer"),
        ("num_res_blocks: 1", "num_res_blocks: 100000", "fewer layers"),
        ("num_res_blocks: 1", "num_res_blocks: 2", "lacks decoder"),
        ("ch: 32", "ch: 30", "norm_groups"),
        ("ddconfig", "config", "is not the model.yaml"),
    ):
        assert old in good
        settings.write_text(good.replace(old, new))
        assert words in sentence(capsys, argv), new
    assert not list(tmp_path.glob("out*"))


def test_files_that_do_not_fit(dvae_files, taming, tmp_path, monkeypatch, capsys):
    encoder, decoder = dvae_files
    checkpoint = write_taming(taming, tmp_path, monkeypatch)
    out = ["--output", tmp_path / "out"]
    assert "is not the dVAE's encoder" in sentence(capsys, ["--encoder", decoder, "--decoder", encoder, *out])
    assert "needs its model.yaml, --config" in sentence(capsys, [*checkpoint[:2], *out])
    assert "none.pkl does not exist" in sentence(capsys, ["--encoder", tmp_path / "none.pkl", *out])
    files = ["--encoder", encoder, "--decoder", decoder]
    assert "hold 64 codes" in sentence(capsys, ["--from", "dvae", *files, *out])
    state = torch.load(encoder, weights_only=True)
    for change, words in (
        ({"blocks.extra.w": torch.zeros(1)}, "also holds encoder.blocks.extra.weight"),
        ({"blocks.output.conv.b": torch.full((64,), float("nan"))}, "not finite"),
        ({"blocks.output.conv.b": torch.zeros(64, dtype=torch.int64)}, "torch.int64; it must be"),
        ({"blocks.group_3.block_1.id_path.b": torch.zeros(3)}, r"is [3]"),
    ):
        torch.save({**state, **change}, tmp_path / "changed.pkl")
        assert words in sentence(capsys, ["--encoder", tmp_path / "changed.pkl", *out])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert "is not empty" in sentence(capsys, [*files, *out])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--from", "vae"], "--from must be one of dvae, vqgan-1k, vqgan-16k, flava, not 'vae'"),
        ([], "There is nothing to convert"),
        (["--from", "flava"], "There is nothing to convert"),
        (["--encoder", "a", "--checkpoint", "b"], "do not belong together"),
        (["--from", "dvae", "--checkpoint", "b"], "do not belong together"),
        (["--from", "vqgan-1k", "--decoder", "b"], "do not belong together"),
        (["--encoder", "a", "--config", "b"], "do not belong together"),
    ],
)
def test_wrong_flags_are_one_sentence(tmp_path, capsys, argv, words):
    assert words in sentence(capsys, [*argv, "--output", tmp_path / "out"])
    assert not Path(tmp_path / "out").exists()
