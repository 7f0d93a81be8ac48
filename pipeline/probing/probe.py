"""A probe: annotated tracks of a store, a head trained on the features of some, and measured on others'.

::

    annotations = read_annotations("genres.csv", "classification")
    result = run_probe(ProbeSettings(StoreLocation("~/features"), annotations))
    print(result.metrics["accuracy"], result.baselines["chance"]["accuracy"])
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pyarrow as pa
import torch
from torch import Tensor

from pipeline.config import RESOLUTIONS
from pipeline.errors import UsageError
from pipeline.location import StoreLocation
from pipeline.probing.annotations import FRAME_TASKS, TASK_RESOLUTIONS, TRACK_TASKS, Annotation, Annotations
from pipeline.probing.dbn import DBN, load_tracker, track_outputs
from pipeline.probing.decoding import BOUNDARY_PICKER, PEAK_PICKER, Prediction, decode
from pipeline.probing.evaluation import CHANCE, choose_thresholds, evaluate, predict_chance
from pipeline.probing.features import FeatureSet, copy_features, find_common_tracks, open_sources
from pipeline.probing.fitting import ALONE, Fit, Sharing, Targets, fit_head
from pipeline.probing.heads import Head, HeadSpec, apply_head
from pipeline.probing.matching import assign_splits, match_tracks
from pipeline.probing.metrics import PROTOCOLS, Estimate
from pipeline.probing.splits import SPLITS
from pipeline.probing.targets import choose_labels, make_targets
from pipeline.store.source import Source


@dataclass(frozen=True)
class ProbeSettings:
    """What is probed.

    Args:
        store: The feature store.
        annotations: What people say of its tracks; names the task.
        resolution: Of the features; by default the task's own.
        recipes: Whose features; of several a mix with learned weights. Empty where the store has only one.
        head: ``linear`` or ``mlp``.
        seed: Of splits, weights, order and bootstrap: the same gives the same figures.
        scratch: Folder for a copy of the features; by default the system's for temporary files.
        dbn: Whether beats are measured as a dynamic Bayesian network reads them, too.
    """

    store: StoreLocation
    annotations: Annotations
    resolution: str | None = None
    recipes: tuple[str, ...] = ()
    head: str = "linear"
    seed: int = 0
    scratch: str | None = None
    dbn: bool = False


@dataclass(frozen=True)
class ProbeResult:
    """What a probe found.

    Args:
        head: The trained head; its description holds the metrics.
        metrics: On the test tracks.
        baselines: The same of who has not listened: ``chance``, as ``evaluation.CHANCE`` says.
        num_tracks: Tracks of each split.
        split_by: Whether splits were ``given`` or made ``by artist and album``, or ``by artist`` alone.
        left_out: For each reason, tracks or rows that could not be used.
        fit: How the training went.
        seed: Of all draws.
        dbn_metrics: Metrics of the same outputs, read by a dynamic Bayesian network; None where not asked for.
    """

    head: Head
    metrics: dict[str, Estimate]
    baselines: dict[str, dict[str, Estimate]]
    num_tracks: dict[str, int]
    split_by: str
    left_out: dict[str, list[str]]
    fit: Fit
    seed: int
    dbn_metrics: dict[str, Estimate] | None = None

    def as_line(self) -> dict[str, object]:
        """Return it for JSON."""
        spec = self.head.spec
        line: dict[str, object] = {
            "task": spec.task,
            "head": spec.kind,
            "recipe": "+".join(spec.recipes),
            "resolution": spec.resolution,
            "num_train": self.num_tracks["train"],
            "num_test": self.num_tracks["test"],
            "metrics": _as_rows(self.metrics),
            "baselines": {name: _as_rows(estimates) for name, estimates in self.baselines.items()},
            "num_valid": self.num_tracks["valid"],
            "num_labels": len(spec.labels),
            "left_out": {reason: len(names) for reason, names in self.left_out.items()},
            "split": self.split_by,
            "seed": self.seed,
            "protocol": PROTOCOLS[spec.task],
            "chance": CHANCE[spec.task],
            "head_id": self.head.head_id,
        }
        if spec.task in ("beat", "structure"):
            line["peaks"] = PEAK_PICKER if spec.task == "beat" else BOUNDARY_PICKER
        if self.dbn_metrics is not None:
            line["dbn"] = {"decoder": DBN, "metrics": _as_rows(self.dbn_metrics)}
        if len(spec.recipes) > 1:
            line["mix"] = dict(zip(spec.recipes, (round(w, 4) for w in self.head.mix_weights()), strict=True))
        return line


def run_probe(settings: ProbeSettings, sharing: Sharing = ALONE) -> ProbeResult:
    """Train a head on stored features, and measure it.

    Args:
        settings: What is probed.
        sharing: With which other processes the head is trained; each of them copies the features.

    Raises:
        UsageError: No annotated track is in the store, there are too few, or a recipe has to be named.
        StorageError: The store cannot be read, or its features not be copied.
        RunError: The training broke off.
    """
    sources, matched, tracks, left_out = find_annotated(settings)
    features = copy_features(sources, tracks, settings.annotations.task in TRACK_TASKS, settings.scratch)
    return probe_features(features, matched, tracks, settings, left_out, sharing)


def find_annotated(
    settings: ProbeSettings,
) -> tuple[list[Source], dict[str, Annotation], pa.Table, dict[str, list[str]]]:
    """Find the annotated tracks in the store.

    Returns:
        A snapshot at each recipe, the annotation of each track by its id, the ledger's rows of these tracks, and
        for each reason what was left out.

    Raises:
        UsageError: There is no such track, recipe or resolution, or no network for beats, where one is asked for.
        StorageError: The store cannot be read.
    """
    annotations = settings.annotations
    if settings.dbn and annotations.task == "beat":
        load_tracker()  # before any features are read
    resolution = settings.resolution or TASK_RESOLUTIONS[annotations.task]
    if annotations.task in FRAME_TASKS and RESOLUTIONS[resolution].frame_rate_hz is None:
        raise UsageError(f"expected a resolution with frames for the task {annotations.task}, found {resolution}")
    sources = open_sources(settings.store, resolution, settings.recipes)
    ledger = find_common_tracks(sources)
    matched, left_out = match_tracks(annotations, ledger)
    is_matched = [track_id in matched for track_id in ledger.column("track_id").to_pylist()]
    return sources, matched, ledger.filter(pa.array(is_matched, pa.bool_())), left_out


def probe_features(
    features: FeatureSet,
    annotations: dict[str, Annotation],
    tracks: pa.Table,
    settings: ProbeSettings,
    left_out: dict[str, list[str]] | None = None,
    sharing: Sharing = ALONE,
) -> ProbeResult:
    """Train and measure a head on features, wherever they come from (``features.from_arrays``).

    Args:
        features: Of annotated tracks.
        annotations: Of each, by track id.
        tracks: track_id, artist and album of each, for splits; in any order.
        settings: ``annotations.task``, ``head`` and ``seed`` count here.
        left_out: To be told with the result.
        sharing: With which other processes the head is trained.

    Raises:
        UsageError: There are too few tracks, or all have one label.
        RunError: The training broke off.
    """
    task, seed = settings.annotations.task, settings.seed
    said = [annotations[track_id] for track_id in features.track_ids]
    splits, split_by = assign_splits(task, features.track_ids, said, tracks, seed)
    parts = {name: [track for track, split in enumerate(splits) if split == name] for name in SPLITS}
    train, valid, test = ([said[track] for track in parts[name]] for name in SPLITS)
    labels = choose_labels(task, train)
    _check_labels(task, labels, train)
    spec = HeadSpec(task, settings.head, features.recipes, features.resolution, features.embed_dim, labels)
    targets = [
        make_targets(task, labels, annotation, int(length), features.frame_rate_hz)
        for annotation, length in zip(said, features.lengths, strict=True)
    ]
    head = Head(spec)
    fit = _fit(head, features, targets, parts, seed, sharing)
    if task in FRAME_TASKS:
        answers = [apply_head(head, features.read(track), features.frame_rate_hz) for track in parts["valid"]]
        spec = choose_thresholds(spec, answers, valid, features.frame_rate_hz)
    outputs = [apply_head(head, features.read(track), features.frame_rate_hz) for track in parts["test"]]
    predictions = [decode(spec, values, features.frame_rate_hz) for values in outputs]
    metrics = evaluate(task, labels, test, predictions, seed)
    chance = evaluate(task, labels, test, _guess(task, labels, train, features, parts["test"]), seed)
    tracked = None
    if settings.dbn and task == "beat":
        assert features.frame_rate_hz is not None
        tracked = track_outputs(outputs, features.frame_rate_hz)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    head.spec = replace(spec, metrics=_as_rows(metrics), date=date)
    return ProbeResult(
        head,
        metrics,
        {"chance": chance},
        {name: len(members) for name, members in parts.items()},
        split_by,
        left_out or {},
        fit,
        seed,
        evaluate(task, labels, test, tracked, seed) if tracked is not None else None,
    )


def _fit(
    head: Head,
    features: FeatureSet,
    targets: list[Tensor],
    parts: dict[str, list[int]],
    seed: int,
    sharing: Sharing,
) -> Fit:
    """Fit a head; numbers are fitted in units of their own spread, which then becomes part of the head."""
    if head.spec.task != "regression":
        return fit_head(head, features, Targets.join(targets), parts["train"], parts["valid"], seed, sharing)
    known = torch.cat([targets[number] for number in parts["train"]])
    mean, std = known.mean(), known.std().clamp_min(1e-6)
    scaled = Targets.join([(rows - mean) / std for rows in targets])
    fit = fit_head(head, features, scaled, parts["train"], parts["valid"], seed, sharing)
    last = head.layers[-1]
    assert isinstance(last, torch.nn.Linear)
    with torch.no_grad():
        last.weight.mul_(std)
        last.bias.mul_(std).add_(mean)
    return fit


def _guess(
    task: str, labels: Sequence[str], train: Sequence[Annotation], features: FeatureSet, test: Sequence[int]
) -> list[Prediction]:
    rate_hz = features.frame_rate_hz or 1.0
    return predict_chance(task, labels, train, [float(features.lengths[number]) / rate_hz for number in test])


def _check_labels(task: str, labels: Sequence[str], train: Sequence[Annotation]) -> None:
    """Refuse what nothing can be learnt from."""
    few = {"classification": 2, "tagging": 1, "structure": 1}.get(task, 0)
    if len(labels) < few:
        known = ", ".join(labels) or "none"
        raise UsageError(
            f"expected {'two different labels' if task == 'classification' else 'a label'} or more among the "
            f"{len(train)} tracks to train on, found {known}: a head that can say one thing only needs no training"
        )
    if task == "regression" and len({annotation.number for annotation in train}) < 2:
        raise UsageError(
            f"expected different numbers among the {len(train)} tracks to train on, found "
            f"{train[0].labels[0]} alone"
        )


def _as_rows(estimates: dict[str, Estimate]) -> dict[str, dict[str, float | None]]:
    return {name: estimate.as_row() for name, estimate in estimates.items()}
