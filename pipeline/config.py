"""What is computed (resolutions, windows, the recipe) and the constants that every rate derives from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

from musicfm_model import constants
from musicfm_model.constants import Precision as Precision

if TYPE_CHECKING:  # these bring Arrow, for which whoever only asks for names need not wait
    from pipeline.location import StoreLocation
    from pipeline.storage import Options

SAMPLE_RATE_HZ = constants.SAMPLE_RATE
HOP_LENGTH = constants.HOP_LENGTH
SAMPLES_PER_FRAME = constants.SAMPLES_PER_TOKEN
FRAME_RATE_HZ = SAMPLE_RATE_HZ / SAMPLES_PER_FRAME
MIN_SAMPLES = constants.MIN_SAMPLES

SHARED_WINDOW_S = 30.0  # the pretraining length (paper, section 3.1)

WindowPolicy = Literal["shared", "task"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

MATHS_VERSION = 2
"""Raised whenever the same input would give other stored values: part of every recipe.

2: FFmpeg decodes what libsndfile did, which moves opus (docs/decisions/0024); in half types the Conformer's batch
norms are folded in float32, and its rotary tables stay in it (0020).
"""


@dataclass(frozen=True)
class Resolution:
    """A rate at which features are stored.

    Args:
        name: As users and the ``resolution`` partition spell it.
        frame_rate_hz: Frames a second; None for one vector a track.
        task_window_s: The input length of the paper's probe at this rate (README of the published code,
            "Usage in downstream tasks"), used under ``windows="task"``.
    """

    name: str
    frame_rate_hz: float | None
    task_window_s: float


RESOLUTIONS: dict[str, Resolution] = {
    resolution.name: resolution
    for resolution in (
        Resolution("50hz", 50.0, 6.0),  # beats
        Resolution("25hz", 25.0, 6.0),  # the model's own frames: those that 50hz repeats
        Resolution("16hz", 16.0, 12.0),  # chords
        Resolution("8hz", 8.0, 24.0),  # structure
        Resolution("0.5hz", 0.5, 12.0),  # key
        Resolution("global", None, 29.1),  # tags
    )
}
DEFAULT_RESOLUTIONS = ("50hz", "16hz", "8hz", "0.5hz", "global")


def window_length_s(resolution: Resolution, windows: WindowPolicy) -> float:
    """Return the model's input length in seconds for one resolution under a window policy."""
    return SHARED_WINDOW_S if windows == "shared" else resolution.task_window_s


def list_window_lengths_s(resolutions: Iterable[str], windows: WindowPolicy) -> set[float]:
    """Return the different input lengths in seconds that resolutions take: one pass over a track each."""
    return {window_length_s(RESOLUTIONS[name], windows) for name in resolutions}


EXPORT_FORMATS = ("webdataset", "huggingface")
DEFAULT_DEAD_SHARE = 0.2  # a part of which more is dead is rewritten
DEFAULT_INDEX_CACHE = "~/.cache/musicfm-index"


@dataclass(frozen=True)
class ResamplerSettings:
    """``torchaudio.transforms.Resample``'s defaults, spelled out because they move embeddings measurably."""

    method: str = "sinc_interp_hann"
    lowpass_filter_width: int = 6
    rolloff: float = 0.99


@dataclass(frozen=True)
class Recipe:
    """Everything that changes a stored value, and nothing about scheduling.

    Two runs with the same recipe store the same values (to the last kept bit or one unit of it) whatever
    the cluster, the batch size or the attention back end. Which resolutions are kept is no part of it: they
    are views of the same frames, and ``tracks.resolutions`` says which are there.

    Args:
        weights_sha256: SHA-256 over the model's tensors and normalisation statistics
            (``musicfm_model.checkpoint``), the same for a ``.pt`` file and its ``.safetensors`` twin.
        layer: Hidden state that is stored: 0 is the convolutional front end's output.
        windows: Window policy.
        precision: Arithmetic of the model; the mel front end is float32 in all of them.
        mantissa_bits: Mantissa bits kept of each stored float32.
        resampler: Settings of the resampler.
        sample_rate_hz: The model's input rate.
        channels: How channels become one.
        pooling: Name of the pooling grid.
        maths_version: Of the code.
    """

    weights_sha256: str
    layer: int
    windows: WindowPolicy = "shared"
    precision: Precision = "float32"
    mantissa_bits: int = 10
    resampler: ResamplerSettings = field(default_factory=ResamplerSettings)
    sample_rate_hz: int = SAMPLE_RATE_HZ
    channels: str = "mean"
    pooling: str = "adaptive_average_on_track_grid"
    maths_version: int = MATHS_VERSION

    @property
    def definition(self) -> str:
        """The recipe as canonical JSON, as the ``recipes`` table keeps it."""
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @property
    def recipe_id(self) -> str:
        """``musicfm-l<layer>-<16 hex digits>``: never a number, so that no reader takes the partition for one."""
        digest = hashlib.sha256(self.definition.encode()).hexdigest()
        return f"musicfm-l{self.layer}-{digest[:16]}"


@dataclass(frozen=True)
class PruneLimit:
    """How many tracks ``prune`` may delete: more is taken for a mistake, and none is.

    Args:
        share: Of the tracks of the run's recipes.
        number: Of tracks, in place of a share.
    """

    share: float = 0.1
    number: int | None = None

    def allows(self, num_leaving: int, num_held: int) -> bool:
        """Say whether so many of so many tracks may leave."""
        allowed = self.share * num_held + 1e-6 if self.number is None else self.number  # a tenth of 30 is 3
        return num_leaving <= allowed

    @classmethod
    def parse(cls, text: str) -> PruneLimit:
        """Read a share such as ``25%``, or a number of tracks.

        Raises:
            ValueError: It is neither.
        """
        number, percent, rest = text.strip().partition("%")
        if rest or not number.replace(".", "", 1 if percent else 0).isdecimal():
            raise ValueError(f"expected a share such as 25% or a number of tracks, found {text!r}")
        return cls(share=float(number) / 100) if percent else cls(number=int(number))


@dataclass(frozen=True)
class Shard:
    """One of several drivers that share a run.

    Args:
        number: Which, from 1 on.
        of: How many there are.
    """

    number: int
    of: int

    def __str__(self) -> str:
        """Return it as it is written: ``2/4``."""
        return f"{self.number}/{self.of}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """Read what is written as ``2/4``.

        Raises:
            ValueError: It is not.
        """
        number, _, of = text.strip().partition("/")
        if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
            raise ValueError(f"expected the number of a shard and how many there are, such as 2/4, found {text!r}")
        return cls(int(number), int(of))


def check_catalog_name(name: str) -> str:
    """Return a name that may stand before the ids of a catalog's tracks.

    Raises:
        ValueError: It may not: with a slash in it one catalog's name could be the beginning of another's.
    """
    if not isinstance(name, str) or not name or name != name.strip() or "/" in name or not name.isprintable():
        raise ValueError(f"expected a name without / and without blanks at its ends, found {name!r}")
    return name


@dataclass(frozen=True)
class RunSettings:
    """What a run computes, from where, to where, and on what.

    Args:
        store: The feature store.
        checkpoint: ``msd``, ``fma`` or any fsspec URL of a checkpoint.
        stats: URL of the normalisation file, where it does not lie beside the checkpoint.
        layers: Hidden states to store; each gives a recipe.
        resolutions: Names of ``config.RESOLUTIONS``.
        windows: Window policy.
        precision: Arithmetic of the model.
        mantissa_bits: Mantissa bits kept of each stored value.
        attention: Attention back end.
        audio_options: File system options for reading audio; never logged.
        device: ``cuda`` or ``cpu``; by default what the cluster has.
        num_gpus: GPUs to use; by default those that the cluster has.
        batch_size: Windows in one call of the model; by default what fits the device.
        max_duration_s: Tracks longer than this fail.
        commit_interval_s: Seconds between commits while the run goes on, at the least.
        stall_timeout_s: Without any result for so long, the run ends.
        retry_failures: Try files again that failed before and have not changed.
        catalog: Name that goes before the ids of the catalog's tracks, for several catalogs in one store.
        prune: Take tracks out of the ledger that the catalog no longer has; where it has a name, of those alone
            whose ids stand behind it.
        prune_limit: How many of them at most; more, and all stay.
        shard: Which driver of a run that several share; None of a run of its own.
        configuration: The command's flags as they were in effect, without secrets: kept with the run.
    """

    store: StoreLocation
    checkpoint: str
    stats: str | None = None
    layers: tuple[int, ...] = (7,)
    resolutions: tuple[str, ...] = DEFAULT_RESOLUTIONS
    windows: WindowPolicy = "shared"
    precision: Precision = "float32"
    mantissa_bits: int = 10
    attention: str = "sdpa"
    audio_options: Options | None = field(default=None, repr=False)
    device: str | None = None
    num_gpus: int | None = None
    batch_size: int | None = None
    max_duration_s: float = 7200.0
    commit_interval_s: float = 60.0
    stall_timeout_s: float = 3600.0
    retry_failures: bool = False
    catalog: str | None = None
    prune: bool = False
    prune_limit: PruneLimit = PruneLimit()
    shard: Shard | None = None
    configuration: Mapping[str, object] = field(default_factory=dict)
