"""What GPUs are able to compute: their data sheets."""

GPU_TFLOPS: dict[str, tuple[float, float, float]] = {
    "t4": (8.1, 8.1, 65.0),
    "a10": (31.2, 62.5, 125.0),
    "l4": (30.3, 60.0, 121.0),
    "l40s": (91.6, 183.0, 362.0),
    "a100": (19.5, 156.0, 312.0),
    "h100": (67.0, 495.0, 989.0),
    "h200": (67.0, 495.0, 989.0),
}
"""Dense rates in float32, tf32 and half precision, from NVIDIA's data sheets (SXM where there is a choice)."""
