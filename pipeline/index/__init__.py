"""The index: unit vectors of one recipe and resolution beside the store's tables, made, followed and opened."""
