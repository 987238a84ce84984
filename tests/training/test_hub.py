"""A model goes to the Hub and opens where this project is not installed: a Hub on this machine, real clients."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from modeling_toto import TotoConfig, TotoForCausalLM
from training.find_model import STATE
from training.publish.cards import model_card
from training.publish.push import push_folder

ROOT = Path(__file__).parents[2]

PROBE = {
    "command": "toto probe --model out/run",
    "data": {"dataset": "/home/someone/toyworld", "num_frames": 4},
    "n_test": 1000,
    "tasks": {
        "digit": {
            "best": {"layer": 1, "head": "linear", "val_accuracy": 0.5, "accuracy": 0.5, "ci95": [0.469, 0.531]}
            | {"versus": {"pixels": {"difference": 0.2, "ci95": [0.157, 0.243]}}},
            "baselines": {
                "pixels": {"head": "linear", "accuracy": 0.3, "ci95": [0.272, 0.329]},
                "untrained": {"layer": 2, "head": "attention", "accuracy": 0.2, "ci95": [0.176, 0.226]},
            },
        },
        "motion": {
            "best": {"layer": 2, "head": "attention", "val_accuracy": 0.2, "accuracy": 0.125, "ci95": [0.1, 0.15]},
            "baselines": {"pixels": {"accuracy": 0.5}},
        },
    },
}
PROBE |= {"label": "digit", **PROBE["tasks"]["digit"]}

# Both children build the same video; the second has neither this file nor the project.
CLIP = """
import av, numpy as np, torch
def make_clip():
    pictures = np.random.default_rng(0).integers(0, 256, (13, 20, 24, 3), dtype=np.uint8)
    with av.open("clip.mp4", "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 24, 20, "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return pictures[:4]
"""

PUSH = (
    CLIP
    + """
import json, sys
from pathlib import Path
from huggingface_hub import ModelCard
from modeling_toto import TotoConfig, TotoForCausalLM
from tokenization import TotoImageProcessor, TotoProcessor, TotoVQGANConfig, TotoVQGANModel
from training.publish.push import push_folder

torch.manual_seed(0)
vqgan = TotoVQGANConfig(num_codes=32, embed_dim=4, base_channels=8, channel_multipliers=(1, 1, 1), num_res_blocks=1,
    attention_resolutions=(), mid_attention=False, z_channels=4, norm_groups=2, resolution=16)
processor = TotoProcessor(TotoImageProcessor(resolution=16), TotoVQGANModel(vqgan), num_frames=4)
sizes = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
    tokens_per_frame=16, num_frames=4, max_position_embeddings=66)
model = TotoForCausalLM(TotoConfig(**sizes)).eval()

# one: a run folder as toto pretrain leaves it, pushed twice; the weights of the first push were sharded
run = Path("run")
last = run / "checkpoints" / "step_000020"
(last / "training_state").mkdir(parents=True)
(last / "training_state" / "state.pt").write_bytes(b"optimiser")
(last / "trainer_state.json").write_text("{}")
processor.save_pretrained(last)
(run / "recipe.yaml").write_text("preset: tiny\\nlearning_rate: 0.002\\nshards: /home/someone/shards\\n")
rows = [{"step": step, "val_loss": loss} for step, loss in ((10, 4.0), (20, 3.0), (30, 1.0))]
rows.insert(2, {"step": 20, "loss": 2.5})
(run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
model.save_pretrained(last, max_shard_size="20KB")
assert len(list(last.glob("model-*.safetensors"))) > 1
push_folder(last, "tester/run", private=True)
for shard in last.glob("model*"):
    shard.unlink()
model.save_pretrained(last)
print(push_folder(run, "run", token="hf_test", commit_message="all of it", results=[json.loads(sys.argv[1])]))

# two: the plain methods, the second and third of which must spare what the ones before wrote
model.push_to_hub("tester/plain")
processor.push_to_hub("tester/plain")
processor.visual_tokenizer.push_to_hub("tester/plain")
# and the plain methods leave a card alone
card = str(ModelCard.load("tester/run"))
model.push_to_hub("tester/run")
processor.push_to_hub("tester/run")
assert str(ModelCard.load("tester/run")) == card
# a tokenizer has a repository of its own, too
processor.visual_tokenizer.push_to_hub("tester/tokenizer")
assert TotoProcessor.from_visual_tokenizer("tester/tokenizer").fingerprint == processor.fingerprint

frames = make_clip()
ids = processor(videos=frames).input_ids
prompt = ids[:, :33]
continued = model.generate_frames(prompt, 2, temperature=0)
torch.save({"ids": ids, "images": processor(images=list(frames)).input_ids, "logits": model(ids).logits.detach(),
    "hidden": model.model(ids).last_hidden_state.detach(), "continued": continued,
    "frames": torch.from_numpy(processor.decode(continued))}, "expected.pt")
"""
)

LOAD = (
    """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("modeling_toto", "tokenization", "training", "evaluation"):
            raise ModuleNotFoundError("No module named " + repr(name), name=name)
sys.meta_path.insert(0, Block())  # where a developer installed the project, it would be found from anywhere
for name in ("modeling_toto", "tokenization", "training", "evaluation"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(name + " is importable, so this proves nothing")
"""
    + CLIP
    + """
from huggingface_hub import ModelCard
from transformers import AutoImageProcessor, AutoModel, AutoModelForCausalLM, AutoProcessor
expected = torch.load(sys.argv[1], weights_only=True)
frames = make_clip()
for repo in ("tester/run", "tester/plain"):
    processor = AutoProcessor.from_pretrained(repo, trust_remote_code=True)
    backbone = AutoModel.from_pretrained(repo, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(repo, trust_remote_code=True)
    for part in (processor, processor.visual_tokenizer, backbone, model):
        assert type(part).__module__.startswith("transformers_modules."), type(part)
    ids = processor(videos=frames).input_ids
    assert torch.equal(ids, expected["ids"])
    assert torch.equal(processor(images=list(frames)).input_ids, expected["images"])
    assert torch.equal(model(ids).logits, expected["logits"])
    assert torch.equal(backbone(ids).last_hidden_state, expected["hidden"])
    continued = model.generate_frames(ids[:, :33], 2, temperature=0)
    assert torch.equal(continued, expected["continued"])
    decoded = processor.decode(continued)
    assert decoded.shape == (1, 4, 16, 16, 3) and np.array_equal(decoded, expected["frames"].numpy())
    assert AutoImageProcessor.from_pretrained(repo, trust_remote_code=True).resolution == 16
# what a user of the card types
example = ModelCard.load("tester/run").text.split("```python")[1].split("```")[0]
assert 'repo = "tester/run"' in example
exec(example, shown := {})
assert shown["features"].shape == (1, 66, 32) and shown["frames"].shape == (1, 4, 16, 16, 3)
"""
)


def child(script: str, cwd: Path, env: dict, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script, *args], cwd=cwd, env=env, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return done.stdout


@pytest.fixture(scope="module")
def hub():
    """The address of a Hub in a process of its own."""
    with subprocess.Popen([sys.executable, ROOT / "tests" / "loopback_hub.py"], stdout=subprocess.PIPE, text=True) as p:
        try:
            yield p.stdout.readline().strip()
        finally:
            p.terminate()


@pytest.fixture(scope="module")
def pushed(hub, tmp_path_factory):
    """Everything pushed by a child process: (folder with its numbers, environment of a client, what it printed)."""
    folder = tmp_path_factory.mktemp("push")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_", "PYTHONPATH"))}
    # set before huggingface_hub is imported, hence the children; the offline switch of a test run is undone
    env |= {"HF_ENDPOINT": hub, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_TOKEN": "hf_test"}
    env |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    printed = child(PUSH, folder, env | {"HF_HOME": str(folder / "hf"), "PYTHONPATH": str(ROOT)}, json.dumps(PROBE))
    return folder, env, printed


def repository(hub: str, name: str) -> dict:
    with urlopen(f"{hub}/_files/{name}") as answer:
        return json.load(answer)


def test_one_repository_holds_everything_and_no_optimiser(hub, pushed):
    run, plain = repository(hub, "tester/run"), repository(hub, "tester/plain")
    assert run["private"] and not plain["private"]
    expected = {"config.json", "generation_config.json", "model.safetensors", "processor_config.json", "README.md"}
    expected |= {"modeling_toto.py", "processing_toto.py", "modeling_vqgan.py", "sequences.py"}
    expected |= {"visual_tokenizer/config.json", "visual_tokenizer/model.safetensors"}
    for files in (run["files"], plain["files"]):
        assert expected <= set(files)
        assert not [name for name in files if STATE in name or name.endswith((".pt", "trainer_state.json"))]
        weights = {name for name in files if "safetensors" in name}
        assert weights == {"model.safetensors", "visual_tokenizer/model.safetensors"}, "shards of the first push"
    assert f"{hub}/tester/run/commit/" in pushed[2]
    with urlopen(f"{hub}/tester/run/resolve/{run['sha']}/config.json") as answer:
        auto_map = json.load(answer)["auto_map"]
    assert {f"{reference.split('.')[0]}.py" for reference in auto_map.values()} <= set(run["files"])


def test_it_opens_where_the_project_is_not_installed(pushed, tmp_path):
    folder, env, _ = pushed
    child(LOAD, tmp_path, env | {"HF_HOME": str(tmp_path / "hf")}, str(folder / "expected.pt"))


def test_the_card_of_a_run(hub, pushed):
    sha = repository(hub, "tester/run")["sha"]
    with urlopen(f"{hub}/tester/run/resolve/{sha}/README.md") as answer:
        card = ModelCard(answer.read().decode())
    assert card.data.library_name == "transformers" and card.data.license == "apache-2.0"
    assert "toto" in card.data.tags and card.data.model_name == "run"
    values = {(r.dataset_config, r.metric_type): r.metric_value for r in card.data.eval_results}
    assert values == {(None, "loss"): 3.0, ("digit", "accuracy"): 0.5, ("motion", "accuracy"): 0.125}
    assert "| toyworld, digit | **this model** | 1, linear | 50.0 | [46.9, 53.1] |  | 1,000 |" in card.text
    assert "| toyworld, digit | pixels | linear | 30.0 | [27.2, 32.9] | +20.0 [+15.7, +24.3] | 1,000 |" in card.text
    assert "| toyworld, motion | pixels |  | 50.0 |  |  | 1,000 |" in card.text, "a lost comparison is shown as well"
    assert "hidden_states[1]" in card.text and "learning_rate: 0.002" in card.text
    assert "The last validation was at step 20." in card.text
    assert "someone" not in str(card), "folders of one's machine stay private"


# --- the card alone


@pytest.fixture
def folder(tmp_path):
    """A Hugging Face folder; of the processor the card reads only its settings."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = TotoForCausalLM(TotoConfig(vocab_size=96, tokens_per_frame=4, max_position_embeddings=66, **sizes))
    model.save_pretrained(tmp_path / "toto-test")
    (tmp_path / "toto-test" / "processor_config.json").write_text(json.dumps({"image_processor": {"resolution": 16}}))
    (tmp_path / "parameters").write_text(str(model.num_parameters()))
    return tmp_path / "toto-test"


def test_a_card_without_numbers_claims_none(folder):
    card = model_card(folder, license="mit")
    metadata = yaml.safe_load(card.split("---")[1])
    assert metadata["license"] == "mit" and "model-index" not in metadata and "metrics" not in metadata
    assert f"{int((folder.parent / 'parameters').read_text()):,} parameters: 2 layers" in card
    assert "Nothing has been measured yet" in card and "without a record of its training" in card and "{" not in card
    assert re.findall("^## (.*)", card, re.M) == ["How to use it", "Training", "Evaluation", "Limitations", "Licence"]


def test_a_card_names_its_data_while_the_shards_are_there(folder, tmp_path):
    manifest = {"num_sequences": 1200, "kind": "video", "num_tokens": 76800, "dataset": "user/clips", "split": "train"}
    manifest["tokenizer"] = {"name": "toto-tokenizer-64", "fingerprint": "0123456789abcdef"}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    card = model_card(folder, metrics={"val_loss": float(np.log(8)), "step": 5}, recipe={"shards": str(tmp_path)})
    assert "1,200 video rows (76,800 tokens) of `user/clips`" in card and str(tmp_path) not in card
    assert "**2.0794** nats per code token; a uniform guess over 32 codes has a loss of 3.4657." in card
    (result,) = ModelCard(card).data.eval_results
    assert result.dataset_type == "user/clips" and result.metric_value == float(np.log(8))


def test_a_card_names_the_sources_of_a_mixture_and_no_folder(folder, tmp_path):
    sources = [{"data": "user/more", "weight": 0.75}]
    manifest = {"num_sequences": 12, "kind": "image", "num_tokens": 768, "dataset": "user/photos", "split": "train"}
    manifest["tokenizer"] = {"name": "toto-tokenizer-64", "fingerprint": "0123456789abcdef"}
    for name, weight in (("clips", 0.15), ("photos", 0.1)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_text(json.dumps(manifest | {"dataset": f"user/{name}"}))
        sources.append({"data": str(tmp_path / name), "weight": weight})
    card = model_card(folder, metrics={"val_loss": 2.0, "step": 5}, recipe={"sources": sources})
    assert "12 image rows (768 tokens) of `user/photos`, split `train`, for 10 % of the training tokens" in card
    assert "12 image rows (768 tokens) of `user/clips`, split `train`, for 15 % of the training tokens" in card
    assert "data: user/more" in card and "data: photos" in card and str(tmp_path) not in card
    (result,) = ModelCard(card).data.eval_results
    assert result.dataset_type == "validation shards"


def test_mistakes_are_reported_before_anything_is_sent(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        push_folder(tmp_path / "nowhere", "user/toto")
    with pytest.raises(ValueError, match="is none of toto probe or toto generate"):
        model_card(folder, results=[{"psnr": 30}])
    (folder / "processor_config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"without its processor; call processor\.save_pretrained"):
        push_folder(folder, "user/toto")
