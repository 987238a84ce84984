"""`toto tokenize` writes whole, checked, shuffled shards that say where they came from, or a sentence and nothing."""

import errno
import json
import subprocess
import sys

import pyarrow as pa
import pytest
import torch
from datasets import load_dataset
from media import make_image, make_video, tiny_processor, tiny_tokenizer

from tokenization import TotoProcessor, tokenize_dataset
from tokenization.shards import assemble as assembling
from tokenization.shards import shuffle
from tokenization.shards.code_parts import PartWriter
from tokenization.tokenize_dataset import main, read_manifest, verify


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for label, frames in (("run", 30), ("sit", 60)):
        (folder / label).mkdir()
        make_video(folder / label / "a.mp4", frames=frames)
    make_video(folder / "sit" / "short.mp4", frames=4)
    return folder


def run(dataset, output, tokenizer, *flags):
    # fp32: the same codes on every machine, whatever the size of a batch.
    stride = () if dataset == "toyworld" else ("--stride", "2")
    flags = ("--precision", "fp32", "--num_frames", "4", *stride, *map(str, flags))
    main(["--dataset", str(dataset), "--output", str(output), "--tokenizer", str(tokenizer), *flags])
    return read_manifest(output)


@pytest.fixture(scope="module")
def shards(videos, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "shards"
    run(videos, folder, tokenizer)
    return folder


def test_the_manifest_says_what_was_done(shards, videos, tokenizer):
    manifest = read_manifest(shards)
    fingerprint = TotoProcessor.from_visual_tokenizer(tokenizer).fingerprint
    assert manifest["tokenizer"] == {"name": str(tokenizer), "class": "TotoVQGANModel", "fingerprint": fingerprint}
    expected = {
        "format": 2, "kind": "video", "split": "train", "dataset": str(videos), "num_codes": 32, "grid": [4, 4],
        "num_frames": 4, "stride": 2, "fps": None, "resolution": 16, "crops": 1, "seed": 0, "num_sequences": 10,
        "num_tokens": 10 * 64, "sources": 3, "kept": 2, "skipped_count": 1, "label_names": {"label": ["run", "sit"]},
        "processor": "processor",
    }  # fmt: skip
    assert {key: manifest[key] for key in expected} == expected
    assert manifest["skipped"][0]["source"] == "sit/short.mp4" and "too short" in manifest["skipped"][0]["why"]
    assert [(shard["file"], shard["rows"]) for shard in manifest["shards"]] == [("train-00000.arrow", 10)]
    assert TotoProcessor.from_pretrained(shards / "processor").num_frames == 4


def test_rows_hold_the_codes_of_their_clip(shards, videos):
    table = pa.ipc.open_file(pa.memory_map(str(shards / "train-00000.arrow"))).read_all()
    assert str(table.schema.field("codes").type) == "fixed_size_list<item: uint16>[64]"
    assert table.schema.names == ["codes", "source", "start", "fps", "label", "held_out"]
    processor = TotoProcessor.from_pretrained(shards / "processor")
    rows = sorted(table.to_pylist(), key=lambda row: (row["source"], row["start"]))
    assert [(row["source"], row["start"]) for row in rows[:4]] == [
        ("run/a.mp4", 0), ("run/a.mp4", 8), ("run/a.mp4", 16), ("sit/a.mp4", 0)
    ]  # fmt: skip
    ids = processor(videos=str(videos / "sit" / "a.mp4"), stride=2).input_ids[0, 1:-1]
    assert torch.equal(torch.tensor(rows[3]["codes"]) + 64, ids)
    assert rows[3]["fps"] == 12.5 and rows[3]["label"] == 1
    assert table.column("start").to_pylist() != sorted(table.column("start").to_pylist()), "rows are shuffled"


def test_datasets_reads_them_as_uint16(shards, tmp_path):
    rows = load_dataset("arrow", data_files=str(shards / "*.arrow"), split="train", cache_dir=str(tmp_path))
    assert rows.with_format("numpy")[0]["codes"].shape == (64,) and rows.features["codes"].feature.dtype == "uint16"


def test_it_can_be_repeated_bit_for_bit(shards, videos, tokenizer, tmp_path):
    again = run(videos, tmp_path / "again", tokenizer, "--batch_frames", 3)
    assert again == read_manifest(shards)
    assert run(videos, tmp_path / "other", tokenizer, "--seed", 1)["shards"] != again["shards"]


def test_many_shards_images_crops_and_sizes(tokenizer, tmp_path):
    (tmp_path / "in").mkdir()
    for index in range(5):
        make_image(tmp_path / "in" / f"{index}.png", (40 * index, 9, 9), size=(40, 20))
    flags = ("--crops", 3, "--rows_per_shard", 4, "--resolution", 24, "--max_clips", 14)
    manifest = run(tmp_path / "in", tmp_path / "out", tokenizer, *flags)
    assert [shard["rows"] for shard in manifest["shards"]] == [4, 4, 4, 2]
    assert manifest["kind"] == "image" and manifest["num_frames"] == 1 and manifest["grid"] == [6, 6]
    assert manifest["stride"] is None and manifest["num_tokens"] == 14 * 36 and manifest["kept"] == 5
    assert TotoProcessor.from_pretrained(tmp_path / "out" / "processor").resolution == 24
    assert verify(tmp_path / "out").startswith(f"{tmp_path / 'out'}: 14 rows of 36 codes in 4 shards")


def test_toyworld_with_the_labels_of_its_truth(tokenizer, tmp_path):
    flags = ("--max_clips", 3, "--split", "validation", "--resolution", 32)
    manifest = run("toyworld", tmp_path / "out", tokenizer, *flags)
    assert manifest["num_sequences"] == 3 and manifest["shards"][0]["file"] == "validation-00000.arrow"
    schema = pa.ipc.open_file(tmp_path / "out" / "validation-00000.arrow").schema
    assert schema.names[4:] == ["digit", "texture", "motion", "held_out"]


def test_what_a_folder_holds_is_printed_and_kept(tokenizer, tmp_path, capsys):
    for name in ("train/training dog/a", "train/cat/b", "val/cat/c"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        make_video(tmp_path / "in" / f"{name}.mp4", frames=10)
    (tmp_path / "in" / "train" / "cat" / "b.txt").write_text("a cat")
    (tmp_path / "in" / ".DS_Store").touch()
    manifest = run(tmp_path / "in", tmp_path / "out", tokenizer)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        f"found 5 files in {tmp_path / 'in'}: 3 .mp4, 1 .DS_Store, 1 .txt",
        "read 2 videos of split train (2 .mp4; 2 classes: cat, training dog)",
        "left 3 (in split val: 1 .mp4; no media: 1 .txt; hidden: 1 .DS_Store)",
    ]
    assert manifest["sources"] == manifest["kept"] == 2
    assert manifest["left"] == {"in split val": {".mp4": 1}, "no media": {".txt": 1}, "hidden": {".DS_Store": 1}}


def test_a_folder_that_grew_is_not_resumed(tokenizer, tmp_path, monkeypatch):
    for name in "ab":
        (tmp_path / "in").mkdir(exist_ok=True)
        make_video(tmp_path / "in" / f"{name}.mp4", frames=10)

    def killed(*_args):
        raise OSError("killed")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="killed"):
        patch.setattr(assembling, "assemble", killed)
        run(tmp_path / "in", tmp_path / "out", tokenizer)
    make_video(tmp_path / "in" / "0.mp4", frames=10)
    with pytest.raises(ValueError, match="items 2 instead of 3"):
        run(tmp_path / "in", tmp_path / "out", tokenizer)


def test_verify_prints_one_line(shards, capsys):
    main(["--verify", str(shards)])
    line = capsys.readouterr().out.strip()
    assert "10 rows of 64 codes in 1 shards" in line and "\n" not in line


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "train-00000.arrow").write_bytes(b"x"), "is damaged"),
        (lambda f: (f / "train-00000.arrow").unlink(), "is missing"),
        (lambda f: (f / "manifest.json").unlink(), "no manifest.json"),
        (lambda f: (f / "manifest.json").write_text("{"), "is damaged"),
        (lambda f: edit(f, format=9), "has format 9"),
        (lambda f: edit(f, num_codes=3), "the tokenizer has 3 codes"),
        (lambda f: edit(f, num_sequences=11), "but its manifest lists 11"),
        (lambda f: edit(f, grid=[4, 2]), r"holds \d+ rows of \d+ codes, but its manifest lists \d+ of 32"),
        (
            lambda f: tiny_processor(seed=1).save_pretrained(f / "processor"),
            "holds the tokenizer .*, but its manifest names",
        ),
    ],
)
def test_verify_finds_damage(videos, tokenizer, tmp_path, damage, words):
    run(videos, tmp_path / "out", tokenizer, "--max_clips", 3)
    damage(tmp_path / "out")
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        verify(tmp_path / "out")


def edit(folder, **changes):
    file = folder / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_nothing_usable_is_a_sentence_with_reasons(tokenizer, tmp_path):
    (tmp_path / "in").mkdir()
    for index in range(5):
        make_video(tmp_path / "in" / f"{index}.mp4", frames=3)
    with pytest.raises(ValueError, match=r"No clip of .* could be used: 0\.mp4: .* too short.*and 2 more"):
        run(tmp_path / "in", tmp_path / "out", tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["in"], "nothing is left behind"


def test_an_output_that_is_in_use_is_refused(shards, videos, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="is not empty; name a new folder"):
        run(videos, shards, tokenizer)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.partial").mkdir()
    (tmp_path / "empty.partial" / "left by a kill").touch()
    assert run(videos, tmp_path / "empty", tokenizer, "--max_clips", 1)["num_sequences"] == 1
    assert not (tmp_path / "empty" / "left by a kill").exists() and not (tmp_path / "empty.partial").exists()


def test_an_output_that_fills_meanwhile_costs_no_finished_work(shards, videos, tokenizer, tmp_path, monkeypatch):
    output, assemble = tmp_path / "out", assembling.assemble

    def somebody_writes_there(*args):
        assemble(*args)
        output.mkdir()
        (output / "theirs.txt").write_text("mine")

    monkeypatch.setattr(assembling, "assemble", somebody_writes_there)
    with pytest.raises(OSError, match="is no longer empty; empty it and run the same command again"):
        run(videos, output, tokenizer)
    monkeypatch.undo()
    (output / "theirs.txt").unlink()
    with pytest.raises(ValueError, match="was started with other flags"):  # a mistyped rerun deletes nothing
        run(videos, output, tokenizer, "--seed", 5)
    assert run(videos, output, tokenizer) == read_manifest(shards)


def test_a_full_disk_is_a_sentence_and_the_same_command_resumes(shards, videos, tokenizer, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shuffle, "write_shard", full)
        with pytest.raises(OSError, match=r"The disk is full .* run the same command again"):
            run(videos, tmp_path / "out", tokenizer)
        patch.setattr(PartWriter, "close", full)
        with pytest.raises(OSError, match=r"The disk is full"):
            run(videos, tmp_path / "other", tokenizer)
    assert [path.name for path in tmp_path.iterdir()] == ["out.partial"], "nothing of a run that finished nothing"
    assert run(videos, tmp_path / "out", tokenizer) == read_manifest(shards)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_frames_reduced_by_the_decoder_are_recorded_and_not_mixed_with_others(
    shards, videos, tokenizer, tmp_path, monkeypatch
):
    assert "resize" not in read_manifest(shards)
    manifest = run(videos, tmp_path / "out", tokenizer, "--resize", "decoder")
    assert manifest["resize"] == "decoder" and manifest["num_sequences"] == 10
    assert "large frames reduced by the decoder" in (tmp_path / "out" / "README.md").read_text()
    partial = tmp_path / "other.partial"
    with monkeypatch.context() as patch:
        patch.setattr(tokenize_dataset, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(videos, tmp_path / "other", tokenizer, "--resize", "decoder")
    with pytest.raises(ValueError, match=r"started with other flags \(resize decoder instead of pil\)"):
        run(videos, tmp_path / "other", tokenizer)
    settings = json.loads((partial / "settings.json").read_text())
    del settings["resize"]  # as an earlier version left it
    (partial / "settings.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"\(resize pil instead of decoder\)"):
        run(videos, tmp_path / "other", tokenizer, "--resize", "decoder")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--dataset", "toyworld"], "--output is missing; name a folder"),
        (["--dataset", "a", "--output", "x", "--resize", "gpu"], "--resize is gpu; it must be pil or decoder"),
        (["--dataset", "toyworld", "--output", "x", "--resize", "decoder"], "--resize would have no effect on toy"),
        (["--dataset", "toyworld", "--output", "x", "--stride", "0"], "--stride is 0; it must be at least 1"),
        (["--dataset", "toyworld", "--output", "x", "--max_clips", "-1"], "--max_clips is -1; it must be at least 1"),
        (
            ["--dataset", "toyworld", "--output", "x", "--precision", "fp16"],
            "--precision is fp16; it must be fp32 or bf16",
        ),
        (["--dataset", "a", "--output", "x", "--private"], "--private would have no effect without --push_to_hub"),
        (["--dataset", "toyworld:film", "--output", "x", "--fps", "8"], "--fps would have no effect on toyworld"),
        (["--dataset", "a", "--output", "x", "--fps", "8", "--stride", "2"], "--stride would have no effect next to"),
        (["--verify", "x", "--seed", "1", "--crops", "2"], "--crops, --seed would have no effect with --verify"),
    ],
)
def test_nonsense_is_refused_at_once(flags, words):
    with pytest.raises(ValueError, match=words):
        main(flags)


def test_help_imports_nothing_heavy():
    script = (
        "import sys; sys.argv = ['toto', '--help']\n"
        "from tokenization.tokenize_dataset import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'datasets', 'av', 'pyarrow'} & set(sys.modules), 'heavy'"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    assert "--num_frames" in run.stdout
