import math

import pytest

from pipeline.location import StoreLocation
from pipeline.service.serve import share_gpus
from pipeline.service.state import ServiceSettings


def settings(checkpoint: str | None = "msd", device: str | None = None) -> ServiceSettings:
    return ServiceSettings(StoreLocation("store"), checkpoint=checkpoint, device=device)


@pytest.mark.parametrize("num_gpus", [1, 2, 3, 8])
@pytest.mark.parametrize("num_replicas", [1, 2, 3, 4, 5, 16])
def test_every_replica_gets_its_part_of_one_gpu(num_gpus: int, num_replicas: int) -> None:
    share = share_gpus(settings(), num_replicas, float(num_gpus))
    assert 0 < share <= 1
    assert num_gpus * math.floor(1 / share + 1e-9) >= num_replicas


@pytest.mark.parametrize(
    ("given", "num_gpus"), [(settings(None), 2.0), (settings(device="cpu"), 2.0), (settings(), 0.0)]
)
def test_no_gpu_is_reserved_where_none_is_used(given: ServiceSettings, num_gpus: float) -> None:
    assert share_gpus(given, 2, num_gpus) == 0.0
