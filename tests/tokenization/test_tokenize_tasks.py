"""Tasks of `toto tokenize` that know nothing of each other: their shares, and kills at any moment on any of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from media import make_image, tiny_tokenizer

from tokenization import tokenize_dataset
from tokenization.shards.parts import FinishedParts, first_missing, rows_before, steps
from tokenization.shards.working_folder import PLAN
from tokenization.sources.open import open_source
from tokenization.tokenize_dataset import main, read_manifest, verify

ROOT = Path(__file__).parents[2]
ENV = os.environ | {"ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
ENV |= {"PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Flags for 23 pictures in 12 parts and 6 shards of at most 4 rows of 64 codes."""
    folder, tokenizer = (tmp_path_factory.mktemp(name) for name in ("images", "tokenizer"))
    tiny_tokenizer(resolution=32).save_pretrained(tokenizer)
    for index in range(23):
        make_image(folder / f"{index:02d}.png", (11 * index, 9, 255 - 11 * index))
    flags = ["--dataset", str(folder), "--tokenizer", str(tokenizer), "--items_per_part", "2", "--rows_per_shard", "4"]
    return [*flags, "--decode_threads", "1"]


def content(folder):
    """Everything in a folder but the card, which names the folder."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "README.md")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_last_task_makes_the_shards_and_any_other_may_be_started_again(images, tmp_path, capsys):
    main([*images, "--output", str(tmp_path / "whole")])
    out = [*images, "--output", str(tmp_path / "out")]
    main([*out, "--rank", "2", "--world", "3"])
    parts = tmp_path / "out.partial" / "parts"
    mine = sorted(path.name for path in parts.glob("*.json"))
    assert mine == [f"000000-{chunk:06d}.json" for chunk in (2, 5, 8, 11)]
    main([*out, "--rank", "0", "--world", "3"])
    told = "the parts of task 0 of 3 are finished; the task that finishes the last of the others makes the shards "
    assert told + "(missing now: 000000-000001, ...)" in capsys.readouterr().out
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial" / PLAN).exists()
    main([*out, "--rank", "4", "--world", "5"])  # another number of tasks: its own parts are there, but for 4
    assert len(list(parts.glob("*.json"))) == 9
    main([*out, "--rank", "1", "--world", "3"])
    assert content(tmp_path / "out") == content(tmp_path / "whole") and not parts.exists()
    before = content(tmp_path / "out")
    assert not {PLAN, "settings.json"} & before.keys()
    for name in (PLAN, "settings.json", "train-00000.arrow.1f.partial"):  # killed just after the rename
        (tmp_path / "out" / name).touch()
    main([*out, "--rank", "0", "--world", "3"])
    assert "out is complete" in capsys.readouterr().out and content(tmp_path / "out") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


def test_a_limit_is_shared(images, tmp_path):
    flags = [*images, "--max_clips", "9", "--output"]
    main([*flags, str(tmp_path / "whole")])
    for rank in (1, 0):
        main([*flags, str(tmp_path / "out"), "--rank", str(rank), "--world", "2"])
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert read_manifest(tmp_path / "out")["num_sequences"] == 9


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--rank", "0"], "--rank and --world are given together"),
        (["--rank", "2", "--world", "2"], "--rank is 2; it must be from 0 to 1, with --world 2"),
        (
            ["--rank", "0", "--world", "2", "--output", "s3://a/b"],
            "--output s3://a/b is a URL, but tasks share a folder",
        ),
        (["--rank", "0", "--world", "2", "--push_to_hub", "me/it"], "--push_to_hub cannot be shared by tasks"),
    ],
)
def test_nonsense_is_refused(images, tmp_path, flags, words):
    with pytest.raises(ValueError, match=words):
        main([*images, "--output", str(tmp_path / "out"), *flags])


def test_tasks_are_not_launched_together(images, tmp_path, monkeypatch):
    state = type("State", (), {"num_processes": 2, "process_index": 0})
    monkeypatch.setattr("accelerate.PartialState", lambda **_: state)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="--rank is for tasks of one process, but 2 were launched together"):
        main([*images, "--output", str(tmp_path / "out"), "--rank", "0", "--world", "2"])


@pytest.mark.parametrize("more, rank_and_world", [({}, "3 4"), ({"WORLD": "64"}, "3 64")])
def test_a_slurm_array_gives_every_task_its_rank(tmp_path, more, rank_and_world):
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\nprintf "%s|" "$@"\nexit 7\n')
    python.chmod(0o755)
    slurm = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = ["bash", str(ROOT / "training/launch/tokenize.sbatch"), "--dataset", "my videos"]
    done = subprocess.run(command, env=slurm | more, capture_output=True, text=True)
    rank, world = rank_and_world.split()
    told = f"-m|tokenization.tokenize_dataset|--dataset|my videos|--rank|{rank}|--world|{world}|"
    assert (done.returncode, done.stdout) == (7, told), "and its exit code is that of the task"


def stats_of(monkeypatch, action):
    """The paths that os.stat is called with; of links and of entries of a listed folder, nothing is looked up."""
    asked, stat = [], os.stat
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", lambda path, **how: asked.append(str(path)) or stat(path, **how))
        action()
    return asked


def test_listing_looks_nothing_up_for_items_of_other_tasks(tmp_path, monkeypatch):
    folder = tmp_path / "images"
    folder.mkdir()
    names = [make_image(folder / f"{index:02d}.png", (index, 9, 9)).name for index in range(24)]

    def share(dataset, rank, world):
        source = open_source(str(dataset))
        return [step.item.name for step in steps(source, 2, rank, world, {})]

    asked = stats_of(monkeypatch, lambda: share(folder, 1, 4))
    assert not [path for path in asked if path.endswith(".png")]
    assert share(folder, 1, 4) == [name for index, name in enumerate(names) if index // 2 % 4 == 1]

    rows = {"image": [{"bytes": None, "path": str(folder / name)} for name in names]}  # a table of paths
    Dataset.from_dict(rows, features=Features({"image": ImageFeature()})).to_parquet(tmp_path / "paths.parquet")
    asked = stats_of(monkeypatch, lambda: share(tmp_path / "paths.parquet", 1, 4))
    asked = [Path(path).name for path in asked if path.endswith(".png")]
    assert sorted(asked) == share(folder, 1, 4), "one look-up for each item of its own"


def test_finished_parts_are_listed_once_and_read_when_they_matter(tmp_path, monkeypatch):
    for chunk in range(50):
        info = {"rows": 3, "shard_ends": chunk == 49}
        (tmp_path / f"000000-{chunk:06d}.json").write_text(json.dumps(info))
    (tmp_path / "000000-000007.json.1a.partial").touch()
    read, listed = [], []
    read_text, scandir = Path.read_text, os.scandir
    monkeypatch.setattr(Path, "read_text", lambda path: read.append(path.name) or read_text(path))
    monkeypatch.setattr(os, "scandir", lambda path: listed.append(path) or scandir(path))
    finished = FinishedParts(tmp_path)
    assert len(finished) == 50 and first_missing(0, finished) is None
    assert read == ["000000-000049.json"] and len(listed) == 1
    for _ in range(3):  # as with a limit, every ten seconds
        assert rows_before("000000-000030", finished.look(), {"000000-000002": 1}) == 29 * 3 + 1
    assert len(read) == len(set(read)) == 30
    (tmp_path / "000000-000040.json").unlink()
    assert first_missing(0, finished.look()) == "000000-000040"


# Runs tasks in forked processes, so that they need no imports. A task that is to be killed counts what it does in the
# folder of unfinished work: files that it opens, renames or deletes, record batches and halves of texts that it writes,
# folders that it lists; it kills itself with SIGKILL at a given number. Prints the number of kills.
KILLS = """
import json, os, signal, sys
from pathlib import Path
import numpy as np, pyarrow as pa
import accelerate, datasets, tqdm, tokenization.processing_toto, tokenization.shards.card, tokenization.shards.encode
from accelerate.utils import gather_object
from tokenization import tokenize_dataset
from tokenization.shards import assemble, shuffle

shuffle.BUCKET_BYTES = 1024  # two shards: three buckets
flags, output, rounds, seed, world = sys.argv[1].split("|"), *sys.argv[2:3], *map(int, sys.argv[3:])
count = 0

def tick(last):
    global count
    count += 1
    if count == last:
        os.kill(os.getpid(), signal.SIGKILL)

def task(rank, last, where, share):
    pid = os.fork()
    if pid:
        return pid
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    names = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.scandir", "os.listdir"}
    inside = where + ".partial"
    sys.addaudithook(lambda name, args: name in names and str(args[0]).startswith(inside) and tick(last))
    new_file = pa.ipc.new_file

    class Writer:
        def __init__(self, writer):
            self.writer, self.close = writer, writer.close
        def __enter__(self):
            return self
        def __exit__(self, *error):
            self.close()
        def write_batch(self, batch):
            tick(last)
            self.writer.write_batch(batch)
            tick(last)

    def write_text(path, text):
        with open(path, "w") as file:
            file.write(text[: len(text) // 2])
            file.flush()
            tick(last)
            file.write(text[len(text) // 2 :])

    Path.write_text = write_text
    pa.ipc.new_file = lambda *args, **kwargs: Writer(new_file(*args, **kwargs))
    code = 1
    try:
        tokenize_dataset.main([*flags, "--output", where, *share])
        code = 0
    except BaseException as error:
        print(f"task {rank}:", type(error).__name__, error, file=sys.stderr, flush=True)
    if last is None:
        print("count", count, file=sys.stderr, flush=True)
    os._exit(code)

def codes(pids):
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]

rng, kills = np.random.default_rng(seed), 0
for number in range(rounds):
    lasts = rng.integers(1, 14 + 6 * number, world).tolist()  # an undisturbed task does about 80
    found = codes([task(r, last, output, ["--rank", str(r), "--world", str(world)]) for r, last in enumerate(lasts)])
    assert set(found) <= {0, -signal.SIGKILL}, found
    kills += found.count(-signal.SIGKILL)
found = codes([task(r, None, output, ["--rank", str(r), "--world", str(world)]) for r in range(world)])
assert found == [0] * world, found
if not os.path.isdir(output):  # all looked before the last one was finished: see the page on datasets
    assert codes([task(0, None, output, ["--rank", "0", "--world", "1"])]) == [0]
print(kills)
"""


def test_tasks_killed_at_any_moment_leave_no_part_torn_and_none_twice(images, tmp_path, seed=0):
    main([*images, "--output", str(tmp_path / "whole")])
    command = [sys.executable, "-c", KILLS, "|".join(images), str(tmp_path / "out"), "8", str(seed), "3"]
    done = subprocess.run(command, env=ENV, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) >= 10, "kills"
    assert content(tmp_path / "out") == content(tmp_path / "whole") and verify(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]
    assert read_manifest(tmp_path / "out")["num_sequences"] == 23


def test_a_task_that_is_late_leaves_the_finished_folder_alone(images, tmp_path, monkeypatch):
    """The other task finishes everything between this one's last look and its own last step."""
    flags = [*images, "--output", str(tmp_path / "out")]
    finish = tokenize_dataset.finish

    def late(partial, output):
        finish(partial, output)
        return finish(partial, output)

    monkeypatch.setattr(tokenize_dataset, "finish", late)
    main([*flags, "--rank", "0", "--world", "1"])
    assert verify(tmp_path / "out") and not (tmp_path / "out.partial").exists()


@pytest.mark.parametrize("when", ["before", "inside"])
def test_a_task_that_begins_when_another_ends_leaves_no_working_folder(images, tmp_path, monkeypatch, when):
    """The other task finishes between this one's first look at the output and its own working folder."""
    flags = [*images, "--output", str(tmp_path / "out")]
    prepare, began = tokenize_dataset.prepare, []

    def late(partial, settings, is_alone):
        if not began:
            began.append(True)
            main([*flags, "--rank", "0", "--world", "1"])
            if when == "inside":  # it was renamed before this one wrote its settings
                raise FileNotFoundError(partial / "settings.json")
        prepare(partial, settings, is_alone)

    monkeypatch.setattr(tokenize_dataset, "prepare", late)
    main([*flags, "--rank", "1", "--world", "2"])
    assert read_manifest(tmp_path / "out")["num_sequences"] == 23
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"] and verify(tmp_path / "out")
