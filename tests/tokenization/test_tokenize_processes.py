"""Several processes, kills and reruns: whatever happens on the way, the same shards to the byte."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from media import make_image, tiny_tokenizer

from tokenization import tokenize_dataset
from tokenization.shards import shuffle
from tokenization.shards.code_parts import PartWriter
from tokenization.tokenize_dataset import main, read_manifest, verify

ROOT = Path(__file__).parents[2]
ENV = os.environ | {"ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
ENV |= {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer(resolution=32).save_pretrained(folder)
    return folder


# A run that hangs when the codes of its fourth part are written and the part does not count yet.
HANG = """
import time
from tokenization import files, tokenize_dataset
from tokenization.shards import code_parts
write_whole, written = files.write_whole, []
def hang(file, write):
    written.append(file)
    if len(written) == 4:  # three parts came before
        time.sleep(600)
    write_whole(file, write)
files.write_whole = code_parts.write_whole = hang
tokenize_dataset.main()
"""


def flags(tokenizer, output):
    """A source of many small parts, in shards of 10 rows."""
    source = ["--dataset", "toyworld", "--max_clips", "24", "--num_frames", "2", "--items_per_part", "2"]
    return [*source, "--rows_per_shard", "10", "--tokenizer", str(tokenizer), "--output", str(output)]


def content(folder):
    """Everything in a folder but the card, which names the folder."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "README.md")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_killed_and_finished_by_two_processes_is_as_if_nothing_had_happened(tokenizer, tmp_path):
    command, parts = flags(tokenizer, tmp_path / "a"), tmp_path / "a.partial" / "parts"
    with subprocess.Popen([sys.executable, "-c", HANG, *command], env=ENV, stderr=subprocess.DEVNULL) as process:
        while not (parts / "000000-000003.arrow").exists() and process.poll() is None:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert len(list(parts.glob("*.json"))) == 3 and not (tmp_path / "a").exists()

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "tokenization.tokenize_dataset", *command]
    rest = subprocess.run(command, env=ENV, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert rest.returncode == 0, rest.stderr[-3000:]
    assert "2 processes: cpu" in rest.stdout and "3 parts are finished" in rest.stdout
    assert "encoder busy" in rest.stdout and "36 frames" in rest.stdout, "what was finished is not encoded again"

    main(flags(tokenizer, tmp_path / "b"))
    assert content(tmp_path / "a") == content(tmp_path / "b")
    assert [shard["rows"] for shard in read_manifest(tmp_path / "a")["shards"]] == [10, 10, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


@pytest.fixture
def images(tmp_path):
    (tmp_path / "in").mkdir()
    for index in range(9):
        make_image(tmp_path / "in" / f"{index}.png", (25 * index, 9, 9))
    return ["--dataset", str(tmp_path / "in"), "--items_per_part", "2", "--rows_per_shard", "4"]


@pytest.mark.parametrize("step", ["_encode", "deal", "fill", "write_shard", "finish"])
def test_a_run_cut_off_anywhere_resumes(images, tokenizer, tmp_path, monkeypatch, step):
    monkeypatch.setattr(shuffle, "BUCKET_BYTES", 512)  # a shard of 4 rows of 64 codes
    args = [*images, "--tokenizer", str(tokenizer), "--output"]
    main([*args, str(tmp_path / "whole")])
    with monkeypatch.context() as patch:
        cut_off(patch, step)
        with pytest.raises(KeyboardInterrupt):
            main([*args, str(tmp_path / "out")])
    kinds = ("parts/*.json", "dealt/*.arrow", "buckets/*.json", "*.arrow")
    left = {file: file.stat().st_mtime_ns for kind in kinds for file in (tmp_path / "out.partial").glob(kind)}
    counts = {"_encode": (2, 0, 0, 0), "deal": (5, 2, 0, 0), "fill": (5, 3, 2, 2), "write_shard": (5, 3, 2, 2)}
    found = tuple(len(list((tmp_path / "out.partial").glob(kind))) for kind in kinds)
    assert found == counts.get(step, (5, 3, 3, 3)) and not (tmp_path / "out").exists()

    finish, kept = tokenize_dataset.finish, {}

    def look(partial, output):
        kept.update((file, file.stat().st_mtime_ns) for file in left)
        return finish(partial, output)

    monkeypatch.setattr(tokenize_dataset, "finish", look)
    main([*args, str(tmp_path / "out")])
    assert kept == left, "nothing that was finished is written again"
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def cut_off(patch, step):
    """Stop as a kill would: in the third part, stretch or bucket, or third shard, or when all is written."""
    if step == "finish":
        patch.setattr(tokenize_dataset, "finish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        return
    owner, name = {
        "_encode": (PartWriter, "close"),
        "deal": (shuffle._Shuffle, "deal"),
        "fill": (shuffle._Shuffle, "fill"),
        "write_shard": (shuffle, "write_shard"),
    }[step]
    function, calls = getattr(owner, name), []

    def stop(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    patch.setattr(owner, name, stop)


def test_other_flags_are_refused(images, tokenizer, tmp_path, monkeypatch):
    args = [*images, "--tokenizer", str(tokenizer), "--output", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        cut_off(patch, "_encode")
        with pytest.raises(KeyboardInterrupt):
            main(args)
    before = content(tmp_path / "out.partial")
    told = r"out\.partial was started with other flags \(seed 0 instead of 1\); pass the same flags, or delete"
    with pytest.raises(ValueError, match=told):
        main([*args, "--seed", "1"])
    assert content(tmp_path / "out.partial") == before
    main([*args, "--decode_threads", "1"])
    assert verify(tmp_path / "out")


def test_processes_that_do_not_see_each_other_are_refused(images, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were launched, but each works alone"):
        main([*images, "--tokenizer", str(tokenizer), "--output", str(tmp_path / "out")])


def test_bf16_is_compared_with_fp32(images, tokenizer, tmp_path, capsys):
    args = [*images, "--tokenizer", str(tokenizer), "--output"]
    main([*args, str(tmp_path / "out"), "--precision", "bf16"])
    manifest = read_manifest(tmp_path / "out")
    assert manifest["precision"] == "bf16" and 0.5 < manifest["bf16_agreement"] <= 1
    assert "of the codes of the first batch are the same in fp32" in capsys.readouterr().out
    main([*args, str(tmp_path / "fp32"), "--precision", "fp32"])
    exact = read_manifest(tmp_path / "fp32")
    assert exact["precision"] == "fp32" and "bf16_agreement" not in exact
