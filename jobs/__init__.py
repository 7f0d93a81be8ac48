"""Commands: arguments in, one call to ``pipeline``, a report out."""
