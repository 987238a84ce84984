"""Training from shards under a URL and in a run folder under a URL: the same run as with local folders, or a sentence.

What kills do to it, on an S3 server: `remote_kills.py`. Everything else is in fsspec's memory file system.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import FLAGS

from tokenization.files import sha256
from tokenization.storage.remote import Remote
from training.find_model import MARKER, resolve_model, steps, whole_steps
from training.pretrain import main
from training.remote_run import IDENTITY, RemoteRun

STEPS = ["--max_steps", "4", "--save_steps", "2", "--logging_steps", "1", "--val_rows", "2"]
HAS_SERVER = all(importlib.util.find_spec(name) for name in ("moto", "flask", "flask_cors", "s3fs"))
needs_server = pytest.mark.skipif(
    not HAS_SERVER, reason="the S3 server of moto is not installed (pip install 's3fs' 'moto[s3]' flask flask-cors)"
)


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """fsspec's memory file system, empty, and an empty cache."""
    import fsspec

    monkeypatch.setenv("TOTO_CACHE", str(tmp_path / "cache"))
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    return fs


@pytest.fixture
def remote_shards(memory, shards):
    for path in Path(shards).rglob("*"):
        if path.is_file():
            memory.pipe_file(f"/bucket/shards/{path.relative_to(shards).as_posix()}", path.read_bytes())
    return "memory://bucket/shards"


def losses(rows: bytes):
    return [row.get("loss") for row in map(json.loads, rows.decode().splitlines()) if "loss" in row]


@needs_server
def test_an_s3_run_killed_at_any_write_is_the_run_nobody_killed():
    script = str(Path(__file__).with_name("remote_kills.py"))
    command = [sys.executable, script, "--kills", "2", "--seed", "3"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    found = json.loads(done.stdout)
    assert len(found["kills"]) == 2 and max(found["resumed_from"]) > 0
    assert found["same_shards"] and all(found["same"].values())
    assert found["seen"] == {"after the kill in encoding": [], "after the kill in uploading": False}
    assert found["checkpoints"] == ["step_000010", "step_000012"] and found["steps_logged"] == 12 and found["tensors"]


@needs_server
def test_s3_refuses_in_one_sentence(monkeypatch):
    import fsspec
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        run = [*FLAGS, *STEPS, "--shards", "nowhere", "--output_dir", "s3://bucket/run"]
        with pytest.raises(OSError, match=r"s3://bucket/run/\S+ cannot be written: Unable to locate credentials; "):
            main(run)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "toto")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "toto")
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        with pytest.raises(FileNotFoundError, match="cannot be written: The specified bucket does not exist; check"):
            main(run)
        with pytest.raises(FileNotFoundError, match=r"s3://bucket/shards.* The specified bucket does not exist; check"):
            main([*FLAGS, *STEPS, "--shards", "s3://bucket/shards", "--output_dir", "unused"])
        with pytest.raises(FileNotFoundError, match=r"s3://bucket/run cannot be listed: The specified bucket does"):
            main(["--resume", "s3://bucket/run"])
    finally:
        server.stop()
        fsspec.get_filesystem_class("s3").clear_instance_cache()


def test_a_run_under_a_url_is_that_of_a_folder(memory, shards, remote_shards, tmp_path, capsys):
    main([*FLAGS, *STEPS, "--shards", str(shards), "--output_dir", str(tmp_path / "run")])
    main([*FLAGS, *STEPS, "--shards", remote_shards, "--output_dir", "memory://bucket/run"])
    remote = Remote("memory://bucket/run")
    names = set(remote.files()) - {IDENTITY}
    local = {p.relative_to(tmp_path / "run").as_posix() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    assert names == local
    weights = "checkpoints/step_000004/model.safetensors"
    assert remote.read(weights) == (tmp_path / "run" / weights).read_bytes()
    assert losses(remote.read("metrics.jsonl")) == losses((tmp_path / "run" / "metrics.jsonl").read_bytes())
    told = capsys.readouterr().out
    assert "wrote memory://bucket/run/checkpoints/step_000004" in told and "memory://bucket/run: " in told
    assert not RemoteRun("memory://bucket/run").folder.exists()  # it is all there

    path = Path(resolve_model("memory://bucket/run"))
    assert (path / "model.safetensors").read_bytes() == remote.read(weights) and not (path / "training_state").exists()
    main(["--resume", "memory://bucket/run", "--max_steps", "6"])
    main(["--resume", str(tmp_path / "run"), "--max_steps", "6"])
    assert losses(remote.read("metrics.jsonl")) == losses((tmp_path / "run" / "metrics.jsonl").read_bytes())
    assert whole_steps(remote.files()) == [2, 4, 6]
    with pytest.raises(ValueError, match=r"memory://bucket/run is not empty; choose another --output_dir, or continue"):
        main([*FLAGS, *STEPS, "--shards", remote_shards, "--output_dir", "memory://bucket/run"])


def test_shards_on_the_hub(shards, tmp_path, monkeypatch):
    monkeypatch.setenv("TOTO_CACHE", str(tmp_path / "cache"))
    script = [sys.executable, str(Path(__file__).with_name("hub_shards.py")), str(shards)]

    def train(name, run):
        flags = [*FLAGS, *STEPS, "--shards", name, "--output_dir", str(tmp_path / run)]
        return subprocess.run([*script, *flags], capture_output=True, text=True, timeout=600)

    done = train("user/shards", "hub")
    assert done.returncode == 0, done.stderr[-3000:]
    main([*FLAGS, *STEPS, "--shards", str(shards), "--output_dir", str(tmp_path / "local")])
    hub, local = ((tmp_path / name / "metrics.jsonl").read_bytes() for name in ("hub", "local"))
    assert losses(hub) == losses(local) and len(losses(hub)) == 4
    assert "shards: hf://datasets/user/shards" in (tmp_path / "hub" / "recipe.yaml").read_text()
    assert "error: user/none is not a folder of token shards" in train("user/none", "none").stderr


def test_no_shards_no_run_no_model(memory, monkeypatch):
    monkeypatch.setattr("training.architectures.make_model", lambda *_: pytest.fail("a model was made"))
    with pytest.raises(FileNotFoundError, match=r"memory://bucket/none is not a folder of token shards: it holds no "):
        main([*FLAGS, *STEPS, "--shards", "memory://bucket/none", "--output_dir", "memory://bucket/run"])
    with pytest.raises(FileNotFoundError, match=r"memory://bucket/run is not a run folder: it holds no recipe.yaml"):
        main(["--resume", "memory://bucket/run"])
    with pytest.raises(FileNotFoundError, match=r"memory://bucket/run is neither a model \(config.json\) nor a run"):
        resolve_model("memory://bucket/run")


def test_a_shard_is_fetched_when_its_first_row_is_read(memory, remote_shards, monkeypatch):
    from tiny_run import CONFIG

    from modeling_toto import TotoConfig
    from training.rows.shard_rows import ShardRows

    fetched, fetch = [], Remote.fetch
    monkeypatch.setattr(Remote, "fetch", lambda self, name, *more: (fetched.append(name), fetch(self, name, *more)))
    monkeypatch.setattr(ShardRows, "_fetch_ahead", lambda *_: None)
    rows = ShardRows(remote_shards, TotoConfig(**CONFIG), 0)
    assert fetched == ["manifest.json"]
    first = rows.row(0)
    assert [name for name in fetched if name.endswith(".arrow")] == fetched[1:] and len(fetched) == 2
    for k in range(rows.rows_per_epoch):
        rows.row(k)
    again = ShardRows(remote_shards, TotoConfig(**CONFIG), 0)
    assert again.row(0).equal(first) and len(fetched) == 1 + len(rows.manifest["shards"])  # the manifest is unchanged
    memory.rm_file("/bucket/shards/" + rows.manifest["shards"][1]["file"])
    with pytest.raises(FileNotFoundError, match=r"The shard memory://bucket/shards/\S+ named by the manifest is mis"):
        ShardRows(remote_shards, TotoConfig(**CONFIG), 0)


def test_the_next_shard_is_fetched_ahead(memory, remote_shards, monkeypatch):
    from tiny_run import CONFIG

    from modeling_toto import TotoConfig
    from training.rows.shard_rows import ShardRows

    started = []
    monkeypatch.setattr("training.rows.shard_rows.Thread", lambda target, args, daemon: Noted(started, args))
    rows = ShardRows(remote_shards, TotoConfig(**CONFIG), 0)
    rows.row(0)
    order, _ = rows._shard_order(0)
    assert started == [rows.manifest["shards"][order[1]]["file"]]


class Noted:
    def __init__(self, started, args):
        self.note = lambda: started.append(args[0]["file"])

    def start(self):
        self.note()


# --- what is uploaded, deleted and fetched, of a run whose checkpoints hold a byte


def checkpoint(run: Path, step: int, content: str = "weights", **loop) -> None:
    folder = run / "checkpoints" / f"step_{step:06d}"
    (folder / "training_state").mkdir(parents=True)
    (folder / "model.safetensors").write_text(f"{content} {step}")
    (folder / "training_state" / "loop.json").write_text(json.dumps(loop))
    files = [path for path in folder.rglob("*") if path.is_file()]
    sums = {p.relative_to(folder).as_posix(): [p.stat().st_size, sha256(p)] for p in files}
    (folder / MARKER).write_text(json.dumps(sums))


@pytest.fixture
def run(memory):
    """A run under a URL with checkpoints of the steps 2 and 4."""
    run = RemoteRun("memory://bucket/run")
    run.begin()
    (run.folder / "recipe.yaml").write_text("max_steps: 8\n")
    (run.folder / "metrics.jsonl").write_text("one\n")
    checkpoint(run.folder, 2)
    checkpoint(run.folder, 4)
    run.upload()
    return run


def elsewhere(monkeypatch, tmp_path, name="other") -> RemoteRun:
    """The run on another machine."""
    monkeypatch.setenv("TOTO_CACHE", str(tmp_path / name))
    return RemoteRun("memory://bucket/run")


def names_of(folder: Path) -> list[str]:
    return [path.name for path in steps(folder)]


def test_another_machine_fetches_the_newest_checkpoint(run, monkeypatch, tmp_path):
    folder = elsewhere(monkeypatch, tmp_path).fetch()
    assert folder != run.folder and names_of(folder) == ["step_000004"]
    assert (folder / "metrics.jsonl").read_text() == "one\n" and RemoteRun.of(folder).url == run.url


def test_a_damaged_checkpoint_is_skipped(run, monkeypatch, tmp_path, capsys):
    run.remote.write("checkpoints/step_000004/model.safetensors", b"weightx 4")
    assert names_of(elsewhere(monkeypatch, tmp_path).fetch()) == ["step_000002"]
    assert "step_000004 is skipped: the checksum of model.safetensors is wrong" in capsys.readouterr().out


def test_half_a_checkpoint_is_none(run, monkeypatch, tmp_path):
    run.remote.delete([f"checkpoints/step_000004/{MARKER}"])
    assert names_of(elsewhere(monkeypatch, tmp_path).fetch()) == ["step_000002"]
    assert Path(resolve_model(run.url), "model.safetensors").read_text() == "weights 2"
    other = elsewhere(monkeypatch, tmp_path)
    checkpoint(other.folder, 6)
    other.upload()
    assert not [name for name in other.remote.files() if "step_000004" in name]  # what was left is cleared away
    assert whole_steps(other.remote.files()) == [2, 6]


def test_the_newer_side_wins(run):
    checkpoint(run.folder, 6)  # whole here when the process was killed, not there
    (run.folder / "metrics.jsonl").write_text("one\ntwo\n")
    again = RemoteRun(run.url)
    assert names_of(again.fetch())[-1] == "step_000006"
    assert (again.folder / "metrics.jsonl").read_text() == "one\ntwo\n"
    again.upload()
    assert whole_steps(run.remote.files()) == [2, 4, 6] and run.remote.read("metrics.jsonl") == b"one\ntwo\n"


def test_another_machine_went_on(run, monkeypatch, tmp_path):
    here = os.environ["TOTO_CACHE"]
    other = elsewhere(monkeypatch, tmp_path)
    folder = other.fetch()
    (folder / "metrics.jsonl").write_text("one\ntwo\nthree\n")
    checkpoint(folder, 6)
    other.upload()
    monkeypatch.setenv("TOTO_CACHE", here)
    assert names_of(RemoteRun(run.url).fetch())[-1] == "step_000006"
    assert (run.folder / "metrics.jsonl").read_text() == "one\ntwo\nthree\n"


def test_the_work_of_another_run_of_this_url_is_not_taken(run, memory, monkeypatch, tmp_path):
    here = os.environ["TOTO_CACHE"]
    memory.rm("/bucket/run", recursive=True)
    other = elsewhere(monkeypatch, tmp_path)
    other.begin()
    (other.folder / "recipe.yaml").write_text("max_steps: 9\n")
    checkpoint(other.folder, 2, "others")
    other.upload()
    monkeypatch.setenv("TOTO_CACHE", here)
    folder = RemoteRun(run.url).fetch()
    assert names_of(folder) == ["step_000002"] and (folder / "recipe.yaml").read_text() == "max_steps: 9\n"
    assert (folder / "checkpoints" / "step_000002" / "model.safetensors").read_text() == "others 2"


def test_a_run_that_was_never_uploaded_is_not_deleted(run, memory):
    memory.rm("/bucket/run", recursive=True)
    with pytest.raises(ValueError, match="holds checkpoints of an earlier run for memory://bucket/run, which is empty"):
        RemoteRun(run.url).begin()
    assert names_of(run.folder) == ["step_000002", "step_000004"]


def test_old_checkpoints_are_deleted_as_asked(run):
    found = []
    for step, dropped in ((6, None), (8, 4)):
        checkpoint(run.folder, step)
        if dropped:  # as `checkpoints.writing` does
            shutil.rmtree(run.folder / "checkpoints" / f"step_{dropped:06d}")
        run.saved(keep=2, spared={2})
        run.settle()
        found.append(whole_steps(run.remote.files()))
    assert found == [[2, 4, 6], [2, 6, 8]]


def test_a_checkpoint_of_the_same_step_is_replaced(run, monkeypatch):
    shutil.rmtree(run.folder / "checkpoints" / "step_000004")
    checkpoint(run.folder, 4, "newer!!")
    write, seen = Remote.write, []

    def noted(self, name, content):
        seen.append((name, f"checkpoints/step_000004/{MARKER}" in self.files()))
        write(self, name, content)

    monkeypatch.setattr(Remote, "write", noted)
    run.upload()
    assert run.remote.read("checkpoints/step_000004/model.safetensors") == b"newer!! 4"
    assert ("checkpoints/step_000004/model.safetensors", False) in seen  # never whole with files of both


def test_the_list_of_a_checkpoint_is_uploaded_last(run, monkeypatch):
    write, seen = Remote.write, []
    monkeypatch.setattr(Remote, "write", lambda self, name, content: (seen.append(name), write(self, name, content)))
    checkpoint(run.folder, 6)
    run.upload()
    assert sum(name.startswith("checkpoints/step_000006/") for name in seen) == len(seen) == 3
    assert seen[-1] == f"checkpoints/step_000006/{MARKER}"


def test_the_best_checkpoint_comes_along(run, monkeypatch, tmp_path):
    checkpoint(run.folder, 6, best={"step": 2})
    run.upload()
    assert names_of(elsewhere(monkeypatch, tmp_path).fetch()) == ["step_000002", "step_000006"]


def test_an_upload_that_fails_is_made_up_for(run, monkeypatch, capsys):
    checkpoint(run.folder, 6)
    with monkeypatch.context() as patch:
        patch.setattr(Remote, "write", lambda *_: (_ for _ in ()).throw(OSError("memory is full.")))
        run.saved(None)
        run.settle()
        assert "memory is full. The checkpoint is in" in capsys.readouterr().out
        with pytest.raises(OSError, match=r"memory is full. The run is whole in .*--resume memory://bucket/run on t"):
            run.finish()
    run.finish()
    assert whole_steps(run.remote.files()) == [2, 4, 6]
