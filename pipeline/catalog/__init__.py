"""Which tracks there are, and what they are called: one file for each kind of catalog; ``load`` tells them apart.

Imports the base alone.
"""
