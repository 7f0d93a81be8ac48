"""From music to a model: masked prediction of random-projection tokens, with a same-track contrast beside it."""
