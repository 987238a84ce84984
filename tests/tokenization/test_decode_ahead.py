"""Decoding in threads changes neither what comes out nor its order, holds little, and stops when asked to."""

import threading
import time
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
from media import make_video

from tokenization.playback import Playback
from tokenization.sources.decode_ahead import decode_ahead
from tokenization.sources.open import Item
from tokenization.video import Clip


def item(name, clips, wait=0.0, error=None):
    def decode():
        for start in range(clips):
            time.sleep(wait)
            yield Clip(np.zeros((1, 1, 1, 3), np.uint8), name, start)
        if error is not None:
            raise error

    return SimpleNamespace(item=Item(name, decode))


def test_the_order_is_that_of_the_items_whoever_is_done_first():
    rng = np.random.default_rng(0)
    todo = [item(str(i), i % 4, wait=rng.random() / 300) for i in range(30)]
    got = [(step.item.name, clip and clip.start) for step, clip, _ in decode_ahead(iter(todo), 4, 6, 2)]
    assert got == [(str(i), k) for i in range(30) for k in [*range(i % 4), None]]


def test_later_items_are_decoded_while_the_caller_is_busy_with_an_earlier_one():
    begun = [threading.Event() for _ in range(3)]

    def decode(index):
        begun[index].set()
        yield Clip(np.zeros((1, 1, 1, 3), np.uint8), str(index))

    todo = [SimpleNamespace(item=Item(str(i), partial(decode, i))) for i in range(3)]
    clips = decode_ahead(iter(todo), 2, 3, 1)
    next(clips)
    assert begun[1].wait(60) and begun[2].wait(60)
    clips.close()


def test_a_bad_item_is_named_after_its_clips_and_costs_nothing_else():
    todo = [item("a", 1), item("b", 2, error=ValueError("torn")), SimpleNamespace(item=None), item("c", 1)]
    why = [why for _, clip, why in decode_ahead(iter(todo), 2, 4, 2) if clip is None]
    assert why == [None, "torn", None, None]
    with pytest.raises(ZeroDivisionError):  # no damage of the data but a mistake in the program
        list(decode_ahead(iter([item("a", 1, error=ZeroDivisionError())]), 2, 4, 2))


def test_a_failing_listing_is_raised():
    def listing():
        yield item("a", 1)
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(decode_ahead(listing(), 2, 4, 2))


@pytest.mark.parametrize("threads", [1, 2])
def test_videos_that_are_decoded_side_by_side_have_a_thread_each(tmp_path, threads):
    path, seen = make_video(tmp_path / "a.mp4", frames=20), []

    def decode():
        with Playback(path) as playback:
            assert len(list(playback.frames(1000))) == 20
            seen.append((playback.stream.codec_context.thread_count == 1, playback.stream.thread_type.name))
        yield Clip(np.zeros((1, 1, 1, 3), np.uint8), "a")

    list(decode_ahead((SimpleNamespace(item=Item(str(i), decode)) for i in range(3)), threads, 3, 2))
    if threads == 1:
        assert {name for _, name in seen} == {"AUTO"}
    else:
        assert seen == [(True, "SLICE")] * 3


def test_little_is_decoded_ahead_and_closing_ends_the_threads():
    decoded = []

    def endless(name):
        def decode():
            for start in range(10**9):
                decoded.append(name)
                yield Clip(np.zeros((1, 1, 1, 3), np.uint8), name, start)

        return SimpleNamespace(item=Item(name, decode))

    before = threading.active_count()
    clips = decode_ahead((endless(i) for i in range(10**9)), threads=3, in_flight=5, clips_each=2)
    for _ in range(4):
        next(clips)
    most, until = 4 + 3 * (2 + 1), time.monotonic() + 60
    while len(decoded) < most and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.1)  # for a thread that goes too far
    assert len(decoded) == most, "an item holds two clips, and one in the hand of its thread"
    clips.close()
    assert threading.active_count() == before
