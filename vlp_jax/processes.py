"""Worker processes; light to import, because they load it themselves."""

import concurrent.futures
import multiprocessing
import os
import threading


def end_with_parent() -> None:
    """Makes this worker process end when its parent was killed; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch():
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def pool(count: int) -> concurrent.futures.ProcessPoolExecutor:
    """Returns an executor of `count` processes that do not outlive this one."""
    # spawn: forking a process that runs threads (those of TFDS and Arrow) can deadlock.
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(count, mp_context=context, initializer=end_with_parent)
