"""What exists for GPUs alone: convolutions as cuDNN's fused kernels take them, and in few shapes."""
