"""Writes a run on one page: `python -m vlp_jax.report --workdir DIR [--compare DIR2 ...]`.

The page is one HTML file without scripts and without any other file: what the run costs and reaches, its curves,
pictures, parameters, bad clips and config, alone or beside those of other runs. It says what of that is not there, so
that a run may be looked at while it trains; no accelerator is touched, and no parameter loaded.
"""

import datetime
import pathlib

import jax
from absl import flags

from vlp_jax import launch
from vlp_jax.analysis import curves
from vlp_jax.analysis.loading import folder_of
from vlp_jax.files import write_atomically
from vlp_jax.reporting import contents, html, sections
from vlp_jax.types import UserError

FLAGS = flags.FLAGS
NAME = "report.html"


def main(argv: list[str]) -> None:
    # Further folders after --compare DIR2, as a shell writes them.
    others = [*FLAGS.compare, *argv[1:]]
    if argv[1:] and not FLAGS.compare:
        raise UserError(f"unexpected argument {argv[1]!r}: other runs follow --compare")
    say = launch.join_processes()
    with launch.open_workdir(FLAGS.workdir, say, only=NAME) as (workdir, _):
        runs = contents.read([FLAGS.workdir, *others], [workdir, *map(folder_of, others)])
        out = pathlib.Path(FLAGS.out) if FLAGS.out else workdir / NAME
        if out.is_dir():
            raise UserError(f"--out={out} is a folder: expected the name of a file, such as {out / NAME}")
        if not out.parent.is_dir():
            raise UserError(f"--out={out}: there is no folder {out.parent}; make it first")
        now = datetime.datetime.now().astimezone()
        parts = sections.every(runs, FLAGS.x)
        page = html.page(sections.title(runs[0]), sections.header(runs, now), parts)
        write_atomically(out, page.encode())
        print(f"{out}: {sections.title(runs[0])}, {len(page.encode()) / 1e6:.2g} MB")


def cli() -> None:
    """Entry point: a UserError becomes one message and exit status 2."""
    # What trains on an accelerator needs all of its memory.
    jax.config.update("jax_platforms", "cpu")
    flags.DEFINE_string("workdir", None, "Directory of a training run, finished or not, or its address.", required=True)
    flags.DEFINE_multi_string("compare", [], "Workdir of another run, shown beside it; several may follow.")
    flags.DEFINE_string("out", None, f"File to write; WORKDIR/{NAME} by default.")
    flags.DEFINE_enum("x", "step", list(curves.X_AXES), "What the curves are drawn over.")
    launch.run_app(main)


if __name__ == "__main__":
    cli()
