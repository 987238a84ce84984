"""Mixtures: shares as asked, epochs of their own, the same rows for any number of processes, exact resume."""

import json
import math

import numpy as np
import pytest
import torch
from tiny_run import CONFIG, save_tokenizer, tokenize

from modeling_toto import TotoConfig
from tokenization import TotoProcessor
from training.args import DataArgs, Source
from training.rows.mixture import RowStream, check_tokenizers, open_rows, open_validation
from training.rows.pixel_rows import Ended, token_row

CONFIG = TotoConfig.from_preset("tiny", **CONFIG)
# The paper's shares (Sec. 3.3).
SHARES = {"imagenet": 0.2, "kinetics": 0.1, "ego4d": 0.1, "howto": 0.6}


class Numbers:
    """A source whose row k is k, without files."""

    is_indexed = True

    def __init__(self, rows_per_epoch):
        self.rows_per_epoch = rows_per_epoch

    def row(self, k):
        return k

    def state_dict(self):
        return None

    def load_state_dict(self, state):
        assert state is None


def numbers(rank=0, world=1, seed=0, sizes=(40, 11, 7, 10**9), at_end="repeat"):
    settings = [Source(name, weight, at_end=at_end) for name, weight in SHARES.items()]
    return RowStream([(s, Numbers(n)) for s, n in zip(settings, sizes, strict=True)], seed, rank, world)


@pytest.mark.parametrize("world", [1, 2])
def test_shares_are_the_recipes_within_three_sigma(world):
    rows = 20_000
    streams = [numbers(rank, world) for rank in range(world)]
    drawn = [source for stream in streams for source, _ in stream.take(rows // world)]
    for number, share in enumerate(SHARES.values()):
        sigma = math.sqrt(rows * share * (1 - share))
        assert abs(drawn.count(number) - rows * share) < 3 * sigma
    shares = streams[0].shares()
    assert [round(fact["share"] * rows) for fact in shares.values()] == [drawn.count(n) for n in range(4)]
    assert shares["kinetics"]["epochs"] == pytest.approx(drawn.count(1) / 11)


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_processes_draws_the_same_rows(world):
    """Row g of the run is for rank g mod world; every source counts on through all of them."""
    alone = numbers().take(600)
    parts = [numbers(rank, world).take(600 // world) for rank in range(world)]
    assert [parts[g % world][g // world] for g in range(600)] == alone
    for number in range(4):
        assert [k for source, k in alone if source == number] == list(range(sum(s == number for s, _ in alone)))


def drawn_one_by_one(count, sizes, seed):
    """The definition: row g is of the source in whose share the uniform number of draw g lies, or ends it first."""
    taken, found, left = [0] * 4, [], set()
    numbers = np.concatenate([np.random.default_rng([seed, block]).random(4096) for block in range(-(-count // 4096))])
    for number in numbers[:count]:
        while True:
            weights = np.array([0 if n in left else share for n, share in enumerate(SHARES.values())])
            source = int(np.searchsorted(np.cumsum(weights / weights.sum())[:-1], number, side="right"))
            if taken[source] < sizes[source]:
                break
            left.add(source)  # the same draw is made of the others
        found.append((source, taken[source]))
        taken[source] += 1
    return found, taken


@pytest.mark.parametrize(("world", "first"), [(1, 0), (7, 4090), (64, 100), (256, 5)])
@pytest.mark.parametrize("sizes", [(10**9,) * 4, (1500, 40, 2000, 10**9)])
def test_draws_are_those_of_the_definition(world, first, sizes):
    count = 256 * 7 * 12
    expected, taken = drawn_one_by_one(first + count, sizes, 3)
    start = numbers(0, 1, 3, sizes, at_end="leave")
    start.take(first)
    state = json.loads(json.dumps(start.state_dict()))
    for rank in {0, world // 2, world - 1}:
        stream = numbers(rank, world, 3, sizes, at_end="leave")
        stream.load_state_dict(state)
        found = [pair for _ in range(12) for pair in stream.take(count // world // 12)]
        assert found == expected[first + rank :: world]
        assert stream.position.drawn == first + count and list(stream.position.counts) == taken


def test_seeds_are_numpys():
    from training.rows.seeds import states

    last = np.array([0, 1, 4095, 2**31, 2**32 - 1])
    for seed in ((0,), (5, 0), (2**32 - 1, 7), (2**40, 2**33), (2**127, 1, 2)):
        assert states(seed, last) == [np.random.PCG64([*seed, number]).state for number in last.tolist()]


@pytest.mark.parametrize("at_end", ["repeat", "leave"])
@pytest.mark.parametrize("before", [1, 37, 200])
def test_a_stream_resumes_exactly_and_with_another_world(before, at_end):
    whole = numbers(at_end=at_end)
    whole.take(2 * before)
    rest = whole.take(120)
    stopped = [numbers(rank, 2, at_end=at_end) for rank in range(2)]
    for stream in stopped:
        stream.take(before)
    states = [json.loads(json.dumps(stream.state_dict())) for stream in stopped]
    assert states[0] == states[1]
    for world in (1, 2, 3):
        resumed = [numbers(rank, world, at_end=at_end) for rank in range(world)]
        for stream in resumed:
            stream.load_state_dict(states[0])
        parts = [stream.take(120 // world) for stream in resumed]
        assert [parts[g % world][g // world] for g in range(120)] == rest


def test_a_source_that_leaves_gives_its_share_to_the_others():
    stream = numbers(sizes=(40, 11, 7, 10**9), at_end="leave")
    drawn = [source for source, _ in stream.take(3000)]
    assert [drawn.count(number) for number in range(3)] == [40, 11, 7] and drawn[-1000:] == [3] * 1000
    end = numbers(sizes=(4, 3, 2, 5), at_end="leave")
    assert len(end.take(14)) == 14 and end.take(1) is None


def test_a_source_that_stops_ends_the_stream_for_every_process_at_once():
    streams = [numbers(rank, 2, sizes=(10**9, 20, 10**9, 10**9), at_end="stop", seed=1) for rank in range(2)]
    steps = []
    for stream in streams:
        count = 0
        while stream.take(4) is not None:
            count += 1
        steps.append(count)
    assert steps[0] == steps[1] and 10 < steps[0] < 40


@pytest.fixture(scope="module")
def processor(tmp_path_factory):
    return TotoProcessor.from_visual_tokenizer(save_tokenizer(tmp_path_factory.mktemp("tokenizer"))).with_sizes(32, 4)


def pixels(processor, **settings):
    return open_rows(Source("toyworld", **settings), CONFIG, 5, 32, token_row(processor))


@pytest.mark.parametrize(("kind", "start"), [("video", 1), ("image", 3)])
def test_pixels_become_rows_while_training(processor, kind, start):
    _, rows = pixels(processor, kind=kind)
    found = torch.stack([rows.row(0) for _ in range(6)])
    assert found.shape == (6, 66) and (found[:, 0] == start).all() and (found[:, -1] == 2).all()
    state = json.loads(json.dumps(rows.state_dict()))
    after = torch.stack([rows.row(0) for _ in range(5)])
    _, resumed = pixels(processor, kind=kind)
    resumed.load_state_dict(state)
    assert torch.equal(torch.stack([resumed.row(0) for _ in range(5)]), after)
    validation = torch.stack(open_validation(Source("toyworld", kind=kind), CONFIG, 32, token_row(processor), 4))
    assert validation.shape == (4, 66) and not (validation[:, None] == found).all(-1).any()


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A folder of short videos, each of another colour."""
    import av

    folder = tmp_path_factory.mktemp("videos")
    for i in range(12):
        with av.open(str(folder / f"{i:02d}.mp4"), "w") as out:
            stream = out.add_stream("mpeg4", rate=10)
            stream.width = stream.height = 32
            for t in range(9):
                picture = np.full((32, 32, 3), 20 * i, np.uint8)
                picture[: 3 * t] = 255
                for packet in stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")):
                    out.mux(packet)
            for packet in stream.encode():
                out.mux(packet)
    return folder


def test_files_are_distributed_shuffled_and_cropped_again(processor, videos):
    def first_frames(count, rank=0, world=1, **settings):
        source = Source(str(videos), stride=1, **settings)
        _, rows = open_rows(source, CONFIG, 0, 32, lambda frames, is_image: frames)
        rows.share(rank, world)
        return [round(float(rows.row(0)[0, -1, -1].mean()) / 20) for _ in range(count)], rows

    alone, rows = first_frames(24, crops=1)  # two windows of four frames a file, and a second epoch
    assert len(set(alone)) >= 10 and alone != sorted(alone)
    first, _ = first_frames(8, 0, 2, crops=1)
    second, _ = first_frames(8, 1, 2, crops=1)
    assert not set(first) & set(second)
    _, rows = first_frames(2, crops=1, at_end="stop")
    taken = 2
    with pytest.raises(Ended):
        for _ in range(60):
            rows.row(0)
            taken += 1
    assert 16 <= taken <= 24


def test_pixels_and_shards_mix_in_one_stream(processor, shards):
    sources = [
        open_rows(Source(str(shards), 0.5, "tokens"), CONFIG, 5, 32, None),
        pixels(processor, weight=0.5, name="frames", kind="image"),
    ]
    stream = RowStream(sources, 0)
    rows = stream.take(24)
    assert {int(row[0]) for source, row in rows if source == 0} == {1}
    assert {int(row[0]) for source, row in rows if source == 1} == {3}
    state, rest = json.loads(json.dumps(stream.state_dict())), stream.take(12)
    again = RowStream([open_rows(s, CONFIG, 5, 32, token_row(processor)) for s in stream.settings], 0)
    again.load_state_dict(state)
    for (ours, row), (theirs, expected) in zip(again.take(12), rest, strict=True):
        assert ours == theirs and torch.equal(row, expected)
    assert not stream.is_indexed


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        (
            [{"data": "a", "weight": 0.5}, {"data": "b", "weight": 0.4}],
            "sum to 0.9; they are probabilities and must sum to 1",
        ),
        ([{"data": "a", "weigth": 1}], "unknown key 'weigth'; did you mean 'weight'"),
        ([{"data": "x/a", "weight": 0.5}, {"data": "y/a", "weight": 0.5}], "Two sources are called 'a'"),
        ([{"data": "a", "at_end": "pause"}], "at_end 'pause'; choose one of repeat, leave, stop"),
        ([{"data": "a", "weight": -1}], "weight -1; it must be a number above 0"),
        ([{"weight": 1}], "A source has no 'data'"),
        ([{"data": "a", "stride": "4"}], "stride '4'; it must be of type int"),
    ],
)
def test_a_bad_mixture_is_reported(sources, words):
    with pytest.raises(ValueError, match=words):
        DataArgs(sources=[json.dumps(source) for source in sources])


def test_a_missing_source_and_a_leaving_one_of_pixels_are_reported(processor, tmp_path):
    with pytest.raises(FileNotFoundError, match="The source 'gone' cannot be used: There is no folder or file"):
        open_rows(Source(str(tmp_path / "gone")), CONFIG, 0, 32, token_row(processor))
    with pytest.raises(ValueError, match=r"'toyworld' cannot leave the mixture.*tokenize it first"):
        pixels(processor, at_end="leave")
    other = tokenize(tmp_path / "other", save_tokenizer(tmp_path / "t", num_codes=64), clips=4)
    with pytest.raises(ValueError, match="The source 'other' cannot be used: These shards do not fit the model"):
        open_rows(Source(str(other)), CONFIG, 0, 32, None)


def test_codes_of_different_tokenizers_do_not_mix(shards, tmp_path, processor):
    other = tokenize(tmp_path / "other", save_tokenizer(tmp_path / "t", seed=1), clips=8)
    same, different = Source(str(shards)), Source(str(other))
    check_tokenizers([same], None)
    for sources, of_pixels in (([same, different], None), ([different, Source("toyworld")], processor)):
        with pytest.raises(ValueError, match="have different visual tokenizers, so their codes do not match"):
            check_tokenizers(sources, of_pixels)


def test_a_process_without_an_item_says_so(processor, videos):
    for position in ([0, 0, 0], [1, 0, 0]):
        _, rows = open_rows(Source(str(videos), stride=1), CONFIG, 0, 32, token_row(processor))
        rows.share(40, 41)
        rows.load_state_dict(position)
        with pytest.raises(ValueError, match="share of process 40 of 41; there may be fewer files than processes"):
            rows.row(0)
