"""Waveforms to features: windows of tracks through the model, in batches; frames, and what is pooled from them.

Imports the base and the model.
"""
