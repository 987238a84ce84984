"""The row stream: exact resume, ranks that share, held-out sources, and shards that do not fit."""

import itertools
import json

import pytest
import torch
from tiny_run import CONFIG

from modeling_toto import TotoConfig
from tokenization.sequences import IMAGE_START_ID
from training.data import RowStream, is_held_out, read_codes, validation_rows

CONFIG = TotoConfig.from_preset("tiny", **CONFIG)


def take(stream, count):
    return torch.stack(list(itertools.islice(iter(stream), count)))


def test_rows_are_start_codes_end(shards):
    row = take(RowStream(shards, CONFIG, seed=0), 1)[0]
    assert row.shape == (66,) and row[0] == 1 and row[-1] == 2 and bool((row[1:-1] >= 64).all())


@pytest.mark.parametrize("before", [1, 15, 16, 47, 100])
def test_resume_is_exact_within_and_across_epochs(shards, before):
    whole = take(RowStream(shards, CONFIG, seed=3), before + 60)
    stream = RowStream(shards, CONFIG, seed=3)
    take(stream, before)
    state = json.loads(json.dumps(stream.state_dict()))
    resumed = RowStream(shards, CONFIG, seed=3)
    resumed.load_state_dict(state)
    assert torch.equal(take(resumed, 60), whole[before:])


def test_epochs_have_the_same_rows_in_another_shard_order(shards):
    stream = RowStream(shards, CONFIG, seed=0)
    count = len(read_codes(shards, "train"))
    rows = take(stream, 3 * count)
    epochs = [sorted(map(tuple, part.tolist())) for part in rows.split(count)]
    assert epochs[0] == epochs[1] == epochs[2]
    assert not torch.equal(rows[:count], rows[count : 2 * count]) or not torch.equal(rows[:count], rows[2 * count :])


def test_ranks_share_the_rows_of_an_epoch(shards):
    count = len(read_codes(shards, "train"))
    one = sorted(map(tuple, take(RowStream(shards, CONFIG, seed=0), count).tolist()))
    # Three shards and two ranks: every rank reads all shards and takes each second row.
    halves = [RowStream(shards, CONFIG, 0, rank, 2) for rank in range(2)]
    seen = []
    for half in halves:
        for row in half:
            if half.epoch == 1:
                break
            seen.append(tuple(row.tolist()))
    assert sorted(seen) == one


def test_validation_is_whole_sources(shards):
    held = validation_rows(shards, None, CONFIG)
    train = {tuple(row) for row in take(RowStream(shards, CONFIG, 0), 48).tolist()}
    assert len(held) == len(read_codes(shards, "validation")) > 0
    assert not train & {tuple(row) for row in held.tolist()}
    assert 0.02 < sum(is_held_out(str(i)) for i in range(10_000)) / 10_000 < 0.08


def test_shards_of_another_tokenizer_are_refused(shards):
    other = TotoConfig.from_preset("tiny")
    with pytest.raises(ValueError, match=r"do not fit the model: vocab_size 576 \(shards: 96\).*--config"):
        RowStream(shards, other, 0)


def test_a_missing_shard_is_named(shards, tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "manifest.json").write_text((shards / "manifest.json").read_text())
    with pytest.raises(FileNotFoundError, match="is missing; run toto tokenize again"):
        take(RowStream(copy, CONFIG, 0), 1)


def test_images_are_packed(shards, tmp_path):
    """A folder of single frames becomes rows of `num_frames` images behind one image start."""
    import numpy as np

    from tokenization.parts import PartWriter, plan
    from tokenization.shards import write_shards
    from tokenization.video import Clip

    folder, parts = tmp_path / "images", tmp_path / "parts"
    folder.mkdir()
    parts.mkdir()
    writer = PartWriter(parts, "000000-000000", 16, [])
    for i in range(20):
        writer.add(i, Clip(None, f"{i}"), np.full(16, i, dtype=np.uint16))
    writer.close(20, shard_ends=True)
    listed = write_shards(parts, folder, plan(parts, 1, None)[0], "train", 16, 0)
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest |= {"kind": "image", "num_frames": 1, "shards": listed}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    row = take(RowStream(folder, CONFIG, 0, hold_out=False), 1)[0]
    assert row[0] == IMAGE_START_ID and row.shape == (66,)
    assert len(set(row[1:-1].tolist())) == CONFIG.num_frames
