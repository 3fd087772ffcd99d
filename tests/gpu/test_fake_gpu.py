"""The device that is not there is built for the environment that runs the tests."""

from __future__ import annotations

from pathlib import Path

from tests.gpu.fake_gpu import device_path


def test_every_environment_builds_its_own_device() -> None:
    first, second = (Path(name, "lib/site-packages/torch") for name in ("/first", "/second"))
    assert device_path("CUDA", first) != device_path("CUDA", second)
