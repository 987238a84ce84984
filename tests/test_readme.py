"""What the README shows works: its Python runs, its commands run (shortened), its paths exist."""

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, flags=re.S)
# What keeps a command of the README to seconds; everything else runs as it is printed.
SHORTER = {
    "training.pretrain": ["--max_steps", "2", "--tokens_per_step", "1024", "--per_device_batch_size", "1"],
    "train-tokenizer": [
        *["--model", '{"base_channels": 32, "channel_multipliers": [1], "patch_size": 16, "resolution": 64}'],
        *["--max_steps", "2", "--batch_size", "2"],
    ],
    "probe": ["--max_train", "12", "--max_eval", "8", "--epochs", "2"],
}


def blocks(language):
    return [text for found, text in BLOCKS if found == language]


def test_python_blocks_run(monkeypatch):
    monkeypatch.chdir(ROOT)
    for block in blocks("python"):
        names = {}
        exec(compile(block, "README.md", "exec"), names)
    assert names["features"].shape == (1, 256)
    assert names["frames"].shape == (1, 8, 128, 128, 3)


def test_the_model_page_runs(tmp_path, monkeypatch):
    """Its blocks build on each other, so they run as one program."""
    import torch

    page = (ROOT / "docs" / "model.md").read_text()
    source = "\n".join(re.findall(r"```python\n(.*?)```", page, flags=re.S))
    monkeypatch.chdir(tmp_path)
    names = {}
    torch.manual_seed(0)
    exec(compile(source, "docs/model.md", "exec"), names)
    assert names["out"].next_token_loss > 0 and (tmp_path / "out" / "model" / "config.json").is_file()


def test_the_transformers_page_runs(tmp_path, monkeypatch):
    """As the page of the model does, with the committed checkpoint."""
    pytest.importorskip("peft")
    page = (ROOT / "docs" / "transformers.md").read_text()
    source = "\n".join(re.findall(r"```python\n(.*?)```", page, flags=re.S))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").symlink_to(ROOT / "checkpoints")
    (tmp_path / "out").mkdir()
    names = {}
    try:
        exec(compile(source, "docs/transformers.md", "exec"), names)
    finally:  # Trainer leaves a state behind, which refuses another precision to the next Accelerator of the process
        AcceleratorState._reset_state(reset_partial_state=True)
    assert {each["label"] for each in names["classify"](names["photos"][0])} == {"red", "blue"}


def test_commands_run(tmp_path, monkeypatch):
    import av
    from PIL import Image

    from tokenization.toyworld.world import ToyWorld
    from toto_cli import VERBS

    monkeypatch.chdir(tmp_path)
    world = ToyWorld("train", num_frames=70)
    for i, name in enumerate(["clip", "b", "c", "d"]):
        Path("my_videos").mkdir(exist_ok=True)
        with av.open(f"my_videos/{name}.mp4", "w") as file:
            stream = file.add_stream("mpeg4", rate=30)
            stream.width = stream.height = 64
            for picture in world.clip(i)["video"]:
                file.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            file.mux(stream.encode())
    for i in range(40):
        folder = Path("my_photos") / "train" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(world.clip(i)["video"][0]).save(folder / f"{i}.png")
    commands = [line for block in blocks("bash")[1:] for line in block.splitlines() if line]
    assert [line.split()[0] for line in commands] == ["toto", "accelerate", *["toto"] * 6]
    for command in commands:
        words = shlex.split(command, comments=True)
        if words[0] == "toto":
            verb, flags = words[1], words[2:]
            module = VERBS[verb][0]
        else:  # accelerate launch -m MODULE
            module = verb = words[3]
            flags = words[4:]
        importlib.import_module(module).main(flags + SHORTER.get(verb, []))
    for made in (
        "out/shards/manifest.json",
        "out/tokenizer/model.safetensors",
        "out/my_shards/manifest.json",
        "out/run/checkpoints",
        "out/results/probe.json",
        "out/report.html",
    ):
        assert Path(made).exists(), made


@pytest.mark.parametrize("target", re.findall(r"^make (\w+)", blocks("bash")[0], flags=re.M))
def test_make_targets_exist(target):
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.M)


def test_links_and_tree_exist():
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / link).exists(), (page.name, link)
    tree = next(text for language, text in BLOCKS if not language)
    assert len(tree.splitlines()) <= 45
    folder = ROOT
    for line in tree.splitlines():
        names, _ = re.split(r" {2,}(?=\S+(?: \S+)+$)", line.strip(), maxsplit=1)
        if not line.startswith(" "):
            folder = ROOT
        for name in names.split():
            assert (folder / name).exists(), line
        if not line.startswith(" ") and names.strip() in (
            "tokenization/",
            "modeling_toto/",
            "training/",
            "evaluation/",
        ):
            folder = ROOT / names.strip()


def test_the_row_of_results_is_the_committed_one():
    motion = json.loads((ROOT / "checkpoints" / "toto-nano" / "probe.json").read_text())["tasks"]["motion"]
    scores = [motion["best"], motion["baselines"]["untrained"], motion["baselines"]["pixels"]]
    cells = [f"{100 * s['accuracy']:.1f} [{100 * s['ci95'][0]:.1f}, {100 * s['ci95'][1]:.1f}]" for s in scores]
    (row,) = re.findall(r"^\| direction of motion.*$", README, flags=re.M)
    assert [cell.strip() for cell in row.split("|")[2:-1]] == [*cells, f"{100 * motion['chance']:.1f}"]


def test_the_picture_is_what_its_command_draws():
    """Its true frames are those of the clip, and it has a column for each frame of the model."""
    import numpy as np
    from PIL import Image
    from transformers.hf_argparser import HfArgumentParser

    from evaluation.generate import GenerateArgs, frame_counts, read_video
    from evaluation.pictures import sheet
    from modeling_toto import TotoConfig

    (command,) = re.findall(r"^`toto generate (--.*)`", README, flags=re.M)
    (args,) = HfArgumentParser(GenerateArgs).parse_args_into_dataclasses(shlex.split(command))
    prompt, new = frame_counts(TotoConfig.from_pretrained(ROOT / args.model), args.num_prompt_frames, args.num_frames)
    (path,) = re.findall(r"!\[.*\]\((.*)\)", README)
    assert (ROOT / path).stat().st_size < 200_000
    picture = np.asarray(Image.open(ROOT / path).convert("RGB")).astype(int)
    clip = read_video(args.video[0], prompt, new, args.stride, args.fps, 128).frames
    result = {"true": clip, "reconstructed": clip, "generated": clip[None]}
    drawn = np.asarray(sheet(result | {"num_prompt_frames": prompt, "num_frames": new})).astype(int)
    assert picture.shape == drawn.shape
    first_row = slice(0, 44 + 128 + 8)  # of three: the title and the true frames
    assert abs(picture[first_row] - drawn[first_row]).mean() < 4  # 256 colours
