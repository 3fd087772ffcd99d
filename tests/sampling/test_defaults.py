"""The command, the library and the sampling parameters begin with the same values."""

from __future__ import annotations

import inspect

from gptcli.api import generate as of_library
from gptcli.cli.sample import OPTIONS
from gptcli.sampling.defaults import MAX_TOKENS, TEMPERATURE, TOP_K
from gptcli.sampling.generate import generate
from gptcli.sampling.params import PRESETS, SamplingParams, sampling_params


def test_the_command_and_the_library_share_their_defaults() -> None:
    for function in (generate, of_library):
        assert inspect.signature(function).parameters["max_tokens"].default == MAX_TOKENS
    shown = {name: OPTIONS[name].shown for name in ("max_tokens", "temperature", "top_k")}
    assert shown == {"max_tokens": "200", "temperature": "1", "top_k": "40, or all with --top-p"}
    assert sampling_params({"greedy": False}).top_k == TOP_K == PRESETS["gpt2"]["top_k"]
    assert SamplingParams().temperature == TEMPERATURE
