"""The mirrors of a job of several processes that share no folder, such as the hosts of a TPU pod.

The folder of the first process is the run's: it alone writes checkpoints, and its mirror sends all but the other
processes' ledgers. The others fetch anew, at each start, what the store then has, and send their ledgers.
"""

import jax

from vlp_jax import distributed
from vlp_jax.mirror import Mirror, staging
from vlp_jax.types import UserError


def open_together(address: str, only: str, step: int | None) -> Mirror:
    """The mirror of this process, its folder at the same step as that of every other; all processes call it together.

    Args:
      only: as of `Mirror`, of the first process.
      step: as of `Mirror.fetch`.

    Raises:
      UserError: on every process: as `Mirror` and `Mirror.fetch`; the first one has a step that others cannot fetch.
    """
    number, several = jax.process_index(), jax.process_count() > 1

    def make() -> Mirror:
        if number:
            # An evaluation may run beside the training of the same run.
            folder = staging(address, f"{number}-evaluation" if only else f"{number}")
            return Mirror(address, folder, f"ledger-{number}.jsonl")
        mirror = Mirror(address, staging(address), only)
        mirror.fetch(step)
        if several and not only:
            mirror.send()  # what its folder is ahead of the store, for the others to fetch
        return mirror

    def follow() -> None:
        if number:
            mirror.begin_anew()
            mirror.fetch(step)

    def send_anew() -> None:
        if not number:
            mirror.send(anew=True)

    mirror = distributed.together(make)
    if not several:
        return mirror
    distributed.together(follow)
    steps = distributed.gather(mirror.steps(step))
    if _differ(steps) and not only:
        # Of what the first has sent before, something is damaged in the store.
        distributed.together(send_anew)
        distributed.together(follow)
        steps = distributed.gather(mirror.steps(step))
    if _differ(steps):
        has, fetched = steps[0], next(other for other in steps if other != steps[0])
        raise UserError(
            f"--workdir={address}: process 0 has {_list(has)} in {staging(address)}, process {steps.index(fetched)} "
            f"fetched {_list(fetched)} from the store: run this once more where a training run is just sending it, or "
            "remove that folder, to go on with what the store has"
        )
    return mirror


def _differ(steps: list[list[str]]) -> bool:
    return any(other != steps[0] for other in steps)


def _list(steps: list[str]) -> str:
    return ", ".join(step.rstrip("/") for step in steps if step) or "no checkpoint"
