"""The index: unit vectors of one recipe and resolution beside the store's tables, made, followed and opened.

Imports the base and ``store``; ``dataflow`` spreads a build over Ray.
"""
