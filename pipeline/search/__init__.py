"""What is asked of an index: tracks, moments, files, neighbours, and how good the answers are."""
