"""Query by audio: a file's bytes to the vectors that the catalog would hold of it.

Decoding, windows, model, pooling and rounding are the catalog's own code, with the settings of the index's recipe:
a file of the catalog gives the very vectors that are stored. (A short clip is given surroundings first.)
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from musicfm_model.attention import check_attention
from musicfm_model.checkpoint import Checkpoint
from pipeline.config import RESOLUTIONS, SAMPLE_RATE_HZ, Recipe, window_length_s
from pipeline.decode.audio import decode_audio
from pipeline.embed.checkpoint import load_checkpoint
from pipeline.embed.device import choose_batch_size, choose_device
from pipeline.embed.embedder import Embedder, EmbedderSettings
from pipeline.errors import Reason, Stage, TrackError, UsageError
from pipeline.search.recognise import MOMENTS, EmbeddedFile
from pipeline.store.parts import round_mantissa

Matrix = npt.NDArray[np.float32]

MIN_LAST_FRAME_SHARE = 0.5


class AudioQuery:
    """The catalog's model, ready to embed files that are not in it.

    Args:
        checkpoint: Weights and statistics.
        recipe_id: The index's recipe.
        definition: That recipe as JSON, as ``Recipe.definition`` writes it.
        device: Torch device; by default a GPU if there is one.
        max_duration_s: Longer files are refused.

    Raises:
        UsageError: The checkpoint, or this version of the code, would give other vectors than the index holds.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        recipe_id: str,
        definition: str,
        device: str | None = None,
        max_duration_s: float = 7200.0,
    ) -> None:
        recipe = match_recipe(checkpoint.sha256, recipe_id, definition)
        try:
            check_attention("sdpa", recipe.precision)
        except ValueError as error:
            raise UsageError(str(error)) from error
        self.recipe = recipe
        self.max_duration_s = max_duration_s
        device = device or choose_device()
        self.embedder = Embedder(
            checkpoint,
            EmbedderSettings(
                layers={recipe_id: recipe.layer},
                windows=recipe.windows,
                precision=recipe.precision,
                device=device,
                batch_size=choose_batch_size(device, recipe.precision),
            ),
        )

    @classmethod
    def load(
        cls,
        checkpoint: str,
        recipe_id: str,
        definition: str,
        stats: str | None = None,
        device: str | None = None,
        max_duration_s: float = 7200.0,
    ) -> AudioQuery:
        """Load the checkpoint that a name or URL stands for; the other arguments are the class's.

        Args:
            checkpoint: ``msd``, ``fma`` or any fsspec URL.
            recipe_id: The index's recipe.
            definition: That recipe as JSON.
            stats: URL of the normalisation file, where it does not lie beside the checkpoint.
            device: Torch device.
            max_duration_s: Longer files are refused.

        Raises:
            UsageError: It would give other vectors than the index holds.
            CheckpointError: It is no checkpoint, or not whole.
        """
        return cls(load_checkpoint(checkpoint, stats), recipe_id, definition, device, max_duration_s)

    def embed(
        self,
        data: bytes,
        resolution: str,
        is_stored: bool = False,
        start_s: float | None = None,
        end_s: float | None = None,
    ) -> EmbeddedFile:
        """Embed a file or a section of it: decode it, then ``embed_waveform``.

        Args:
            data: The whole file, in any codec that the catalog takes.
            resolution: Name of the index's resolution.
            is_stored: The catalog holds this very file: its vectors are wanted as they are stored. Of a section
                it holds none.
            start_s: The section's start; by default the file's.
            end_s: The section's end; by default the file's.

        Raises:
            TrackError: The file cannot be decoded, has no such section, or the model cannot take it.
        """
        waveform = decode_audio(data, self.max_duration_s).waveform
        if start_s is None and end_s is None:
            return self.embed_waveform(waveform, resolution, is_stored)
        return self.embed_waveform(cut_section(waveform, start_s, end_s), resolution)

    def embed_waveform(
        self, waveform: Matrix, resolution: str, is_stored: bool = False, also: Sequence[str] = ()
    ) -> EmbeddedFile:
        """Embed what was decoded, as an index of some resolution is asked.

        Args:
            waveform: float32, shape (num_samples,), mono at 24 kHz, as ``audio.decode_audio`` gives it.
            resolution: Name of the index's resolution.
            is_stored: The catalog holds this very file: its vectors are wanted as they are stored.
            also: Resolutions that are wanted beside, as a catalog would store them.

        Raises:
            TrackError: The model cannot take it.
        """
        rate_hz = RESOLUTIONS[resolution].frame_rate_hz
        if rate_hz is None or is_stored:
            vectors = self._embed_as_stored(waveform, [resolution, *also])
            moments = None if is_stored else self._embed_passage(waveform, MOMENTS)
            return EmbeddedFile(vectors[resolution], moments, vectors)
        beside = self._embed_as_stored(waveform, also) if also else {}
        return EmbeddedFile(self._embed_passage(waveform, resolution), None, beside)

    def _embed_passage(self, waveform: Matrix, resolution: str) -> Matrix:
        """Return a clip's frames as they would be within a track.

        A clip that is shorter than the model's window is continued at both ends by its own mirror image before its
        frames are computed: within a track they had music around them, and frames beside an edge come out
        otherwise. A last frame that the clip fills by less than half is left out.

        Raises:
            TrackError: The model cannot take it.
        """
        num_samples = round(window_length_s(RESOLUTIONS[resolution], self.recipe.windows) * SAMPLE_RATE_HZ)
        num_frames = count_filled_frames(len(waveform), resolution)
        num_missing = num_samples - len(waveform)
        if num_missing <= 0:
            return self._embed_as_stored(waveform, [resolution])[resolution][:num_frames]
        samples_per_frame = SAMPLE_RATE_HZ / (RESOLUTIONS[resolution].frame_rate_hz or 1)
        first = int(num_missing / 2 / samples_per_frame)  # whole frames, so that the clip keeps its grid
        num_before = round(first * samples_per_frame)
        mirrored = np.pad(waveform, (num_before, num_missing - num_before), mode="symmetric")
        return self._embed_as_stored(mirrored, [resolution])[resolution][first : first + num_frames]

    def _embed_as_stored(self, waveform: Matrix, resolutions: Sequence[str]) -> dict[str, Matrix]:
        """Return features by resolution, rounded, as the catalog would store them.

        Raises:
            TrackError: The model cannot take it.
        """
        names = {f"{self.recipe.recipe_id}/{resolution}": resolution for resolution in resolutions}
        embedded = self.embedder.embed_waveform(waveform, list(names))
        return {
            names[name]: round_mantissa(vectors, self.recipe.mantissa_bits) for name, vectors in embedded.items()
        }


def match_recipe(weights_sha256: str, recipe_id: str, definition: str) -> Recipe:
    """Return the recipe by which a model embeds as an index was embedded.

    Args:
        weights_sha256: Hash of the model's weights and statistics.
        recipe_id: The index's recipe.
        definition: That recipe as JSON.

    Raises:
        UsageError: The weights are others, or this version of the code computes by another recipe.
    """
    fields = json.loads(definition)
    if fields["weights_sha256"] != weights_sha256:
        raise UsageError(
            f"expected the checkpoint that the index was made with (recipe {recipe_id}, weights "
            f"{fields['weights_sha256'][:16]}…), found one with weights {weights_sha256[:16]}…; vectors of "
            "different models cannot be compared: give that --checkpoint, or build the index of another --recipe"
        )
    # What this code would do, beside what the run's settings chose: resampler, pooling, maths are today's.
    recipe = Recipe(
        weights_sha256, fields["layer"], fields["windows"], fields["precision"], fields["mantissa_bits"]
    )
    if recipe.recipe_id != recipe_id:
        today = json.loads(recipe.definition)
        changed = ", ".join(
            f"{name} {fields.get(name)!r} (here {today.get(name)!r})"
            for name in sorted(set(fields) | set(today))
            if fields.get(name) != today.get(name)
        )
        raise UsageError(
            f"expected the index's recipe {recipe_id}, found {recipe.recipe_id}, which this version computes: "
            f"{changed}; embed the catalog again, or query with the version that made it"
        )
    return recipe


def cut_section(waveform: Matrix, start_s: float | None, end_s: float | None) -> Matrix:
    """Cut a section out of a waveform.

    Args:
        waveform: float32, shape (num_samples,), at 24 kHz.
        start_s: Its start; None for the beginning.
        end_s: Its end, which may lie past the waveform's; None for the end.

    Raises:
        TrackError: It begins before the waveform, or not before its own or the waveform's end.
    """
    duration_s = len(waveform) / SAMPLE_RATE_HZ
    first_s = 0.0 if start_s is None else start_s
    last_s = duration_s if end_s is None else min(end_s, duration_s)
    if not 0 <= first_s < last_s:
        end = "its end" if end_s is None else f"{end_s:g} s"
        raise TrackError(
            Stage.DECODE,
            Reason.TOO_SHORT,
            f"expected a section within its {duration_s:g} s, found {first_s:g} s to {end}",
        )
    return waveform[round(first_s * SAMPLE_RATE_HZ) : round(last_s * SAMPLE_RATE_HZ)]


def count_filled_frames(num_samples: int, resolution: str) -> int:
    """Return how many frames of a clip take part in a search: a last one that is nearly empty says little.

    Args:
        num_samples: Length of the waveform at 24 kHz.
        resolution: Name of the resolution.

    Returns:
        At least one.
    """
    rate_hz = RESOLUTIONS[resolution].frame_rate_hz
    if rate_hz is None:
        return 1
    return max(1, math.floor(num_samples / SAMPLE_RATE_HZ * rate_hz + 1 - MIN_LAST_FRAME_SHARE))
