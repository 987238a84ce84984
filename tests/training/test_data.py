"""Rows by number: epochs, held-out sources, packs of images, and shards that do not fit."""

import json

import pytest
import torch
from tiny_run import CONFIG

from modeling_toto import TotoConfig
from tokenization.sequences import IMAGE_START_ID
from training.rows.shard_rows import ShardRows, is_held_out, read_codes, validation_rows

CONFIG = TotoConfig.from_preset("tiny", **CONFIG)


def take(rows, count, first=0):
    return torch.stack([rows.row(k) for k in range(first, first + count)])


def test_rows_are_start_codes_end(shards):
    row = ShardRows(shards, CONFIG, seed=0).row(0)
    assert row.shape == (66,) and row[0] == 1 and row[-1] == 2 and bool((row[1:-1] >= 64).all())


def test_a_row_is_known_by_its_number_alone(shards):
    """Whatever was read before: this is what makes a resumed run, and another number of processes, exact."""
    rows = ShardRows(shards, CONFIG, seed=3)
    in_order = take(rows, 130)
    anew = ShardRows(shards, CONFIG, seed=3)
    for k in (129, 0, 64, 1, 128, 46, 47, 13):
        assert torch.equal(anew.row(k), in_order[k])
    assert not torch.equal(take(ShardRows(shards, CONFIG, seed=4), 130), in_order)


def test_epochs_have_the_same_rows_in_another_order(shards):
    rows = ShardRows(shards, CONFIG, seed=0)
    count = len(read_codes(shards, "train"))
    assert rows.rows_per_epoch == count
    epochs = take(rows, 3 * count).split(count)
    assert len({tuple(sorted(map(tuple, epoch.tolist()))) for epoch in epochs}) == 1
    assert not torch.equal(epochs[0], epochs[1]) and not torch.equal(epochs[1], epochs[2])


def test_validation_is_whole_sources(shards):
    held = validation_rows(shards, None, CONFIG)
    train = {tuple(row) for row in take(ShardRows(shards, CONFIG, 0), 48).tolist()}
    assert len(held) == len(read_codes(shards, "validation")) > 0
    assert not train & {tuple(row) for row in held.tolist()}
    # a folder of its own is taken whole
    assert len(validation_rows(shards, str(shards), CONFIG)) == 48 > len(held)
    assert len(validation_rows(shards, str(shards), CONFIG, limit=7)) == 7
    assert 0.02 < sum(is_held_out(str(i)) for i in range(10_000)) / 10_000 < 0.08


def test_shards_of_another_tokenizer_are_refused(shards):
    other = TotoConfig.from_preset("tiny")
    with pytest.raises(ValueError, match=r"do not fit the model: vocab_size 576 \(shards: 96\).*--config"):
        ShardRows(shards, other, 0)


def test_a_missing_shard_is_named(shards, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "manifest.json").write_text((shards / "manifest.json").read_text())
    with pytest.raises(FileNotFoundError, match="is missing; run toto tokenize again"):
        ShardRows(copy, CONFIG, 0)


def test_images_are_packed(shards, tmp_path):
    """A folder of single frames becomes rows of `num_frames` images behind one image start."""
    import numpy as np

    from tokenization.shards.code_parts import PartWriter, plan
    from tokenization.shards.shuffle import write_shards
    from tokenization.video import Clip

    folder, parts = tmp_path / "images", tmp_path / "parts"
    folder.mkdir()
    parts.mkdir()
    writer = PartWriter(parts, "000000-000000", 16, [])
    for i in range(20):
        writer.add(i, Clip(None, f"{i}"), np.full(16, i, dtype=np.uint16))
    writer.close(20, shard_ends=True)
    listed = write_shards(parts, folder, plan(parts, 1, None)[0], "train", 16, 0, width=16)
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest |= {"kind": "image", "num_frames": 1, "shards": listed}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    rows = ShardRows(folder, CONFIG, 0, hold_out=False)
    assert rows.rows_per_epoch == 20 // CONFIG.num_frames
    packs = take(rows, 2 * rows.rows_per_epoch)
    assert packs.shape[1] == 66 and (packs[:, 0] == IMAGE_START_ID).all()
    for epoch in packs.split(rows.rows_per_epoch):  # every image once
        images = epoch[:, 1:-1].reshape(-1, 16)
        assert (images == images[:, :1]).all() and len(set(images[:, 0].tolist())) == 20
