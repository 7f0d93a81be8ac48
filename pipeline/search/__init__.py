"""What is asked of an index: tracks, moments, files, neighbours, and how good the answers are.

Imports the base, ``decode`` and ``embed`` for files that are asked about, ``store`` and ``index``.
"""
