"""Items decoded by background threads and returned in their own order, in bounded memory.

PyAV and PIL release the interpreter lock, so that threads decode while the main thread keeps the encoder busy.
"""

import queue
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from tokenization.playback import decode_on_one_thread
from tokenization.video import Clip


def decode_ahead(steps: Iterable, threads: int, in_flight: int, clips_each: int) -> Iterator[tuple]:
    """The clips of the items of `steps`, decoded while the caller is busy with earlier ones.

    Args:
        steps: objects with an attribute `item`, an `open.Item` or None; they are listed in a thread of their own.
        threads: items decoded at a time; if there are several, each is decoded by its thread alone.
        in_flight: number of items that may be ahead of the caller. clips_each: decoded clips that each may hold.
    Yields:
        (step, clip, None) for every clip of an item, followed by (step, None, why) once per item; `why` is None or the
        reason why the item cannot be decoded. The order does not depend on the threads. Close the generator to stop
        them.
    Raises:
        Errors of listing, and errors of decoding other than ValueError and OSError.
    """
    stop = threading.Event()
    order: queue.Queue = queue.Queue(in_flight)

    def put(place: queue.Queue, value) -> bool:
        """False once the caller has stopped."""
        while not stop.is_set():
            try:
                place.put(value, timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def decode(item, clips: queue.Queue) -> None:
        why = None
        try:
            for clip in item.clips():
                if not put(clips, clip):
                    return
        except (ValueError, OSError) as error:
            why = str(error)
        except BaseException as error:  # raised again by the caller's thread
            why = error
        put(clips, why)

    def feed() -> None:
        try:
            for step in steps:
                clips: queue.Queue = queue.Queue(clips_each)
                if step.item is None:
                    clips.put(None)
                else:
                    pool.submit(decode, step.item, clips)
                if not put(order, (step, clips)):
                    return
            put(order, None)
        except BaseException as error:  # likewise
            put(order, error)

    alone = decode_on_one_thread if threads > 1 else None
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode", initializer=alone)
    feeder = threading.Thread(target=feed, name="list items", daemon=True)
    feeder.start()
    try:
        while (entry := order.get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            step, clips = entry
            while isinstance(got := clips.get(), Clip):
                yield step, got, None
            if isinstance(got, BaseException):
                raise got
            yield step, None, got
    finally:
        stop.set()
        feeder.join()
        pool.shutdown(cancel_futures=True)
