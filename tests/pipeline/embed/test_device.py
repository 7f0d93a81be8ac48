import pytest
import torch

from pipeline.config import Recipe, RunSettings
from pipeline.embed.device import choose_batch_size, require_cuda
from pipeline.embed.embedder import choose_embedder_settings
from pipeline.errors import DeviceError
from pipeline.location import StoreLocation

needs_none = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")


@needs_none
def test_a_reserved_gpu_that_cannot_be_used_is_an_error_that_names_driver_and_wheel() -> None:
    with pytest.raises(DeviceError, match=rf"PyTorch {torch.__version__.split('+')[0]}.*CUDA.*driver"):
        require_cuda()


@needs_none
def test_an_embedder_for_a_gpu_does_not_settle_for_the_processor() -> None:
    settings = RunSettings(StoreLocation("store"), "msd", device="cuda")
    with pytest.raises(DeviceError, match="a GPU is reserved for the model"):
        choose_embedder_settings({"musicfm-l7-a": Recipe("00" * 32, 7)}, settings)


def test_a_processor_takes_one_window_at_a_time() -> None:
    assert choose_batch_size("cpu", "float32") == 1


@pytest.mark.parametrize(("free_gb", "expected"), [(80.0, 8), (6.0, 3), (0.5, 1)])
def test_a_gpu_takes_what_fits(monkeypatch: pytest.MonkeyPatch, free_gb: float, expected: int) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (int(free_gb * 1e9), int(80e9)))
    assert choose_batch_size("cuda", "float32") == expected
