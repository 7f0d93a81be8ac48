"""The one error of this package that a user's files can cause."""


class CheckpointError(ValueError):
    """A checkpoint or statistics file is missing, damaged, or not what its use needs.

    The message is one line: the file, what was expected, what was found, and what to do.
    """
