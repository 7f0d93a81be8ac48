"""Fetch and decode: rows of the plan become rows with a waveform, or rows that say why there is none."""
