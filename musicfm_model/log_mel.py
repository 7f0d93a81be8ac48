"""Log-mel spectrogram of a waveform: the model's input, always computed in float32."""

from __future__ import annotations

import torch
from torch import Tensor
from torchaudio.transforms import AmplitudeToDB, MelSpectrogram

from musicfm_model.config import HOP_LENGTH, N_FFT, SAMPLE_RATE
from musicfm_model.precision import Float32Module, float32_arithmetic

MIN_SAMPLES = N_FFT // 2 + 1  # the STFT reflects n_fft / 2 samples at each end, and needs one more than that


class LogMel(Float32Module):
    """Mel power spectrogram in decibels at 100 frames a second.

    torchaudio's defaults (periodic Hann window, HTK mel scale without area normalisation, power clamped at
    1e-10), as in the published ``modules/features.py``. Digital silence is -100 dB.

    Args:
        hop_length: Samples between frames.
        n_mels: Mel bands.
    """

    def __init__(self, hop_length: int = HOP_LENGTH, n_mels: int = 128) -> None:
        super().__init__()
        # torchaudio looks at the filter bank's values, so it cannot be built on the meta device.
        with torch.device("cpu"):
            self.mel_stft = MelSpectrogram(
                sample_rate=SAMPLE_RATE, n_fft=N_FFT, hop_length=hop_length, n_mels=n_mels
            )
        self.mel_stft.spectrogram.power = None  # complex: torchaudio would take a root, only to square it
        self.amplitude_to_db = AmplitudeToDB()

    @torch.no_grad()
    def forward(self, wav: Tensor) -> Tensor:
        """Return the spectrogram without the STFT's last column, as published.

        Args:
            wav: (B, S) samples at 24 kHz, any floating dtype.

        Returns:
            (B, n_mels, floor(S / hop_length)) float32, in dB.

        Raises:
            ValueError: ``wav`` is not two-dimensional, not floating-point, or shorter than 1025 samples.
        """
        if wav.ndim != 2 or not wav.is_floating_point():
            raise ValueError(
                "expected a floating-point waveform of shape (batch, samples), "
                f"found shape {tuple(wav.shape)} of {wav.dtype}"
            )
        if wav.shape[1] < MIN_SAMPLES:
            raise ValueError(f"expected at least {MIN_SAMPLES} samples (43 ms at 24 kHz), found {wav.shape[1]}")
        no_autocast = torch.autocast(wav.device.type, enabled=False)
        with no_autocast, float32_arithmetic(wav.device, allow_tf32=False):
            spectrum = self.mel_stft.spectrogram(wav.float())
            power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)
            mel: Tensor = self.amplitude_to_db(self.mel_stft.mel_scale(power))
        return mel[..., :-1]
