"""Makes the embedded dataset: `python -m data.moving_shapes --out datasets/moving_shapes`."""

import argparse
import sys
from collections.abc import Sequence

from data import output
from data.moving_shapes import builder


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the arguments, makes the dataset and prints one line; returns the exit status, 2 for a user's error."""
    default = builder.Settings()
    parser = argparse.ArgumentParser(prog="python -m data.moving_shapes", description=builder.__doc__)
    parser.add_argument("--out", required=True, help="directory to make; opened with tfds.builder_from_directory(OUT)")
    parser.add_argument("--train", type=int, default=default.train, help="clips for training (%(default)s)")
    parser.add_argument("--validation", type=int, default=default.validation, help="clips, new captions (%(default)s)")
    parser.add_argument("--test", type=int, default=default.test, help="clips, new captions (%(default)s)")
    parser.add_argument(
        "--compositional",
        type=int,
        default=default.compositional,
        help="clips with pairings of color and shape that no other split has (%(default)s)",
    )
    parser.add_argument("--seed", type=int, default=default.seed, help="(%(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="drawing processes; the data is the same (%(default)s)")
    parser.add_argument("--format", choices=("tfds", "folder"), default=default.format, help="(%(default)s)")
    given = vars(parser.parse_args(arguments))
    out, workers = given.pop("out"), given.pop("workers")
    return output.run_command(lambda: builder.prepare(out, builder.Settings(**given), workers))


if __name__ == "__main__":
    sys.exit(main())
