"""Builders and preparation of datasets; run from the repository root, e.g. `python -m data.moving_shapes --out DIR`."""
