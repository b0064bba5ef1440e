"""What the binaries share: flags of a job of several processes, one-message errors, stop signals."""

import ast
import contextlib
import importlib.util
import itertools
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from absl import app, flags, logging

from vlp_jax import config as config_lib
from vlp_jax import distributed, meshes, mirrors, processes
from vlp_jax import mirror as mirror_lib
from vlp_jax.types import UserError

FLAGS = flags.FLAGS
flags.DEFINE_enum(
    "distributed",
    "auto",
    distributed.MODES,
    "Whether this is one of several processes; auto: what the environment says.",
)
flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where JAX cannot find it by itself.")
flags.DEFINE_integer("processes", None, "How many processes there are, with --coordinator.")
flags.DEFINE_integer("process_id", None, "This process's number, from 0, with --coordinator.")


def join_processes() -> Callable[[str], None]:
    """Joins the other processes of a job by the flags; returns what prints to stderr, on the first process alone."""
    distributed.initialize(FLAGS.distributed, FLAGS.coordinator, FLAGS.processes, FLAGS.process_id)
    if not distributed.is_first():
        return lambda text: None
    return lambda text: print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def open_workdir(
    text: str, say: Callable[[str], None], only: str = "", step: int | None = None
) -> Iterator[tuple[pathlib.Path, mirror_lib.Mirror | None]]:
    """The folder that --workdir names; of an address in a store its folder here, fetched now and sent at the end.

    Args:
      only: as of `mirror.Mirror`.
      step: as of `mirror.Mirror.fetch`.

    Raises:
      UserError: as `mirrors.open_together`; processes of one job with different addresses.
    """
    stores = distributed.gather(text if mirror_lib.is_address(text) else "")
    if len(set(stores)) > 1:
        raise UserError(
            f"--workdir is {' and '.join(map(repr, sorted(set(stores))))} in the processes of this job: expected one"
        )
    if not mirror_lib.is_address(text):
        yield pathlib.Path(text), None
        return
    mirror = mirrors.open_together(text, only, step)
    say(f"{text} is kept in {mirror.folder} and sent from there")
    mirror.start()
    try:
        yield mirror.folder, mirror
    except BaseException:  # whatever ends the run, its last checkpoint is sent
        try:
            mirror.finish()
        except UserError as error:  # the first error is the one to be told
            say(f"warning: {error}")
        raise
    # A process that leaves before the others have ended is soon waited for no more, and they are aborted.
    distributed.together(mirror.finish)


def run_app(main: Callable[[list[str]], None]) -> None:
    """Parses flags and runs `main`; an error of the user's or of the file system becomes one message and status 2."""

    def guarded(argv):
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.WARNING)  # libraries log every file they open
        processes.heed_interrupts()
        try:
            main(argv)
        except (UserError, OSError) as error:
            fail(error)

    app.run(guarded, flags_parser=_parse_flags)


def _parse_flags(argv: list[str]) -> list[str]:
    """Parses the command line as absl does; a wrong flag ends like every other error of the user's."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        fail(UserError(f"{error} (--helpfull lists all flags)"))


def run_config_app(main: Callable[[list[str]], None]) -> None:
    """As `run_app`, of a binary with a --config: named meshes become sizes, keys are checked before absl does."""
    try:
        sys.argv[:] = meshes.expand(sys.argv)
        check_config_flags(sys.argv)
    except UserError as error:
        fail(error)
    run_app(main)


def use_huge_pages() -> None:
    """Restarts this process, once, with glibc told to ask for huge pages; call it before anything else in `cli`.

    XLA's CPU backend takes its temporary memory anew from malloc at each step, and the page faults of 4 KiB pages cost
    a third of a small model's step (benchmarks/RESULTS.md). glibc reads the setting only at the start of a process. A
    GLIBC_TUNABLES of the user's own is left as it is; other C libraries ignore it.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def fail(error: Exception) -> NoReturn:
    """Prints the one message and ends the process with status 2."""
    print(f"error: {error}", file=sys.stderr, flush=True)
    sys.exit(2)


class StopSignal:
    """Remembers SIGTERM or SIGINT until the step in progress is done; a second one ends the process at once."""

    def __init__(self):
        self.received = ""
        self._old = {number: signal.signal(number, self._receive) for number in (signal.SIGTERM, signal.SIGINT)}

    def _receive(self, number, frame):
        self.received = signal.Signals(number).name
        signal.signal(number, self._old[number])

    def restore(self) -> None:
        """Puts the earlier handlers back."""
        for number, handler in self._old.items():
            signal.signal(number, handler)


def check_config_flags(argv: list[str]) -> None:
    """Checks `--config.a.b=value` names against the config file before absl does, for a message with a suggestion.

    Raises:
      UserError: an unknown key, or a config file that does not exist.
    """
    words = [word.lstrip("-") for word in argv if word.startswith("-")]
    files = [word.partition("=")[2] for word in words if word.startswith("config=")]
    files += [
        after for before, after in itertools.pairwise(argv) if before.lstrip("-") == "config" and before[0] == "-"
    ]
    if not files:
        if any(word.startswith("config.") for word in words):
            raise UserError(
                "--config.KEY=VALUE changes a config, but none is given: add --config=configs/smaug.py:tiny"
            )
        return
    if len(files) > 1:
        raise UserError(f"--config is given {len(files)} times ({', '.join(files)}): expected once")
    path, _, argument = files[0].partition(":")
    if not pathlib.Path(path).is_file():
        raise UserError(f"--config={files[0]}: there is no file {path!r}; the recipes' configs are in configs/")
    spec = importlib.util.spec_from_file_location("chosen_config", path)
    assert spec and spec.loader  # a .py file always has both
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(argument) if argument else module.get_config()
    pairs = [word.removeprefix("config.").partition("=") for word in words if word.startswith("config.")]
    keys = [key for key, _, _ in pairs]
    for key, equals, value in pairs:
        config_lib.check_key(config, key)
        if equals:
            check_value(f"--config.{key}", value, config_lib.leaves(config)[key])
        # Of a number the last one counts; the flag of a tuple would hold both values, one after the other.
        if keys.count(key) > 1 and isinstance(config_lib.leaves(config)[key], tuple):
            raise UserError(f"--config.{key} is given {keys.count(key)} times: expected once")


def check_value(flag: str, text: str, default: Any) -> Any:
    """Returns the text given to `flag` as a value of the default's type; of types without a check, the text.

    Raises:
      UserError: it cannot become one.
    """
    kinds: dict[type, tuple[Callable, str]] = {
        int: (int, "an integer"),
        float: (float, "a number"),
        tuple: (_tuple, "a tuple such as (1,2)"),
    }
    if type(default) not in kinds:
        return text
    parse, name = kinds[type(default)]
    try:
        return parse(text)
    except (ValueError, SyntaxError):
        raise UserError(f"{flag}={text}: expected {name}, as in {default!r}") from None


def _tuple(text: str) -> tuple[Any, ...]:
    """A tuple of what is written; one value stands for a tuple of it, as in flags of the config."""
    value = ast.literal_eval(text)
    return value if isinstance(value, tuple) else (value,)


def chosen_checkpoint(text: str | None) -> tuple[int | None, bool]:
    """What --checkpoint names: `(step, False)`, `(None, True)` for best, `(None, False)` for the newest where None."""
    if text not in (None, "best") and not text.isdecimal():
        raise UserError(f"--checkpoint={text}: expected a step, such as 500, or best")
    return (None, text == "best") if text in (None, "best") else (int(text), False)
