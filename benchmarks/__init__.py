"""Benchmarks: run a script from the repository root with `python -m benchmarks.FOLDER.NAME`."""
