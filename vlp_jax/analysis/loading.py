"""Opening a run for a look inside: `load(workdir)`, then `clips` to look at and `apply` to run the model on them."""

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from vlp_jax import config as config_lib
from vlp_jax import mirror, runs, sharding, validation
from vlp_jax import state as state_lib
from vlp_jax.analysis import arguments
from vlp_jax.input import annotations, pipeline, sources
from vlp_jax.recipes import recipe
from vlp_jax.types import Batch, UserError

_BATCH = 8  # clips decoded at once
_PATHS = ("input.path", "input.video_root", "input.features.path")  # of a run's data


@dataclasses.dataclass(frozen=True)
class Clips:
    """Some clips that decoded, in the order of the split.

    Attributes:
      batch: NumPy arrays of B clips.
      captions, clip_ids: B texts each.
      records: int `[B]`, their numbers in the split.
      skipped: clips passed over because they did not decode: their names -> why.
    """

    batch: Batch
    captions: list[str]
    clip_ids: list[str]
    records: np.ndarray
    skipped: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Loaded:
    """A run on this machine's devices.

    Attributes:
      workdir: its folder.
      run: its config, tokenizer, parameters (those of evaluation), step and metadata; of a fine-tuned run the recipe
        below the task's head.
    """

    workdir: pathlib.Path
    run: runs.Run
    _compiled: dict[Any, Any] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def config(self) -> Any:
        """The config that the checkpoint was trained by; its mesh is this machine's."""
        return self.run.config

    @property
    def model(self) -> Any:
        """The recipe, with its parameters."""
        return state_lib.merge(self.run.setup, self.run.params)

    @property
    def title(self) -> str:
        """What a figure's title calls the run."""
        return f"{self.config.name}, step {self.run.step}"

    def source(self, split: str | None = None) -> sources.Source:
        """The clips of a split, by default of `config.evaluation.split`, at the run's own `config.input.path`.

        Raises:
          UserError: its data is not there, has no such split, or, of a task's run, no captions in it.
        """
        for key in _PATHS:
            path = config_lib.leaves(self.config)[key]
            if _is_relative(path) and not _there(pathlib.Path(path)):
                fix = "load(WORKDIR, data=PATH)" if key == "input.path" else f"loaded.changed({{{key!r}: PATH}})"
                raise UserError(
                    f"config.{key} = {path!r} of {self.workdir} is relative to the folder it was trained from, and "
                    f"is neither here ({pathlib.Path.cwd()}) nor in a folder above this one or the workdir: say where "
                    f"it is, {fix}"
                )
        source = sources.open_source(self.config.input, split or self.config.evaluation.split)
        trained = self.run.metadata["config"]["task"]["kind"]
        # What was loaded of a task's run is its recipe, which reads clips with captions.
        if trained != "pretrain" and not annotations.fits(source.columns, "pretrain"):
            raise UserError(
                f"{self.workdir} was fine-tuned for {trained.replace('_', ' ')}, and split "
                f"{split or self.config.evaluation.split!r} has {', '.join(sorted(source.columns))}: pass split=NAME "
                "of one with captions, such as split='test'"
            )
        return source

    def clips(self, count: int = 4, *, split: str | None = None, records: Sequence[int] | None = None) -> Clips:
        """Decodes the first `count` clips of a split that decode, or those of the given records.

        Args:
          count: how many; not read where `records` are given.
          records: numbers of examples in the split.

        Raises:
          UserError: the split has fewer than `count` clips that decode, or one of `records` does not, or is no number
            in the split.
        """
        source = self.source(split)
        split = split or self.config.evaluation.split
        chosen = list(range(len(source)))
        if records is not None:
            chosen = arguments.numbers("records", records, len(source), f"in split {split!r}")
        if count < 1 or not chosen:
            raise UserError(f"clips(count={count}, records={records}): expected one clip or more")
        wanted = np.array(chosen)
        batches = pipeline.evaluation_batches(
            self.config, source, self.run.tokenizer, batch_size=min(_BATCH, len(wanted)), records=wanted
        )
        goal = count if records is None else len(wanted)
        rows: list[tuple[Batch, str, str, int]] = []
        skipped: dict[str, str] = {}
        for item in batches:
            for i, padding in enumerate(item.is_padding):
                if padding or len(rows) == goal:
                    continue
                if item.errors[i]:
                    skipped[item.clip_ids[i]] = item.errors[i]
                else:
                    example = jax.tree.map(lambda x, i=i: x[i], item.batch)
                    rows.append((example, item.captions[i], item.clip_ids[i], int(item.records[i])))
            if len(rows) == goal:
                break
        if len(rows) < goal:
            why = "; ".join(f"{name}: {error}" for name, error in itertools.islice(skipped.items(), 3))
            raise UserError(
                f"{goal} clips of split {split!r} were asked for, {len(rows)} of {len(wanted)} decode; "
                f"{why or 'ask for fewer'}"
            )
        examples, captions, names, numbers = zip(*rows)
        batch = jax.tree.map(lambda *x: np.stack(x), *examples)
        return Clips(batch, list(captions), list(names), np.array(numbers), skipped)

    def apply(self, function: Callable[..., Any], *arrays: Any) -> Any:
        """`function(model, *arrays)`, compiled once for each function and shapes; NumPy arrays come back.

        Args:
          function: of the recipe and arrays (or trees of them, such as a Batch); a module-level function, so that the
            next call finds it compiled.
        """
        setup = self.run.setup
        if function not in self._compiled:
            self._compiled[function] = jax.jit(
                lambda params, *arrays: function(state_lib.merge(setup, params), *arrays),
                out_shardings=sharding.replicated(setup.mesh),
            )
        with sharding.use_mesh(setup.mesh):
            return jax.device_get(self._compiled[function](self.run.params, *arrays))

    def apply_rows(self, function: Callable[..., Any], rows: Any, *more: Any) -> Any:
        """As `apply`, of a tree of arrays with examples on the leading axis, as many as there are, on any mesh.

        Args:
          function: of the recipe, the rows and `more`; returns arrays with the examples on the leading axis.
          rows: such as a Batch; filled up with its last example to a multiple of `ways`.
          more: other arrays.
        """
        count = len(jax.tree.leaves(rows)[0])
        filled = -(-count // self.ways) * self.ways
        fill = lambda x: np.concatenate([x, np.repeat(x[-1:], filled - count, axis=0)])
        return jax.tree.map(lambda x: x[:count], self.apply(function, jax.tree.map(fill, rows), *more))

    @property
    def ways(self) -> int:
        """Devices that examples are spread over."""
        return self.run.setup.mesh.size // self.run.setup.mesh.shape["tensor"]

    def changed(self, changes: dict[str, Any]) -> "Loaded":
        """The same parameters under another config, for knobs that parameters do not depend on.

        Args:
          changes: dotted key -> value, e.g. `{"model.pruning.keep_rate": 0.5}`.

        Raises:
          UserError: there is no such knob, a value is out of range or does not fit the others, or the model would have
            other parameters.
        """
        config = config_lib.update(self.config.copy_and_resolve_references(), changes)
        # The checkpoint has been chosen, perhaps by a metric of a task that is no longer there.
        chosen = config_lib.update(config.copy_and_resolve_references(), {"evaluation.select_by": ""})
        validation.validate(chosen)
        return self.under(config)

    def under(self, config: Any) -> "Loaded":
        """The same parameters under a whole config, which need not be one to train by; else as `changed`.

        Raises:
          UserError: the model would have other parameters.
        """
        run = self.run
        make = lambda: recipe.build(config, run.tokenizer, nnx.Rngs(0))
        graph, abstract = sharding.abstract_model(make)
        form = lambda tree: {jax.tree_util.keystr(k): x.shape for k, x in jax.tree_util.tree_leaves_with_path(tree)}
        if odd := dict(form(abstract).items() ^ form(run.params).items()):
            raise UserError(
                f"under this config the model would have other parameters ({sorted(odd)[0]}), which {self.title} has "
                "not learned; expected knobs such as model.pruning.keep_rate"
            )
        setup = dataclasses.replace(run.setup, config=config, graph=graph, make_model=make)
        return Loaded(self.workdir, dataclasses.replace(run, config=config, setup=setup))


def folder_of(workdir: str | os.PathLike, step: int | None = None) -> pathlib.Path:
    """A workdir's folder; of an address such as gs://BUCKET/runs/base, one that the run is fetched to.

    Args:
      step: of a checkpoint that is wanted beside the newest one.
    """
    text = os.fspath(workdir)
    if not mirror.is_address(text):
        return pathlib.Path(text)
    folder = mirror.staging(text)
    mirror.Mirror(text, folder, only="evaluation/").fetch(step)
    return folder


def load(workdir: str | os.PathLike, step: int | None = None, *, best: bool = False, data: str | None = None) -> Loaded:
    """Restores any run onto this machine's devices, whatever mesh it was trained on.

    Args:
      workdir: its folder, or its address such as gs://BUCKET/runs/base, which is fetched.
      step: of the checkpoint; the newest intact one by default.
      best: the checkpoint that a metric chose.
      data: where its clips lie now, if not at the run's own `config.input.path`. Paths of the config that are
        relative, and are not below the current folder, are looked for where the run was trained, then below each folder
        above the workdir, then below each above the current one (a notebook's is not the repository's root).

    Raises:
      UserError: there is no run, or no such checkpoint; of a run without a text encoder there is nothing to look at.
    """
    if step is not None and best:
        raise UserError(f"load(step={step}, best=True): expected one of them; the best checkpoint has its own step")
    folder = folder_of(workdir, step)
    run = runs.recipe_alone(runs.open_run(folder, step, best=best))
    config_lib.update(run.config, {key: _found(run, key, folder) for key in _PATHS})
    if data is not None:
        config_lib.update(run.config, {"input.path": data})
    return Loaded(folder, run)


def _found(run: runs.Run, key: str, workdir: pathlib.Path) -> str:
    """A path of the run's data, which may be relative to another folder; as it is where it is nowhere."""
    path = config_lib.leaves(run.config)[key]
    if not _is_relative(path) or _there(pathlib.Path(path)):
        return path
    # Where it was trained `item["path"]` is the real path of what was then `input.path`, perhaps of this very file.
    trained = [pathlib.Path(item["path"]) for item in run.metadata["trained_on"]]
    tail = pathlib.Path(path).parts
    roots = [p.parents[len(tail) - 1] for p in trained if p.parts[-len(tail) :] == tail]
    roots += [*workdir.resolve().parents, *pathlib.Path.cwd().parents]
    return next((str(root / path) for root in roots if _there(root / path)), path)


def _is_relative(path: str) -> bool:
    return bool(path) and not mirror.is_address(path) and not os.path.isabs(path)


def _there(path: pathlib.Path) -> bool:
    """Whether a path exists; of a pattern (`cc3m/{00000..00331}.tar`, `*.csv`) the folders before it."""
    return pathlib.Path(*itertools.takewhile(lambda part: not set(part) & set("*?[{"), path.parts)).exists()
