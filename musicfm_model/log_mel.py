"""Log-mel spectrogram of a waveform: the model's input, always computed in float32."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchaudio.transforms import AmplitudeToDB, MelSpectrogram

from musicfm_model.constants import HOP_LENGTH, MIN_SAMPLES, N_FFT, SAMPLE_RATE
from musicfm_model.precision import Float32Module, float32_arithmetic

BANDS_AT_ONCE = 16  # mel bands that are summed up together, from no more bins than they reach over
FRAMES_IN_CACHE = 128  # spectra that are there at once: a whole window's would be 37 MB of fresh memory


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
                sample_rate=SAMPLE_RATE, n_fft=N_FFT, hop_length=hop_length, n_mels=n_mels, center=False
            )
        self.hop_length, self.n_mels = hop_length, n_mels
        self.mel_stft.spectrogram.power = None  # complex: torchaudio would take a root, only to square it
        self.amplitude_to_db = AmplitudeToDB()
        self._group_bands()
        self.register_load_state_dict_post_hook(_regroup)  # type: ignore[no-untyped-call]

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
            return self._transform(wav.float())

    def _group_bands(self) -> None:
        """Cut the filter bank that is there now: a checkpoint brings its own."""
        self._band_groups = group_bands(self.mel_stft.mel_scale.fb)

    def _transform(self, wav: Tensor) -> Tensor:
        padded = F.pad(wav[:, None], (N_FFT // 2, N_FFT // 2), mode="reflect")[:, 0]
        num_frames = wav.shape[1] // self.hop_length
        at_once = FRAMES_IN_CACHE if wav.device.type == "cpu" else num_frames
        mel = wav.new_empty(len(wav), self.n_mels, num_frames)
        for start in range(0, num_frames, at_once):
            stop = min(start + at_once, num_frames)
            samples = padded[:, start * self.hop_length : (stop - 1) * self.hop_length + N_FFT]
            spectrum = self.mel_stft.spectrogram(samples)
            power = spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)
            if wav.device.type == "cpu":
                for bands, bins, weights in self._band_groups:
                    mel[:, bands, start:stop] = weights @ power[:, bins]
            else:
                mel[..., start:stop] = self.mel_stft.mel_scale(power)
        decibels: Tensor = self.amplitude_to_db(mel)
        return decibels


def _regroup(module: LogMel, _: object) -> None:
    """Follow a checkpoint that brought another filter bank; a hook of ``load_state_dict``."""
    module._group_bands()


def group_bands(filter_bank: Tensor) -> list[tuple[slice, slice, Tensor]]:
    """Cut a filter bank, nearly all of which is zeros, into products over the bins that neighbouring bands share.

    Args:
        filter_bank: (num_bins, n_mels), the bands in order.

    Returns:
        For each group its bands, the bins that they reach over, and their weights (num_bands, num_bins).
    """
    groups = []
    for first_band in range(0, filter_bank.shape[1], BANDS_AT_ONCE):
        bands = slice(first_band, min(first_band + BANDS_AT_ONCE, filter_bank.shape[1]))
        reached = filter_bank[:, bands].any(dim=1).nonzero()
        bins = slice(int(reached.min()), int(reached.max()) + 1) if len(reached) else slice(0, 0)
        groups.append((bands, bins, filter_bank[bins, bands].T.contiguous()))
    return groups
