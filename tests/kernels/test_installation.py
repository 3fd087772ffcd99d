"""The names of `gptcli.kernels` are those of its modules; tests/test_kernels.py installs them."""

from __future__ import annotations

import pytest

from gptcli import kernels
from gptcli.kernels import installation


def test_every_name_of_the_package_is_found_when_it_is_used() -> None:
    assert all(getattr(kernels, name) is not None for name in kernels.__all__)
    assert kernels.install is installation.install
    with pytest.raises(AttributeError, match=r"'gptcli\.kernels' has no attribute 'missing'"):
        _ = kernels.missing
