"""Opening a finished or interrupted run: the config, tokenizer, model and parameters that its workdir holds."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
from flax import nnx

from vlp_jax import checkpoint, distributed, sharding, validation
from vlp_jax import config as config_lib
from vlp_jax import state as state_lib
from vlp_jax import workdir as workdir_lib
from vlp_jax.input import answers as answers_lib
from vlp_jax.input import tokenizer as tokenizer_lib
from vlp_jax.types import UserError

_WITH_ANSWERS = ("question_answering", "classification")  # kinds of config.task that choose from a closed list


@dataclasses.dataclass
class Run:
    """A run restored for evaluation or analysis: the recipe, or the task's model, is `state.merge(setup, params)`.

    Attributes:
      answers: its answer list or classes; None for a task without one.
      metadata: of the checkpoint.
    """

    config: Any
    tokenizer: Any
    setup: state_lib.Setup
    params: Any
    step: int
    answers: Any
    metadata: dict[str, Any]


def open_run(workdir: pathlib.Path, step: int | None = None, *, best: bool = False, ensemble: str | None = None) -> Run:
    """Restores the parameters that evaluation uses, replicated over this machine's devices, by the checkpoint's config.

    Args:
      step: checkpoint to restore; None for the newest intact one.
      best: restore the one that a metric of the validation split chose.
      ensemble: `config.evaluation.ensemble` instead of the checkpoint's; the recipe itself reads it.

    Raises:
      UserError: the directory is no workdir of a run, or holds no such checkpoint.
    """
    folder = workdir / (workdir_lib.BEST if best else workdir_lib.CHECKPOINTS)
    if not distributed.from_first(folder.is_dir):
        fix = "; train with config.evaluation.select_by to have one" if best else ""
        raise UserError(f"--workdir={workdir}: holds no {folder.name}, so no training run saved one there{fix}")
    checkpoints = checkpoint.Checkpointer(folder, keep=1, asynchronous=False)
    metadata = checkpoints.read_metadata(step)
    config = config_lib.from_json(json.dumps(metadata["config"]))
    tokenizer = tokenizer_lib.open_tokenizer(
        workdir_lib.run_tokenizer(workdir), config.input.max_text_tokens, config.input.lowercase
    )
    set_precision(config)
    if ensemble is not None:
        # The checkpoint is chosen already.
        config_lib.update(config, {"evaluation.ensemble": ensemble, "evaluation.select_by": ""})
        validation.validate(config)
    # The devices here need not be those of the run.
    config_lib.update(config, {"mesh.replica": 1, "mesh.data": -1, "mesh.fsdp": 1, "mesh.tensor": 1})
    if jax.default_backend() != "gpu":
        config_lib.update(config, {"model.attention_kernel": "xla"})
    mesh = sharding.make_mesh(config)
    answers = stored_answers(config, workdir)
    setup = state_lib.setup(config, tokenizer, mesh, metadata["total_steps"], len(answers or ()))
    part = "params" if setup.abstract.ema is None else "ema"
    step, params, metadata = checkpoints.restore(setup.abstract.evaluated, step, part=part)
    checkpoints.close()
    return Run(config, tokenizer, setup, params, metadata.get("step", step), answers, metadata)


def stored_answers(config: Any, workdir: pathlib.Path) -> answers_lib.AnswerList | None:
    """The answer list that a run keeps in its workdir; None for a task without one."""
    if config.task.kind not in _WITH_ANSWERS:
        return None
    file = workdir / workdir_lib.ANSWERS
    if not file.is_file():
        raise UserError(f"--workdir={workdir} holds a run, but no {file.name}: put back the file it was trained with")
    return answers_lib.AnswerList.parse(file.read_bytes(), str(file))


def recipe_alone(run: Run) -> Run:
    """The recipe of a task's run, as a pre-training run has it."""
    if run.config.task.kind == "pretrain":
        return run
    if not any(config_lib.loss_weights(run.config).values()):
        raise UserError(
            f"of {run.config.name} only the video encoder is there, as every weight in its config.loss is 0, and "
            "neither retrieval nor reconstruction can use it alone; evaluate a run of pre-training or of retrieval"
        )
    graph, abstract = nnx.split(nnx.merge(run.setup.graph, run.setup.abstract.params).recipe)
    setup = dataclasses.replace(run.setup, graph=graph, abstract=state_lib.TrainState(abstract, None, None))
    config_lib.update(run.config, {"task.kind": "pretrain", "optimizer.trainable": ()})
    return dataclasses.replace(run, setup=setup, params=run.params["recipe"], answers=None)


def open_answers(config: Any) -> answers_lib.AnswerList | None:
    """The answer list, or the classes, of the config's task; None for a task without one."""
    return answers_lib.open_answers(config) if config.task.kind in _WITH_ANSWERS else None


def set_precision(config: Any) -> None:
    """Applies `config.matmul_precision` to this process."""
    jax.config.update("jax_default_matmul_precision", None if config.matmul_precision == "default" else "highest")


def check_kernel(config: Any) -> None:
    """Raises UserError where this machine lacks the attention kernel that the config asks for."""
    if config.model.attention_kernel == "cudnn" and jax.default_backend() != "gpu":
        raise UserError(
            f"config.model.attention_kernel = 'cudnn' needs an NVIDIA GPU, this process runs on "
            f"{jax.default_backend()}; set it to xla"
        )
