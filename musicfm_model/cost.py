"""What a window costs: the operations of the model at any size, by which its threads and times are reckoned."""

from __future__ import annotations

from musicfm_model.config import ModelConfig
from musicfm_model.constants import HOP_LENGTH, MEL_FRAMES_PER_TOKEN, SAMPLE_RATE
from musicfm_model.gpu.shapes import MEL_STEP, count_padded

WINDOW_S = 30  # the pretraining length (paper, section 3.1)


def count_window_tflop(config: ModelConfig, layer: int) -> float:
    """Count the operations of one 30 s window, 10¹² of them, two to a multiplication with its addition.

    Convolutions count as computed directly; normalisations, activations and the depthwise convolution, under 3 %
    together, are left out.

    Args:
        config: Sizes of the model.
        layer: The last layer that is computed.
    """
    mel_frames, channels, bands = WINDOW_S * SAMPLE_RATE // HOP_LENGTH, config.conv_dim, config.n_mels
    num_frames = mel_frames // MEL_FRAMES_PER_TOKEN
    kernel = 9 * channels * channels  # 3 × 3; the first block has one such convolution, the second three
    convolutions = kernel * (bands // 2 * mel_frames // 2 + 3 * (bands // 4) * num_frames)
    projection = channels * bands // 4 * config.embed_dim * num_frames
    width = config.embed_dim
    per_frame = 4 * width * config.ffn_dim + 4 * width**2 + 2 * num_frames * width + 3 * width**2
    return 2 * (convolutions + projection + layer * per_frame * num_frames) / 1e12


def max_windows(config: ModelConfig) -> int:
    """Return how many 30 s windows may go through the model at once: its tensors are indexed by 32 bits on a GPU.

    The largest are the first block's, of half the bands and half the mel frames, those of a stretch's margins and
    of padding included: 42 windows at the published size.

    Args:
        config: Sizes of the model.
    """
    mel_frames = count_padded(WINDOW_S * SAMPLE_RATE // HOP_LENGTH + MEL_STEP // 2)
    return max(1, (2**31 - 1) // (config.conv_dim * (config.n_mels // 2) * (mel_frames // 2)))
