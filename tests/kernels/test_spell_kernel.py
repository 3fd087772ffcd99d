"""Token ids in decimal by the kernel; `tests/shards/test_token_ids.py` compares any documents."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from gptcli.kernels import spell_kernel
from gptcli.kernels.spell_kernel import spell_ids


def test_documents_end_where_their_stops_are_and_empty_ones_are_lines() -> None:
    if (spell := spell_ids(50_257)) is None:
        pytest.skip("no compiler here")
    ids = np.array([50_256, 0, 7, 999, 1_000], np.uint32)
    assert bytes(spell(ids, np.array([0, 2, 2, 3]), 0, 0)) == b"\n50256 0\n\n7\n999 1000 "
    assert bytes(spell(ids[:1], np.array([9, 9]), 8, 5)) == b"50256\n\n"
    assert bytes(spell(ids[:0], np.array([], np.int64), 0, 0)) == b""
    with pytest.raises(IndexError, match="the id 50257 is outside a vocabulary of 50257"):
        spell(np.array([50_257]), np.array([1]), 0, 0)


def test_none_without_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spell_kernel, "library", lambda _: None)
    assert spell_ids(300) is None


def test_it_needs_no_pytorch() -> None:
    program = (
        "import sys\nfrom gptcli.optional_kernels import spell_ids\nspell_ids(300)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
