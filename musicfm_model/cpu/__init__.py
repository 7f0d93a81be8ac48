"""What the model computes otherwise on processors: Winograd convolutions and weights packed for oneDNN."""
