"""What is stored of each clip: its file's bytes, or a re-encoding by processes that may die over a damaged file.

Apart from writer.py, because the processes load this module, and TFDS takes a second.
"""

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool

from data.corpora.corpus import Clip
from data.corpora.reencode import ReencodeError, reencode
from vlp_jax import processes

LARGEST = 2**31 - 2**20  # bytes of a video: a record, caption and all, is one protobuf message, below 2 GiB


@dataclasses.dataclass(frozen=True)
class Encoding:
    """How clips are stored: as they are, or re-encoded as `reencode` says where a number is not 0."""

    short_side: int = 0
    fps: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.short_side or self.fps)


def original(clip: Clip) -> tuple[bytes, str]:
    """Returns the file's bytes and ""; no bytes and the reason where they cannot be stored."""
    try:
        size = os.path.getsize(clip.path)
        if size > LARGEST:
            return b"", f"its {size} bytes exceed the {LARGEST} of a record; re-encode it (--short-side, --fps)"
        return clip.path.read_bytes(), ""
    except OSError as e:
        return b"", f"file not readable: {e.strerror}"


def stored_bytes(clip: Clip, encoding: Encoding) -> tuple[bytes, str]:
    """Returns the bytes to store, and why they are not as asked, or ""."""
    if not encoding:
        return original(clip)
    try:
        return reencode(str(clip.path), short_side=encoding.short_side, fps=encoding.fps), ""
    except ReencodeError as e:
        video, error = original(clip)
        return video, error or str(e)


def stored(clips: Iterable[Clip], encoding: Encoding, workers: int) -> Iterator[tuple[Clip, bytes, str]]:
    """Yields `stored_bytes` of each clip, in order; few at a time are in memory."""
    task = functools.partial(stored_bytes, encoding=encoding)

    def start() -> concurrent.futures.Executor:
        # Processes, because a damaged file may end the one that decodes it.
        return processes.Pool(workers) if encoding else concurrent.futures.ThreadPoolExecutor(workers)

    clips = iter(clips)
    window: collections.deque[tuple[Clip, concurrent.futures.Future]] = collections.deque()
    executor = start()
    try:
        while True:
            for clip in itertools.islice(clips, 2 * workers - len(window)):
                window.append((clip, _submit(executor, task, clip)))
            if not window:
                return
            clip, future = window.popleft()
            try:
                yield clip, *future.result()
            except BrokenProcessPool:
                executor.shutdown(cancel_futures=True)
                yield clip, *_alone(task, clip)
                executor = start()
                window = collections.deque((c, f if _is_sound(f) else _submit(executor, task, c)) for c, f in window)
    finally:
        executor.shutdown(cancel_futures=True)


def _submit(executor: concurrent.futures.Executor, task: Callable, clip: Clip) -> concurrent.futures.Future:
    try:
        return executor.submit(task, clip)
    except BrokenProcessPool as e:  # another clip ended its process; this one gets its turn again
        future: concurrent.futures.Future = concurrent.futures.Future()
        future.set_exception(e)
        return future


def _is_sound(future: concurrent.futures.Future) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _alone(task: Callable, clip: Clip) -> tuple[bytes, str]:
    """Does `task` in a process of its own: of all clips in work when one died, this tells which it was."""
    with processes.Pool(1) as executor:
        try:
            executor.submit(os.getpid).result()
        except BrokenProcessPool as e:
            raise RuntimeError("the processes that re-encode do not start; their errors are above") from e
        try:
            return executor.submit(task, clip).result()
        except BrokenProcessPool:
            video, error = original(clip)
            return video, error or "re-encoding it ended the process"
