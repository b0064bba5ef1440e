"""A run's directory: what it holds, and who may continue it."""

import fcntl
import json
import pathlib
import re
from typing import Any, TextIO

from vlp_jax import checkpoint, distributed
from vlp_jax import config as config_lib
from vlp_jax.files import write_atomically
from vlp_jax.input import answers as answers_lib
from vlp_jax.input import tokenizer as tokenizer_lib
from vlp_jax.types import UserError

CONFIG_FILE = "config.json"
CHECKPOINTS = "checkpoints"
BEST = "best"  # the checkpoint that a metric of the validation split chose
INIT = "init.json"  # where each parameter of a run that starts from another one comes from
ANSWERS = answers_lib.FILE_NAME  # the answer list, or the classes, of a task

# Knobs that may differ when a run is continued: they change neither the model nor the data nor the optimisation.
MAY_CHANGE = (
    "name mesh. checkpoint. evaluation. log_every input.path input.video_root input.features.path input.tokenizer "
    "task.answers input.workers input.threads input.prefetch input.cache_gib input.clip_timeout_s input.max_pixels "
    "input.max_bad_share model.attention_kernel model.remat model.unroll"
).split()


def stored_tokenizer(workdir: pathlib.Path) -> pathlib.Path | None:
    """Returns the tokenizer that a run keeps in its workdir, None where there is none."""
    return next((workdir / name for name in tokenizer_lib.FILE_NAMES if (workdir / name).is_file()), None)


def run_tokenizer(workdir: pathlib.Path) -> pathlib.Path:
    """As `stored_tokenizer`, for a workdir that holds a run and is broken without its tokenizer."""
    stored = stored_tokenizer(workdir)
    if stored is None:
        names = " nor ".join(tokenizer_lib.FILE_NAMES)
        raise UserError(f"--workdir={workdir} holds a run, but neither {names}: put back the file it was trained with")
    return stored


def check(config: Any, workdir: pathlib.Path, saved: Any = None, inherited: pathlib.Path | None = None) -> pathlib.Path:
    """Refuses a workdir that cannot be made or holds another run; returns the tokenizer to use. Writes nothing.

    Args:
      saved: the config of the run that it holds, `saved_config(workdir)`.
      inherited: the tokenizer of the run that this one starts from; a run that has saved something has its own.
    """
    if not workdir.parent.is_dir():
        raise UserError(f"--workdir={workdir}: its parent directory {workdir.parent} does not exist; make it first")
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file: expected a directory, or a name for a new one")
    stored = stored_tokenizer(workdir)
    given = pathlib.Path(config.input.tokenizer) if config.input.tokenizer else None
    make_one = "make one with `python -m data.train_tokenizer --input {} --output {}`"
    if given and not given.is_file():
        hint = make_one.format(config.input.path, config.input.tokenizer)
        raise UserError(f"config.input.tokenizer = {config.input.tokenizer!r}: no such file; {hint}")
    tokenizer_file = given or inherited or stored
    if tokenizer_file is None:
        hint = make_one.format(config.input.path, "tokenizer.model")
        kinds = "a SentencePiece model, a vocab.txt or a tokenizer.json"
        raise UserError(f"config.input.tokenizer is empty: expected {kinds}; {hint}")
    if (workdir / CHECKPOINTS).exists() and not (workdir / CHECKPOINTS).is_dir():
        raise UserError(f"{workdir / CHECKPOINTS} is a file: expected the directory of checkpoints; move it away")
    # Until something is saved, a first command that failed binds the next one to nothing.
    if saved is not None:
        before, asked = config_lib.leaves(saved), config_lib.leaves(config)
        for key in {**asked, **before}:  # of a mixture, either may name a source that the other lacks
            value = asked.get(key)
            # A source of the mixture may change what config.input may.
            knob = re.sub(r"^mixture\.\w+\.", "input.", key)
            if before.get(key) != value and not knob.startswith(tuple(MAY_CHANGE)):
                raise UserError(
                    f"--workdir={workdir} holds a run with config.{key} = {before.get(key)!r}, this command says "
                    f"{value!r}; use a new --workdir for another run, or the saved value to continue this one"
                )
        if given and stored and tokenizer_lib.read(given) != stored.read_bytes():
            raise UserError(f"config.input.tokenizer = {config.input.tokenizer!r} differs from the run's own {stored}")
        return run_tokenizer(workdir)
    return tokenizer_file


def saved_config(workdir: pathlib.Path) -> Any:
    """The config of the newest checkpoint whose manifest is intact; None where nothing was saved.

    A run that was killed before its first checkpoint may have saved its best state already.
    """
    for name in distributed.from_first(lambda: [n for n in (CHECKPOINTS, BEST) if (workdir / n).is_dir()]):
        checkpoints = checkpoint.Checkpointer(workdir / name, keep=1, asynchronous=False)
        try:
            if checkpoints.latest() is not None:
                return config_lib.from_json(json.dumps(checkpoints.read_metadata()["config"]))
        finally:
            checkpoints.close()
    return None


def check_answers(workdir: pathlib.Path, answers: bytes) -> None:
    """Refuses to continue a run with another answer list: a head over the answers would give its rows other meanings.

    Args:
      answers: this command's list, a JSON list of texts.
    """
    file = workdir / ANSWERS
    if not file.is_file():
        raise UserError(f"--workdir={workdir} holds a run, but no {ANSWERS}: put back the file it was trained with")
    before, now = json.loads(file.read_text()), json.loads(answers)
    if before != now:
        at = next((i for i, (a, b) in enumerate(zip(before, now)) if a != b), min(len(before), len(now)))
        show = lambda texts: repr(texts[at]) if at < len(texts) else "the end of the list"
        raise UserError(
            f"--workdir={workdir} holds a run over {len(before)} answers, this command gives {len(now)}; the first "
            f"that differs is number {at}: {show(before)} there, {show(now)} here; set config.task.answers={file}, or "
            "use a new --workdir"
        )


def lock(workdir: pathlib.Path) -> TextIO:
    """Makes the workdir and keeps other training processes out of it.

    Returns:
      The lock, to be closed; the system lifts it, too, when the process ends, however it does.

    Raises:
      UserError: another process trains in it, or it cannot be made.
    """
    try:
        workdir.mkdir(exist_ok=True)
        file = open(workdir / "lock", "a")  # noqa: SIM115  (it stays open)
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error}") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise UserError(
            f"--workdir={workdir} is in use by another training process: wait for it, stop it, or use another --workdir"
        ) from None
    return file


def prepare(
    config: Any, workdir: pathlib.Path, tokenizer: tokenizer_lib.Tokenizer, answers: bytes | None = None
) -> None:
    """Stores the config, the tokenizer and, where the task has one, the answer list in the workdir."""
    try:
        # Of an earlier command that saved nothing, another kind of tokenizer may be there; it goes first, so that a
        # workdir never holds two.
        for name in set(tokenizer_lib.FILE_NAMES) - {tokenizer.file_name}:
            (workdir / name).unlink(missing_ok=True)
        write_atomically(workdir / tokenizer.file_name, tokenizer.serialized())
        if answers is not None:
            write_atomically(workdir / ANSWERS, answers)
        write_atomically(workdir / CONFIG_FILE, config_lib.to_json(config).encode())
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error}") from None
