"""Decoding on a GPU that is not there: what a recorded pass launches and reads."""

from __future__ import annotations

from typing import Any

import pytest

from tests.extent import WHOLE
from tests.gpu.conftest import Rehearse

PASSES: dict[str, dict[str, Any]] = {
    "bf16": {},
    "int8": {"quantize": "int8"},
    "int8 compiled": {"compiled": True, "n_layer": 2, "quantize": "int8", "rows": 4},
}
if WHOLE:
    PASSES["bf16 compiled"] = {"compiled": True, "n_layer": 2}


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_reads_the_weights_once_and_copies_no_cache(rehearse: Rehearse, name: str) -> None:
    report = rehearse("decode", **PASSES[name])
    names = report["pass"]["names"]
    assert report["graph_breaks"] == 0
    copies = [kind for kind in names if kind in ("clone", "_to_copy", "copy_", "contiguous")]
    for kind in copies:
        count, size = names[kind]
        assert size / count < report["cache_of_a_layer"] / 2, kind


def test_int8_reads_a_byte_a_weight(rehearse: Rehearse) -> None:
    """No layer is converted to bf16 on the way to its product."""
    for name in ("int8", "int8 compiled"):
        report = rehearse("decode", **PASSES[name])
        assert "mm" not in report["pass"]["names"]
        assert "addmm" not in report["pass"]["names"]


def test_a_layer_is_five_kernels(rehearse: Rehearse) -> None:
    """Half of the 134 launches that the compiled pass took before; registers are not spilled."""
    for name in ("bf16", "int8"):
        report = rehearse("decode", **PASSES[name])
        names = report["pass"]["names"]
        assert names["triton_product"][0] == 4 * 12 + 1
        assert names["triton_attention"][0] == 12
        assert sum(report["pass"]["launches"].values()) <= 134 // 2
        assert report["resources"]
        assert all(kernel["spilled"] == 0 for kernel in report["resources"])
