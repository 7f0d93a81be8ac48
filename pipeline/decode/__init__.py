"""Bytes to mono 24 kHz: rows of the plan become rows with a waveform, or rows that say why there is none.

Imports the base, and reads what the catalog names inside shards.
"""
