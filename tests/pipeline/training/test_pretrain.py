"""A group of workers takes the same steps as one worker that has all the micro-batches."""

import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from pipeline.training.corpus import HELD_OUT, open_corpus
from pipeline.training.course import Intervals
from pipeline.training.group import average_figures
from pipeline.training.loop import TrainingRun, build_model
from pipeline.training.worker import Worker
from tests.pipeline.training.corpora import RECIPE, SIZES, open_train, write_corpus

SHARED = replace(RECIPE, num_steps=4, num_slots=2)


def train_part(rank: int, num_workers: int, corpus_folder: str, folder: str, port: int) -> None:
    torch.set_num_threads(1)
    train = open_train(Path(corpus_folder))
    model = build_model(SIZES, SHARED, train.measure_stats(), Path(folder) / f"worker-{rank}")
    worker = Worker(torch.device("cpu"))
    if num_workers > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        dist.init_process_group("gloo", rank=rank, world_size=num_workers)
        worker = Worker(torch.device("cpu"), rank, num_workers, DistributedDataParallel, average_figures)
    intervals = Intervals(report=1, gates=0, save=4)
    held_out = open_corpus(Path(corpus_folder), HELD_OUT)
    TrainingRun(model, train, held_out, Path(folder), intervals, worker).run()
    if num_workers > 1:
        dist.destroy_process_group()


@pytest.mark.slow
def test_two_workers_are_as_one(tmp_path: Path) -> None:
    corpus_folder = write_corpus(tmp_path / "corpus")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    train_part(0, 1, str(corpus_folder), str(tmp_path / "one"), port)
    arguments = (2, str(corpus_folder), str(tmp_path / "two"), port)
    spawn(train_part, arguments, nprocs=2)  # type: ignore[no-untyped-call]
    one, two = (torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("one", "two"))
    losses = [[line["cross_entropy"] for line in state["curve"]] for state in (one, two)]
    print(losses)
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for name, parameter in one["model"].items():
        if "running" not in name and "tracked" not in name:  # one worker sees all crops, the first of two half
            assert torch.allclose(parameter.float(), two["model"][name].float(), rtol=1e-3, atol=1e-5), name
