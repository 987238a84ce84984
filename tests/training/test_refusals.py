"""Names that stand for nothing, or for another kind, are refused with their name, before torch is imported."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from evaluation import heads
from tokenization.shards.format import read_manifest
from tokenization.sources.named import require_dataset, require_on_hub
from training.refusals import refuse_names

ROOT = Path(__file__).parents[2]
REFUSED = """
probe --model nowhere --dataset toyworld --output {0}/x.json
probe --model {0}/vit --dataset {0}/texts --output {0}/x.json
tokenize --dataset nowhere/there --output {0}/x
tokenize --dataset {0}/texts --output {0}/x
evaluate-tokenizer --dataset nowhere
train-tokenizer --dataset {0}/nothing
pretrain --shards {0}/texts
pretrain --recipe tiny_cpu --output_dir {0}/texts
finetune --model {0}/vit --dataset toyworld
prompt train --model {0}/vit
prompt run --model nowhere --inputs {0}/nothing.png --output {0}/x.png
prompt score --model {0}/vit --output {0}/x.json
track --model nowhere --dataset toyworld --output {0}/x.json
permanence cups --model {0}/vit --output {0}/x.json
generate --model {0}/vit --output {0}/x
generate --model {0}/tokenizer --output {0}/x
generate --score --model {0}/vit --dataset toyworld:motion --output {0}/x.json
ngrams --dataset nowhere --output {0}/x.json
visualize pca --model {0}/nothing --dataset toyworld --output {0}/x.png
visualize surprise --model {0}/vit --input toyworld --output {0}/x.png
report --results {0}/nothing
export --model {0}/vit --output {0}/x
robot train --model nowhere --episodes {0}/nothing --output {0}/x
robot evaluate --policy {0}/texts --output {0}/x.json
app --model {0}/nothing
scaling --shards {0}/nothing
"""
SCRIPT = """
import importlib, json, sys
commands, sys.argv = json.loads(sys.argv[1]), ["toto"]
import toto_cli
for words in commands:
    try:
        importlib.import_module(toto_cli.VERBS[words[0]][0]).main(words[1:])
        raise AssertionError(f"{words} was not refused")
    except (ValueError, OSError) as error:
        print(json.dumps(str(error)))
    assert "torch" not in sys.modules, f"{words} imported torch"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("names")
    for name, kind in (("vit", "vit"), ("tokenizer", "toto_vqgan")):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps({"model_type": kind}))
    (folder / "texts").mkdir()
    (folder / "texts" / "a.txt").write_text("a")
    return folder


def test_refusals_come_before_torch(folder):
    commands = [line.format(folder).split() for line in REFUSED.strip().splitlines()]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    call = [sys.executable, "-c", SCRIPT, json.dumps(commands)]
    done = subprocess.run(call, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(told) == len(commands)
    for words, sentence in zip(commands, told, strict=True):
        assert "\n" not in sentence
        typed = [word for word in words if word in sentence]
        assert typed, f"{sentence} does not say what of {words} is wrong"
    told = dict(zip(REFUSED.strip().splitlines(), told, strict=True))
    assert (
        "'nowhere' is neither here nor on the Hub"
        in told["probe --model nowhere --dataset toyworld --output {0}/x.json"]
    )
    assert "not a Toto" in told["generate --model {0}/vit --output {0}/x"]
    assert "is a visual tokenizer (toto_vqgan), not a model" in told["generate --model {0}/tokenizer --output {0}/x"]
    assert "(found 1 .txt)" in told["tokenize --dataset {0}/texts --output {0}/x"]
    assert "is not empty" in told["pretrain --recipe tiny_cpu --output_dir {0}/texts"]


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The settings of huggingface_hub: an empty cache, and a Hub that cannot be reached."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    return tmp_path


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_without_a_network_the_name_is_told_at_once(kind, hub, monkeypatch):
    with pytest.raises(
        FileNotFoundError, match=f"The {kind} 'some/thing' is neither here .* the Hub cannot be reached"
    ):
        require_on_hub("some/thing", kind)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=f"The {kind} 'some/thing' is neither here .*HF_HUB_OFFLINE"):
        require_on_hub("some/thing", kind)
    (hub / f"{kind}s--some--thing").mkdir()
    require_on_hub("some/thing", kind)  # what is in the cache needs no network


def test_what_the_hub_does_not_have_is_neither_here_nor_there(hub, monkeypatch):
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    def repo_info(self, name, **_):
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    monkeypatch.setattr(HfApi, "repo_info", repo_info)
    with pytest.raises(FileNotFoundError, match="'some/thing' is neither here nor on the Hub; check the name"):
        require_on_hub("some/thing", "model")
    monkeypatch.setattr(HfApi, "repo_info", lambda self, name, **_: None)
    require_on_hub("some/thing", "model")


def test_what_lies_there_under_almost_that_name_is_offered(hub, monkeypatch, tmp_path):
    (tmp_path / "my_photos").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"'my_photo' is neither here .*; did you mean my_photos\?"):
        require_dataset("my_photo")
    with pytest.raises(FileNotFoundError, match=r"There is no model folder '\./my_phots'; did you mean my_photos\?"):
        require_on_hub("./my_phots", "model")


def test_folders_without_media(tmp_path):
    with pytest.raises(FileNotFoundError, match="is empty"):
        require_dataset(str(tmp_path))
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "notes.txt").touch()
    with pytest.raises(ValueError, match=r"There are no videos and no images in .* \(found 1 \.txt\)"):
        require_dataset(str(tmp_path))
    (tmp_path / "inside" / "clip.MP4").touch()
    require_dataset(str(tmp_path))
    for name in ("toyworld", "toyworld:motion", "cater:somewhere"):
        require_dataset(name)


def test_the_names_of_heads_are_those_of_the_banks():
    from evaluation.heads.bank import LEARNING_RATES

    assert tuple(LEARNING_RATES) == heads.BANKS and set(heads.TOKEN_HEADS) < set(heads.BANKS)


@pytest.mark.parametrize(
    ("typed", "name", "is_command"),
    [
        (["python", "/bin/toto", "probe"], "/bin/toto", True),
        (["python", "-m", "training.pretrain"], "-m", True),
        (["python", "-u", "-W", "error", "-m", "evaluation.probe"], "-m", True),
        (["python", "mine.py", "-m", "training.pretrain"], "mine.py", False),
        (["python", "-m", "pytest", "-m", "training"], "-m", False),
        (["python", "-c", "import tokenization"], "-c", False),
    ],
)
def test_only_our_commands_register_late(typed, name, is_command, monkeypatch):
    import tokenization

    monkeypatch.setattr(sys, "orig_argv", typed)
    monkeypatch.setattr(sys, "argv", [name])
    assert tokenization._is_command() is is_command


def test_photos_without_a_validation_split_are_told_of_the_held_out_ones(tmp_path):
    from PIL import Image

    from training.train_tokenizer import main

    for kind in ("cats", "dogs"):
        (tmp_path / kind).mkdir()
        Image.new("RGB", (64, 64)).save(tmp_path / kind / "a.png")
    with pytest.raises(ValueError, match=r"no split 'validation'.* --eval_split held_out measures on one item in 20"):
        flags = ["--recipe", "toto_tokenizer_64", "--dataset", str(tmp_path), "--output_dir", str(tmp_path / "run")]
        main([*flags, "--eval_split", "validation"])


def test_a_name_that_is_almost_right_is_offered(tmp_path, monkeypatch):
    from training.flags import find_recipe, resumed_run

    monkeypatch.chdir(tmp_path)
    for folder in ("shards", "my_run"):
        Path(folder).mkdir()
    for call, told in {
        lambda: find_recipe("tiny_cpus"): "There is no recipe 'tiny_cpus'; did you mean tiny_cpu?",
        lambda: find_recipe("zzz"): "There is no recipe 'zzz'; give a YAML file or one of: 1b, a1,",
        lambda: read_manifest("shard"): "shard is not a folder of token shards: there is no such folder; did you mean "
        "shards?",
        lambda: read_manifest("shards"): "shards is not a folder of token shards: it holds no manifest.json.",
        lambda: resumed_run(["--resume", "my_runn"]): "my_runn is not a run folder: there is no such folder; did you "
        "mean my_run?",
        lambda: refuse_names("toto report", {"runs": ["my_rum"]}): "There is no run 'my_rum'; did you mean my_run?",
    }.items():
        with pytest.raises(FileNotFoundError, match=f"^{re.escape(told)}"):
            call()


def test_shards_of_the_shipped_tokenizer_are_sent_to_its_recipe():
    from modeling_toto import TotoConfig
    from training.rows.shard_rows import check_fit

    manifest = {"grid": [8, 8], "num_codes": 512, "kind": "video", "num_frames": 16}
    with pytest.raises(ValueError, match="tokenizer, add --recipe tiny_cpu, whose model they fit, or set"):
        check_fit(manifest, TotoConfig())
    with pytest.raises(ValueError, match="Tokenize with the model's tokenizer, or set --config"):
        check_fit(manifest | {"num_codes": 100}, TotoConfig())
