"""The corpus of free music that the small model in the box is trained on, and the command that fetches it."""
