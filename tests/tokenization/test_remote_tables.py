"""Parquet files under a URL: the rows of a local file; only row groups and columns that are read are fetched."""

import itertools

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tokenization.sources.folder_rows import at_hand
from tokenization.sources.tables import features_of, read_rows
from tokenization.storage import blocks
from tokenization.storage.blocks import BlockFile
from tokenization.storage.remote import Remote
from tokenization.tokenize_dataset import main

URL, GROUP, GROUPS = "memory://bucket/a.parquet", 20, 5


@pytest.fixture
def file(tmp_path, monkeypatch):
    """100 rows in five row groups: a number, a picture of 2 KB, and a column of 20 KB that nobody reads."""
    monkeypatch.setenv("TOTO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(blocks, "BLOCK", 1024)
    rng, count = np.random.default_rng(0), GROUP * GROUPS
    columns = {"number": range(count), **{name: [rng.bytes(n) for _ in range(count)] for name, n in SIZES.items()}}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet", row_group_size=GROUP)
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pipe_file("/bucket/a.parquet", (tmp_path / "a.parquet").read_bytes())
    return tmp_path / "a.parquet"


SIZES = {"image": 2_000, "video": 20_000}


@pytest.fixture
def fetched(monkeypatch):
    """The ranges that were asked for."""
    found, read = [], Remote.read_ranges
    monkeypatch.setattr(Remote, "read_ranges", lambda self, name, r: (found.extend(r), read(self, name, r))[1])
    return found


def count(ranges):
    return sum(end - start for start, end in ranges)


def test_row_groups_are_fetched_when_their_rows_are_read(file, fetched):
    columns = ["number", "image"]
    expected = list(read_rows(str(file), columns))
    assert features_of(URL) == features_of(str(file))
    footer = count(fetched)
    assert footer < 70_000, "of 2 MB: pyarrow reads 64 KB from the end"
    rows = read_rows(URL, columns)
    assert list(itertools.islice(rows, GROUP)) == expected[:GROUP]
    one = GROUP * SIZES["image"]
    assert one < count(fetched) - footer < 1.3 * one, "the image column of one row group"
    assert list(rows) == expected[GROUP:]
    assert GROUPS * one < count(fetched) - footer < 1.3 * GROUPS * one
    before = len(fetched)
    assert list(read_rows(URL, columns)) == expected and len(fetched) == before, "another process finds them"


def test_a_file_that_was_replaced_is_another(file, fetched):
    assert next(read_rows(URL, ["number"])) == {"number": 0}
    pq.write_table(pa.table({"number": [7]}), file)
    fsspec.filesystem("memory").pipe_file("/bucket/a.parquet", file.read_bytes())
    assert list(read_rows(URL, ["number"])) == [{"number": 7}]


def test_a_file_is_read_as_any_other(file):
    whole = file.read_bytes()
    with BlockFile(URL) as remote, file.open("rb") as local:
        for place, whence, length in ((0, 0, 10), (-8, 2, 8), (-5, 1, 100), (3, 0, -1), (5, 2, 4), (100, 0, 0)):
            assert remote.seek(place, whence) == local.seek(place, whence) and remote.tell() == local.tell()
            assert remote.read(length) == local.read(length)
        assert remote.seek(0) == 0 and remote.readall() == whole and remote.readable() and remote.seekable()


def test_what_fails_is_one_sentence(file, monkeypatch, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"There is no file memory://bucket/none.parquet; check the address"):
        features_of("memory://bucket/none.parquet")
    fsspec.filesystem("memory").pipe_file("/bucket/noise.parquet", b"noise" * 100)
    with pytest.raises(ValueError, match=r"memory://bucket/noise.parquet is damaged, or is not a parquet"):
        features_of("memory://bucket/noise.parquet")
    features_of(URL)

    def lost(self, path, start=None, end=None, **_more):
        raise OSError("the connection was lost")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "cat_file", lost)
    with pytest.raises(OSError, match=rf"^{URL} cannot be read: the connection was lost; check the address"):
        list(read_rows(URL, ["image"]))


def test_a_storage_that_fails_in_the_middle_ends_the_work(tmp_path, monkeypatch):
    """And the rows after it are not taken for damaged ones."""
    import io

    from datasets import Dataset, Features, Image
    from PIL import Image as PILImage

    monkeypatch.setenv("TOTO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(blocks, "BLOCK", 256)
    rows: dict = {"image": []}
    for picture in np.random.default_rng(0).integers(0, 256, (12, 64, 64, 3), np.uint8):
        PILImage.fromarray(picture).save(png := io.BytesIO(), "png")
        rows["image"].append({"bytes": png.getvalue(), "path": None})
    Dataset.from_dict(rows, Features({"image": Image()})).to_parquet(str(tmp_path / "a.parquet"), batch_size=4)
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 3
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    fs.pipe_file("/bucket/data/train.parquet", (tmp_path / "a.parquet").read_bytes())
    cat, left = type(fs).cat_file, [2]

    def lost(self, *args, **more):
        left[0] -= 1
        if left[0] < 0:
            raise OSError("the connection was lost")
        return cat(self, *args, **more)

    flags = ["--dataset", "memory://bucket/data", "--resolution", "32", "--items_per_part", "4", "--precision", "fp32"]
    with monkeypatch.context() as patch, pytest.raises(OSError, match=r"train\.parquet cannot be read: the conn"):
        patch.setattr(type(fs), "cat_file", lost)
        main([*flags, "--output", str(tmp_path / "out")])
    main([*flags, "--output", str(tmp_path / "out")])
    main([*flags, "--dataset", str(tmp_path / "a.parquet"), "--output", str(tmp_path / "local")])
    shards = [path / "train-00000.arrow" for path in (tmp_path / "out", tmp_path / "local")]
    codes = [pa.ipc.open_file(shard).read_all()["codes"].to_pylist() for shard in shards]
    assert codes[0] == codes[1] and len(codes[0]) == 12


def test_a_web_server_is_asked_for_whole_files(monkeypatch):
    monkeypatch.setattr("tokenization.sources.folder_rows.local_copy", lambda url: f"copy of {url}")
    assert at_hand("https://host/a.parquet") == "copy of https://host/a.parquet"
    assert at_hand("s3://b/a.arrow") == "copy of s3://b/a.arrow"
    assert at_hand(URL) == URL and at_hand("a.parquet") == "a.parquet"
