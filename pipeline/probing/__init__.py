"""Probing: what stored features know, by heads trained on them; and the heads' predictions for a whole catalog."""
