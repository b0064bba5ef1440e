"""Runs written out for programs that do not have this package."""
