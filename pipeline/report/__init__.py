"""The report of a run: facts in JSON, and a page that opens without a network.

Imports the base and ``store``.
"""
