"""What exists for GPUs alone: the convolutions as cuDNN's fused kernels take them."""
