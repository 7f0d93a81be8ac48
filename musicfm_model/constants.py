"""The figures that the published model's rates derive from; importing them does not wait for torch."""

from typing import Literal

SAMPLE_RATE = 24_000  # Hz
N_FFT = 2048
HOP_LENGTH = 240  # samples between mel frames: 100 Hz
MEL_FRAMES_PER_TOKEN = 4  # the two strided convolutions leave every fourth mel frame: 25 Hz, 40 ms
SAMPLES_PER_TOKEN = MEL_FRAMES_PER_TOKEN * HOP_LENGTH
MIN_SAMPLES = N_FFT // 2 + 1  # the STFT reflects n_fft / 2 samples at each end, and needs one more than that

Precision = Literal["float32", "tf32", "bfloat16", "float16"]
