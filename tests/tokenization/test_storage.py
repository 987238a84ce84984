"""What is under a URL: errors, local copies, shards written and read, media read; in fsspec's memory file system."""

import os
import shutil
import threading
import time

import pytest
from media import make_video

from tokenization.storage import copies
from tokenization.storage.copies import cache_folder, local_copy, local_folder, work_folder
from tokenization.storage.remote import Remote, is_remote, join


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """fsspec's memory file system, empty, and an empty cache."""
    import fsspec

    monkeypatch.setenv("TOTO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(copies, "_unchecked", 0)
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pseudo_dirs[:] = [""]
    return fs


def put(fs, folder, place):
    for path in folder.rglob("*"):
        if path.is_file():
            fs.pipe_file(f"{place}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def test_a_url_is_no_path():
    assert is_remote("s3://a/b") and is_remote("memory://a")
    assert not any(map(is_remote, ("a/b", "/a", "toyworld:film", "C://a", None, "user/name")))
    assert join("s3://a/b/", "c") == "s3://a/b/c"


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("nowhere://a/b", "nowhere://a/b has an unknown protocol; use s3://"),
        ("file:///a/b", "file:///a/b is a local path; write it without file://"),
        ("abfs://a/b", "abfs://a/b needs a package that is not installed: Install adlfs"),
    ],
)
def test_an_impossible_url_is_one_sentence(url, sentence):
    with pytest.raises(ValueError, match=sentence):
        Remote(url)


def test_what_cannot_be_written_is_found_before_the_work(memory, monkeypatch):
    remote = Remote("memory://bucket/run")
    remote.require_writable()
    assert remote.files() == {}  # nothing is left of the attempt
    with pytest.raises(OSError, match=r"https://host/run can only be read; write to s3://"):
        Remote("https://host/run").require_writable()
    with pytest.raises(OSError, match=r"hf://user/name is a repository, .* write to hf://buckets/USER/NAME"):
        Remote("hf://user/name").require_writable()

    def refuse(*_args, **_more):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(type(memory), "pipe_file", refuse)
    with pytest.raises(
        PermissionError, match=r"memory://bucket/run/\S* cannot be written: Access Denied; check the cr"
    ):
        remote.require_writable()


def test_errors_of_a_package_are_one_sentence(memory, monkeypatch):
    class NoCredentials(Exception):
        pass

    def refuse(*_args, **_more):
        raise NoCredentials("Unable to locate credentials\nat line 3")

    monkeypatch.setattr(type(memory), "cat_file", refuse)
    with pytest.raises(OSError, match=r"^memory://a/b cannot be read: Unable to locate credentials; check the crede"):
        Remote("memory://a").read("b")


def test_a_copy_is_made_once_and_follows_the_remote_file(memory, monkeypatch):
    memory.pipe_file("/a/b.txt", b"one")
    first = local_copy("memory://a/b.txt")
    assert first.read_bytes() == b"one" and first.name == "b.txt" and first.is_relative_to(cache_folder())
    fetched, fetch = [], Remote.fetch
    monkeypatch.setattr(Remote, "fetch", lambda self, *args: (fetched.append(args), fetch(self, *args)))
    threads = [threading.Thread(target=local_copy, args=("memory://a/b.txt",)) for _ in range(4)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert fetched == []
    memory.pipe_file("/a/b.txt", b"two!")
    assert local_copy("memory://a/b.txt").read_bytes() == b"two!" and len(fetched) == 1


def test_several_at_once_make_one_copy(memory, monkeypatch):
    memory.pipe_file("/a/b.txt", b"one")
    fetched, fetch = [], Remote.fetch

    def slow(self, name, file):
        fetched.append(name)
        time.sleep(0.2)
        fetch(self, name, file)

    monkeypatch.setattr(Remote, "fetch", slow)
    threads = [threading.Thread(target=local_copy, args=("memory://a/b.txt",)) for _ in range(4)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert fetched == ["b.txt"]


def test_a_copy_of_other_contents_is_refused_and_not_kept(memory):
    memory.pipe_file("/a/b.txt", b"one")
    with pytest.raises(ValueError, match=r"memory://a/b.txt is damaged \(its sha256 is another\)"):
        local_copy("memory://a/b.txt", "0" * 64)
    assert not list((cache_folder() / "copies").rglob("*.txt"))


def test_a_fetch_that_fails_leaves_nothing(memory, monkeypatch):
    memory.pipe_file("/a/b.txt", b"one")

    def torn(self, name, file):
        file.write_bytes(b"o")
        raise OSError("the connection was lost")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="connection was lost"):
        patch.setattr(Remote, "fetch", torn)
        local_copy("memory://a/b.txt")
    assert local_copy("memory://a/b.txt").read_bytes() == b"one"


def test_names_cannot_leave_the_cache(memory, monkeypatch):
    monkeypatch.setattr(Remote, "files", lambda self: {"../../x": {"size": 1}})
    monkeypatch.setattr(Remote, "fetch", lambda self, name, file: file.write_bytes(b"1"))
    with pytest.raises(ValueError, match=r"names a file ../../x, which is outside the folder; it is not read"):
        local_folder("memory://a")


def test_the_oldest_copies_make_room(memory, monkeypatch):
    monkeypatch.setenv("TOTO_CACHE_GB", "25e-6")  # 25 KB
    kept = []
    for number in range(4):
        memory.pipe_file(f"/a/{number}", bytes(10_000))
        kept.append(local_copy(f"memory://a/{number}"))
        hour_ago = time.time() - 3600 + number
        os.utime(kept[-1].parent, (hour_ago, hour_ago))
        if number == 1:
            local_copy("memory://a/0")  # used now, so 1 is the older one
    assert [path.exists() for path in kept] == [True, False, False, True]
    with kept[0].open("rb") as reader:
        shutil.rmtree(kept[0].parent)
        assert len(reader.read()) == 10_000  # who has it open goes on reading


def test_a_folder_is_copied_whole(memory):
    memory.pipe_file("/a/b/one", b"1")
    memory.pipe_file("/a/b/two/three", b"23")
    folder = local_folder("memory://a/b")
    assert (folder / "one").read_bytes() == b"1" and (folder / "two" / "three").read_bytes() == b"23"
    with pytest.raises(FileNotFoundError, match="There is nothing in memory://a/c"):
        local_folder("memory://a/c")


def test_work_folders_of_two_urls_differ():
    assert work_folder("s3://a/b-c") != work_folder("s3://a/b/c") and work_folder("s3://a/b") == work_folder(
        "s3://a/b/"
    )


# --- shards


def tokenize(output, *flags):
    from tokenization.tokenize_dataset import main

    main(["--dataset", "toyworld", "--max_clips", "6", "--num_frames", "2", "--resolution", "32", "--precision", "fp32",
          "--rows_per_shard", "4", "--output", str(output), *flags])  # fmt: skip


def test_shards_under_a_url_are_those_of_a_folder(memory, tmp_path, capsys):
    from tokenization.shards.format import verify

    tokenize(tmp_path / "local")
    tokenize("memory://bucket/local")
    local = {p.relative_to(tmp_path / "local").as_posix(): p for p in (tmp_path / "local").rglob("*") if p.is_file()}
    there = Remote("memory://bucket/local").files()
    assert there.keys() == local.keys()
    assert all(memory.cat_file(f"/bucket/local/{name}") == path.read_bytes() for name, path in local.items())
    assert "uploaded" in capsys.readouterr().out
    assert not work_folder("memory://bucket/local").exists()
    assert verify("memory://bucket/local").startswith("memory://bucket/local: 6 rows")
    with pytest.raises(ValueError, match=r"--output memory://bucket/local is not empty \(README.md\); name a new"):
        tokenize("memory://bucket/local")


def test_nothing_is_encoded_for_a_place_that_cannot_be_written(memory, monkeypatch):
    from tokenization.shards import encode

    def refuse(*_args, **_more):
        raise PermissionError("Access Denied")

    monkeypatch.setattr(type(memory), "pipe_file", refuse)
    monkeypatch.setattr(encode, "encode_parts", lambda *_args, **_more: pytest.fail("encoded"))
    with pytest.raises(PermissionError, match="cannot be written: Access Denied"):
        tokenize("memory://bucket/shards")
    with pytest.raises(OSError, match="can only be read"):
        tokenize("https://host/shards")
    assert not cache_folder().exists()


def test_an_upload_that_was_cut_goes_on(memory, monkeypatch):
    write, wrote = Remote.write, []

    def cut(self, name, content):
        if len(wrote) == 5:
            raise OSError("the connection was lost")
        wrote.append(name)
        write(self, name, content)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="connection was lost"):
        patch.setattr(Remote, "write", cut)
        tokenize("memory://bucket/shards")
    assert "manifest.json" not in Remote("memory://bucket/shards").files()
    with pytest.raises(ValueError, match=r"started with other flags \(seed 0 instead of 1\); pass the same flags"):
        tokenize("memory://bucket/shards", "--seed", "1")
    from tokenization.shards import encode

    monkeypatch.setattr(encode, "encode_parts", lambda *_args, **_more: pytest.fail("encoded again"))
    monkeypatch.setattr(Remote, "write", lambda self, name, content: (wrote.append(name), write(self, name, content)))
    tokenize("memory://bucket/shards")
    data = [name for name in wrote if not name.startswith(".toto-write")]
    assert len(data) == len(set(data)) and data[-1] == "manifest.json"


@pytest.mark.parametrize("flag", ["--convert", "--push_to_hub"])
def test_what_needs_a_local_folder_refuses_a_url(flag):
    from tokenization.tokenize_dataset import main

    flags = [flag, "memory://a"] if flag == "--convert" else [flag, "user/name", "--verify", "memory://a"]
    with pytest.raises(ValueError, match=r"memory://a is a URL, but --\w+ needs a local folder"):
        main(flags)


# --- media


@pytest.fixture
def media(memory, tmp_path):
    """A folder of videos in classes and splits, here and in memory."""
    folder = tmp_path / "media"
    for number, name in enumerate(
        ("train/jump/a b.mp4", "train/run/#1.mp4", "test/run/c.mp4", "train/run/.hidden.mp4")
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        make_video(folder / name, 12 + 4 * (number == 1))
    (folder / "train" / "notes.txt").write_text("x")
    put(memory, folder, "/bucket/media")
    return folder


def read(dataset, split="train", **more):
    from tokenization.sampling import Sampling
    from tokenization.sources.open import open_source

    source = open_source(str(dataset), split, Sampling(num_frames=4, stride=1, resolution=32), **more)
    clips = [(clip.source, clip.start, clip.labels, clip.frames.tobytes()) for clip in source]
    return clips, source.skipped, [line.replace(str(dataset), "DATA") for line in source.found], source.label_names


def test_media_under_a_url_are_those_of_a_folder(media):
    local = read(media)
    assert read("memory://bucket/media") == local and len(local[0]) == 7 and not local[1]
    assert read("memory://bucket/media", "test") == read(media, "test")
    assert read("memory://bucket/media/test/run/c.mp4")[0] == read(media / "test" / "run" / "c.mp4")[0]


def test_tables_and_tars_under_a_url(memory, tmp_path):
    import io
    import tarfile

    from datasets import ClassLabel, Dataset, Features, Image
    from PIL import Image as PILImage

    def png(shade):
        buffer = io.BytesIO()
        PILImage.new("RGB", (40, 40), (shade, 0, 0)).save(buffer, "png")
        return buffer.getvalue()

    folder = tmp_path / "tables"
    folder.mkdir()
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b"])})
    for number in range(2):
        rows = {"image": [{"bytes": png(9 * number + k), "path": None} for k in range(3)], "label": [0, 1, 0]}
        Dataset.from_dict(rows, features).to_parquet(str(folder / f"train-{number:05d}-of-00002.parquet"))
    put(memory, folder, "/bucket/tables")
    assert read("memory://bucket/tables") == read(folder) and len(read(folder)[0]) == 6
    tars = tmp_path / "tars"
    tars.mkdir()
    with tarfile.open(tars / "train-0000.tar", "w") as tar:
        for k in range(3):
            entry = tarfile.TarInfo(f"{k}.png")
            entry.size = len(png(k))
            tar.addfile(entry, io.BytesIO(png(k)))
    put(memory, tars, "/bucket/tars")
    assert read("memory://bucket/tars") == read(tars) and len(read(tars)[0]) == 3


def test_a_storage_that_fails_is_not_a_damaged_item(media, monkeypatch, tmp_path):
    def lost(self, name, file):
        raise OSError("the connection was lost")

    monkeypatch.setattr(Remote, "fetch", lost)
    from tokenization.tokenize_dataset import main

    with pytest.raises(OSError, match=r"connection was lost.*Finished parts are kept; run the same command again"):
        main(["--dataset", "memory://bucket/media", "--num_frames", "4", "--resolution", "32", "--output",
              str(tmp_path / "out")])  # fmt: skip


def test_no_such_place(memory):
    with pytest.raises(FileNotFoundError, match="memory://bucket/none is empty"):
        read("memory://bucket/none")


def test_media_of_a_web_server(media, tmp_path, monkeypatch):
    """Which lists its folders, with quoted names; it can only be read."""
    import functools
    import http.server

    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}/media"
        assert read(address) == read(media)
        assert read(f"{address}/test/run/c.mp4")[0] == read(media / "test" / "run" / "c.mp4")[0]
        with pytest.raises(OSError, match=r"media/out can only be read; write to s3://"):
            tokenize(f"{address}/out")
        server.shutdown()
