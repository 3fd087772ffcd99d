"""Round trips of models through transformers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gptcli.model.safetensors_io import load_model, save_model
from gptcli.model.transformer import GPT

IDX = torch.randint(0, 301, (2, 40), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def leaves(tmp_path: Path) -> Callable[..., Any]:
    """Save a model into tmp_path, load it in transformers as the class `kind`, and return that.

    Every tensor must be loaded, none may be missing, and the logits must be equal.
    """
    from transformers import AutoModelForCausalLM

    def check(model: GPT, kind: type[nn.Module], tolerance: float) -> Any:
        save_model(tmp_path, model, model.config, eot_id=0)
        loaded: Any = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
        theirs, info = loaded
        assert isinstance(theirs, kind)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        with torch.no_grad():
            assert (theirs.eval()(IDX).logits - model(IDX)).abs().max().item() < tolerance
        return theirs

    return check


@pytest.fixture
def comes_back(tmp_path: Path) -> Callable[..., GPT]:
    """Save a random transformers model, load it here, save it again, and return our model.

    The logits must be equal, and every tensor the same to the bit.
    """
    from safetensors.torch import load_file

    def check(theirs: Any, tolerance: float) -> GPT:
        torch.manual_seed(0)
        for parameter in theirs.eval().parameters():
            torch.nn.init.normal_(parameter, 0.1, 0.1)
        theirs.save_pretrained(tmp_path / "theirs")
        model = load_model(tmp_path / "theirs")
        with torch.no_grad():
            assert (theirs(IDX).logits - model(IDX)).abs().max().item() < tolerance
        save_model(tmp_path / "ours", model, model.config)
        one, other = (
            load_file(tmp_path / folder / "model.safetensors") for folder in ("theirs", "ours")
        )
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
        return model

    return check
