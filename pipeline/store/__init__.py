"""The tables: written part by part, committed exactly once, read one snapshot at a time, checked and maintained.

Imports the base; ``write`` also pools, by ``embed.pool``.
"""
