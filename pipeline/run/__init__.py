"""A run from the driver's side: what is to be done, the steps on Ray, the books closed; and what a run would take.

Imports every room above it in the README's list; this is where Ray is known.
"""
