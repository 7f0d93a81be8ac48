"""Infer: windows of tracks through the model, hidden states out, batch by batch."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from musicfm_model.cost import max_windows
from musicfm_model.model import MusicFM25Hz
from musicfm_model.shared_frontend import count_frames, encode_excerpts
from pipeline.config import SAMPLE_RATE_HZ
from pipeline.embed.batch import FULL_WINDOW_MEL, Item, count_mel, form_batches
from pipeline.embed.track import (
    FrontendInput,
    ModelInput,
    Track,
    join_frames,
    keep_frames,
    list_frontend_inputs,
)
from pipeline.embed.transfer import Transfer
from pipeline.errors import DeviceError, Reason, Stage, TrackError

logger = logging.getLogger(__name__)


class Inference:
    """Batches of windows through one model.

    Only windows of equally many mel frames share a batch, so hidden states do not depend on batch neighbours.

    Args:
        model: The model.
        batch_size: 30 s windows in one call of the model, as far as its tensors can be indexed; of shorter ones as
            many as last no longer together.
    """

    def __init__(self, model: MusicFM25Hz, batch_size: int) -> None:
        self.model = model
        self.device = model.linear.weight.device
        self.transfer = Transfer(self.device)
        # Shrinks where the device has no room for it, and stays so.
        self.batch_mel = min(batch_size, max_windows(model.config)) * FULL_WINDOW_MEL

    def run(self, inputs: Sequence[ModelInput]) -> Iterator[list[tuple[Track, float]]]:
        """Run all windows of some tracks; their frames gather in ``Track.frames``.

        On CUDA a batch is only launched here: what it computes may still be on its way when it is yielded.

        Args:
            inputs: From ``list_inputs``, all those of a track one after the other.

        Yields:
            After each batch the tracks and window lengths in seconds of which all frames are there now. A track
            that the model cannot take gets an error instead.
        """
        for excerpts in form_batches(list_frontend_inputs(inputs), lambda: self.batch_mel):
            self._run_batch(excerpts, self._encode)
        for windows in form_batches(inputs, lambda: self.batch_mel):
            self._run_batch(windows, self._compute_hidden_states)
            sound = [item for item in windows if item.track.error is None]
            yield [
                (item.track, place.window_s) for item in sound for place in item.destinations if place.ends_track
            ]
        for model_input in inputs:
            model_input.track.shared = None
            model_input.track.edges.clear()
            if model_input.track.error is not None:
                model_input.track.frames.clear()

    def _run_batch(self, batch: list[Item], compute: Callable[[list[Item]], None]) -> None:
        """Run a batch; where the device has no room for it, in parts, of which it remembers the size.

        What the device refuses for another reason is run one by one, so that the track to blame fails alone.
        """
        pending = [item for item in batch if item.track.error is None]
        size = len(pending)
        while pending:
            size = min(size, max(1, self.batch_mel // count_mel(pending[0])))
            part, rest = pending[:size], pending[size:]
            failure = _try(compute, part)
            if failure is not None and failure.reason is Reason.OUT_OF_MEMORY and self.device.type == "cuda":
                torch.cuda.empty_cache()
            if failure is not None and len(part) > 1:
                size = self._choose_smaller(part, failure)
                continue
            if failure is not None:
                part[0].track.error = self.confirm(failure)
            pending = rest

    def _choose_smaller(self, part: list[Item], failure: TrackError) -> int:
        """Return how many of a refused batch to try at once.

        Raises:
            DeviceError: The device is to blame.
        """
        if failure.reason is not Reason.OUT_OF_MEMORY:
            self.check_device()
            logger.warning("%d windows were refused and are tried one by one: %s", len(part), failure.message)
            return 1
        half = len(part) // 2
        self.batch_mel = half * count_mel(part[0])
        logger.warning(
            "%s has no room for %d windows of %d mel frames at once: from here on %d, or --batch-size %d",
            self.device,
            len(part),
            count_mel(part[0]),
            half,
            max(1, self.batch_mel // FULL_WINDOW_MEL),
        )
        return half

    def confirm(self, failure: TrackError) -> TrackError:
        """Return the failure of a track that was refused alone, once it is sure that the device is not to blame.

        Raises:
            DeviceError: It is.
        """
        if failure.reason is not Reason.OUT_OF_MEMORY:
            self.check_device()
        return failure

    def check_device(self) -> None:
        """Run a second of nothing in particular through the model.

        A GPU that has once failed refuses all that its process asks of it from then on, and one that the
        installed kernels do not fit does so from the start. Neither is to be taken for a failure of the tracks.

        Raises:
            DeviceError: The model does not run.
        """
        try:
            with torch.inference_mode():
                waveform = torch.linspace(-0.1, 0.1, SAMPLE_RATE_HZ, device=self.device)[None]
                self.model.get_hidden_states(waveform, (1,))[1].sum().item()
        except (RuntimeError, MemoryError) as error:
            where = f"{self.device} of {socket.gethostname()}"
            raise DeviceError(f"the model does not run on {where}: {_name_error(error)}") from None

    @torch.inference_mode()
    def _encode(self, batch: list[FrontendInput]) -> None:
        crop = batch[0].excerpt.crop
        for item, frames in zip(batch, encode_excerpts(self.model, self._compute_mels(batch), crop), strict=True):
            if item.first_frame is None:
                item.track.edges[item.excerpt] = frames
                continue
            if item.track.shared is None:
                num_frames = count_frames(len(item.track.waveform))
                item.track.shared = frames.new_empty(num_frames, frames.shape[1])
            item.track.shared[item.first_frame : item.first_frame + len(frames)] = frames

    @torch.inference_mode()
    def _compute_hidden_states(self, batch: list[ModelInput]) -> None:
        layers = batch[0].layers
        if batch[0].parts is None:
            frames = self.model.encode_mel(self._compute_mels(batch))
        else:
            frames = torch.stack([join_frames(item) for item in batch])
        hidden_states = self.model.encode_frames(frames, layers)
        for index, item in enumerate(batch):
            for layer in layers:
                keep_frames(item, layer, hidden_states[layer][index])

    def _compute_mels(self, batch: Sequence[FrontendInput] | Sequence[ModelInput]) -> Tensor:
        """Return (B, n_mels, num_mel) of waveforms whose lengths may differ by less than a hop or by margins."""
        mels: list[Tensor] = []
        for waveforms in self.transfer.load([item.samples for item in batch]):
            mel = self.model.compute_mel(waveforms)
            item = batch[sum(map(len, mels))]
            if isinstance(item, FrontendInput):
                mel = mel[..., item.excerpt.crop.first_mel : item.excerpt.crop.stop_mel]
            mels.append(mel)
        return mels[0] if len(mels) == 1 else torch.cat(mels)


def _try(compute: Callable[[list[Item]], None], batch: list[Item]) -> TrackError | None:
    """Run a batch; return why the device refuses it.

    The error itself is let go of: it holds all that the model had computed, which is to be free for what follows.
    """
    try:
        compute(batch)
    except (RuntimeError, MemoryError) as error:  # torch raises RuntimeError for all that a device refuses
        return describe_model_error(error)
    return None


def describe_model_error(error: Exception) -> TrackError:
    """Return the failure of a track that a device refused, taken alone."""
    out_of_memory = (
        isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or "allocate memory" in str(error).lower()
    )
    reason = Reason.OUT_OF_MEMORY if out_of_memory else Reason.EMBED_FAILED
    return TrackError(Stage.EMBED, reason, f"the model failed on this track alone: {_name_error(error)}")


def _name_error(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
