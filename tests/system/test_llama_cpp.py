"""llama.cpp's converter reads a saved model folder.

LLAMA_CPP names a checkout of llama.cpp; the packages that its converter imports (gguf,
transformers, and for some models sentencepiece) must be installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from gptcli.model.config import ModelConfig
from gptcli.model.safetensors_io import save_model
from gptcli.model.transformer import GPT

LLAMA_CPP = Path(os.environ.get("LLAMA_CPP", "absent"))


@pytest.mark.skipif(
    not (LLAMA_CPP / "convert_hf_to_gguf.py").is_file(),
    reason="set LLAMA_CPP to a checkout of llama.cpp",
)
def test_llama_cpp_converter_reads_every_tensor(tmp_path, real_data):
    from gptcli.tokenizer.load import load_tokenizer

    config = ModelConfig(n_layer=2, n_head=2, d_model=32, n_ctx=48, vocab_size=50257)
    torch.manual_seed(0)
    model = GPT(config)
    save_model(tmp_path, model, config, eot_id=50256)
    load_tokenizer(real_data / "gpt2-vocab").save(tmp_path / "tokenizer.json")
    path = os.pathsep.join([str(LLAMA_CPP / "gguf-py"), str(LLAMA_CPP)])
    done = subprocess.run(
        [sys.executable, LLAMA_CPP / "convert_hf_to_gguf.py", tmp_path, "--outtype", "f32", "--outfile", tmp_path / "model.gguf"],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    sys.path.insert(0, str(LLAMA_CPP / "gguf-py"))
    from gguf import GGUFReader

    reader = GGUFReader(tmp_path / "model.gguf")
    theirs = {tensor.name: tensor.data for tensor in reader.tensors}
    state = {
        name: value.detach().numpy()
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
    assert (
        sum(value.size for value in theirs.values())
        == sum(value.size for value in state.values())
        == config.parameters
    )
    for value in state.values():
        assert any(
            value.size == other.size and np.array_equal(np.sort(value, None), np.sort(other, None))
            for other in theirs.values()
        )
    np.testing.assert_array_equal(theirs["token_embd.weight"], state["wte.weight"])
    assert reader.fields["gpt2.context_length"].parts[-1][0] == 48
