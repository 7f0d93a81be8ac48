"""The model on a GPU: one command for a machine that is lent for minutes. ``python -m benchmarks.gpu --help``."""
