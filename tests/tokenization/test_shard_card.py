"""Shards go to a Hub as a dataset with a card, and come back complete; a missing token is reported before the work."""

import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest
import yaml
from datasets import load_dataset
from media import make_image, tiny_tokenizer

from tokenization.shards.card import shard_card
from tokenization.tokenize_dataset import main, read_manifest

ROOT = Path(__file__).parents[2]

# The Hub of the tests of models, answering for datasets as well.
HUB = """
import loopback_hub as hub
for methods, pattern, handle in list(hub.ROUTES):
    if pattern.startswith("/api/models/"):
        hub.ROUTES.append((methods, pattern.replace("/api/models/", "/api/datasets/"), handle))
    elif hub.REPO in pattern:
        hub.ROUTES.append((methods, "/datasets" + pattern, handle))
server = hub.ThreadingHTTPServer(("127.0.0.1", 0), hub.Handler)
print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
server.serve_forever()
"""

PUSH = """
import json, os, sys
from pathlib import Path
from tokenization.tokenize_dataset import main
flags = json.loads(sys.argv[1])
try:
    main([*flags, "--push_to_hub", "tester/shards"])
    raise SystemExit("pushed without a token")
except OSError as error:
    assert not list(Path().glob("out*")), "a missing token was found after the work"
os.environ["HF_TOKEN"] = "hf_test"
main([*flags, "--rows_per_shard", "1", "--push_to_hub", "tester/shards", "--private"])
main([*flags[:-1], "again"])
main(["--verify", "again", "--push_to_hub", "tester/shards"])
from huggingface_hub import snapshot_download
main(["--verify", snapshot_download("tester/shards", repo_type="dataset")])
"""


@pytest.fixture(scope="module")
def flags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("in")
    (folder / "my_images" / "red").mkdir(parents=True)
    for index in range(3):
        make_image(folder / "my_images" / "red" / f"{index}.png", (80 * index, 9, 9))
    tiny_tokenizer().save_pretrained(folder / "my_tokenizer")
    return ["--dataset", str(folder / "my_images"), "--tokenizer", str(folder / "my_tokenizer")]


def test_a_folder_of_shards_loads_by_its_card(flags, tmp_path):
    make_image(Path(flags[1]) / "red" / "bad.png", (0, 0, 0)).write_bytes(b"noise")
    main([*flags, "--output", str(tmp_path / "out")])
    rows = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(rows) == 3 and rows.column_names == ["codes", "source", "start", "fps", "held_out"]
    card = (tmp_path / "out" / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["configs"][0]["data_files"] == [{"split": "train", "path": "train-*.arrow"}]
    manifest = read_manifest(tmp_path / "out")
    assert manifest["tokenizer"]["fingerprint"] in card and "of which 3 gave rows and 1 were skipped" in card
    assert "`my_images`" in card and "`my_tokenizer`" in card and str(Path(flags[1]).parent) not in card
    example = card.split("```python")[1].split("```")[0]
    example = example.replace('snapshot_download("out", repo_type="dataset")', repr(str(tmp_path / "out")))
    exec(example.replace('"out"', repr(str(tmp_path / "out"))), shown := {})
    assert shown["frames"].shape == (1, 1, 16, 16, 3)
    video = manifest | {"kind": "video", "num_frames": 16, "stride": 4, "precision": "bf16", "bf16_agreement": 0.995}
    card = shard_card(video, "user/clips")
    assert "a clip of 16 frames" in card and "99.50 %" in card and 'load_dataset("user/clips"' in card


def test_shards_go_to_the_hub_and_come_back(flags, tmp_path):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    # set before huggingface_hub is imported, hence the child; the offline switch of a test run is undone
    env |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": str(ROOT)}
    env |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"}
    hub_env = os.environ | {"PYTHONPATH": str(ROOT / "tests")}
    with subprocess.Popen([sys.executable, "-c", HUB], env=hub_env, stdout=subprocess.PIPE, text=True) as hub:
        try:
            address = hub.stdout.readline().strip()
            done = subprocess.run(
                [sys.executable, "-c", PUSH, json.dumps([*flags, "--output", "out"])],
                env=env | {"HF_ENDPOINT": address},
                cwd=tmp_path,
                capture_output=True,
                text=True,
                timeout=280,
            )
            assert done.returncode == 0, done.stderr[-3000:]
            with urlopen(f"{address}/_files/tester/shards") as answer:
                there = json.load(answer)
            with urlopen(f"{address}/datasets/tester/shards/resolve/main/manifest.json") as answer:
                manifest = json.load(answer)
        finally:
            hub.terminate()
    assert there["private"] and done.stdout.count("pushed to") == 2
    shards = {name for name in there["files"] if name.endswith(".arrow")}
    assert shards == {"train-00000.arrow"}, "the three shards of the first push are gone"
    assert {"README.md", "processor/processor_config.json", "processor/visual_tokenizer/model.safetensors"} <= set(
        there["files"]
    )
    assert manifest["dataset"] == "my_images" and manifest["tokenizer"]["name"] == "my_tokenizer"
