"""The search service: an application that knows nothing of Ray, its page, and Ray Serve around it.

Imports the base, ``decode``, ``store``, ``index`` and ``search``.
"""
