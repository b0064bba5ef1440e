"""Worker processes; light to import, because they load it themselves."""

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator


def end_with_parent() -> None:
    """Makes this worker process end when its parent was killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch():
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Puts Ctrl-C off; a process started meanwhile is deaf to it, until it unblocks the signal."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set signals, and only it gets them
        return
    received: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, frame: received.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited, which the handler is not
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
        if received:
            signal.raise_signal(signal.SIGINT)


def heed_interrupts() -> None:
    """Sends a Ctrl-C again that Python dropped: in a callback of its garbage collector an exception cannot go up."""
    report = sys.unraisablehook
    if getattr(report, "heeds_interrupts", False):
        return

    def hook(dropped: "sys.UnraisableHookArgs", /) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            report(dropped)
            return
        # Later and from another thread: raised in here it would be dropped as well.
        again = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        again.daemon = True
        again.start()

    hook.heeds_interrupts = True  # type: ignore[attr-defined]
    sys.unraisablehook = hook


class Pool(concurrent.futures.ProcessPoolExecutor):
    """An executor whose processes do not outlive this one, and end without a traceback at Ctrl-C.

    Leaving its `with` block drops what has not begun.
    """

    def __init__(self, count: int):
        # spawn: forking a process that runs threads (those of TFDS and Arrow) can deadlock.
        super().__init__(count, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker)

    def submit(self, fn, /, *args, **kwargs):
        with uninterrupted():  # it may start a process, which would complain of an interrupted import
            return super().submit(fn, *args, **kwargs)

    def __exit__(self, *_: object) -> None:
        self.shutdown(cancel_futures=True)


def _start_worker() -> None:
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
