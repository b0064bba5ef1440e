"""Ctrl-C reaches a program whatever it does at that moment."""

import subprocess
import sys

# The signal is handled in a callback of the garbage collector, as JAX has one: an exception cannot go up from there.
DROPPED = """
import gc, signal, sys, time
from vlp_jax import processes

if "heed" in sys.argv:
    processes.heed_interrupts()
signal.signal(signal.SIGINT, signal.default_int_handler)
sent = []

def callback(phase, info):
    if not sent:
        sent.append(phase)
        signal.raise_signal(signal.SIGINT)
        len(sent)

gc.callbacks.append(callback)
try:
    gc.collect()
    time.sleep(10 if "heed" in sys.argv else 0.5)
    print("went on", sent)
except KeyboardInterrupt:
    print("stopped", sent)
"""


def run(*arguments):
    return subprocess.run([sys.executable, "-c", DROPPED, *arguments], capture_output=True, text=True, timeout=60)


def test_an_interrupt_that_python_drops_in_a_callback_of_its_garbage_collector_is_sent_again():
    assert run().stdout == "went on ['start']\n"  # what Python does by itself
    heeded = run("heed")
    assert heeded.stdout == "stopped ['start']\n" and not heeded.stderr


def test_other_errors_that_cannot_go_up_are_still_reported():
    code = "from vlp_jax import processes\nprocesses.heed_interrupts()\nclass A:\n    def __del__(self): 1 / 0\nA()\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "ZeroDivisionError" in done.stderr and done.returncode == 0
