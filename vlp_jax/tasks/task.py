"""What is trained: a recipe by its own loss, or a task on top of it (`config.task.kind`).

A task's model holds the recipe as `recipe` and what it adds as `head`, so that its parameters' paths begin with
`recipe/` or `head/`. It has a recipe's `loss(batch, key, masked)`. In all of them the clip is seen whole, for nothing
is to be rebuilt (`masked` is ignored); pruning stays as it is in the recipe, and so does the choice of frames with its
noise in training.
"""

import re
from typing import Any

from flax import nnx

from vlp_jax.recipes import recipe
from vlp_jax.tasks.classification import Classification
from vlp_jax.tasks.multiple_choice import MultipleChoice
from vlp_jax.tasks.question_answering import QuestionAnswering

TASKS = {
    "question_answering": QuestionAnswering,
    "multiple_choice": MultipleChoice,
    "classification": Classification,
}


def build(config: Any, tokenizer: Any, rngs: nnx.Rngs, answers: int = 0) -> nnx.Module:
    """Builds what `config.task.kind` trains.

    Args:
      answers: C, length of the answer list, or number of classes; only heads over a list need it.

    Raises:
      UserError: as `recipe.build`; or the recipe lacks what the task needs.
      ValueError: a head over a list of no answers.
    """
    model = recipe.build(config, tokenizer, rngs)
    if config.task.kind == "pretrain":
        return model
    return TASKS[config.task.kind](
        config, model, tokenizer, answers, frozen=not _recipe_trains(config, model), rngs=rngs
    )


def recipe_of(model: Any) -> Any:
    """The recipe of what `build` returned, which may be the recipe itself."""
    return getattr(model, "recipe", model)


def origins(name: str) -> tuple[str, ...]:
    """Where a parameter of a model that `build` returned may start from: names in a pre-training run, in order.

    A task's recipe is that run's model. The decoder's parts start from the fusion, the text encoder and the word head,
    as in ALBEF and Singularity. Two shapes may differ there: `head/position` has `task.max_answer_tokens` rows, the
    first ones of the text's; and the cross-attention's `key_value` looks at words, where the fusion's looks at patches:
    if their widths differ it is created. Heads over a list of answers or classes have no origin.
    """
    if not name.startswith("head/"):
        return (name.removeprefix("recipe/"),)
    for prefix, origin in _DECODER.items():
        if name.startswith(f"head/{prefix}"):
            return (origin + name.removeprefix(f"head/{prefix}"),)
    return ()


_DECODER = {
    "embedding": "text/embedding",
    "position": "text/position",
    "norm_embedding/": "text/norm_embedding/",
    "blocks/": "fusion/blocks/",
    "norm/": "fusion/norm/",
    "word_head/": "word_head/",
}


def _recipe_trains(config: Any, model: nnx.Module) -> bool:
    patterns = config.optimizer.trainable
    paths = ["/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model, nnx.Param))]
    return not patterns or any(re.fullmatch(pattern, f"recipe/{path}") for pattern in patterns for path in paths)
