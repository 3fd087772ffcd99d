"""Tests of the place of a process in a launch: whole or not at all."""

from __future__ import annotations

import itertools
import os
import pwd
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptcli import runtime
from gptcli.errors import UsageError
from gptcli.runtime import (
    OPEN_MPI,
    SLURM,
    Launch,
    is_main,
    is_main_on_node,
    launch_environment,
    restarted,
    set_cuda_arithmetic,
    unused_launch,
)

TORCH = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "node1",
    "MASTER_PORT": "29500",
}
STEP = {"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "4", "SLURM_LOCALID": "1"}
MPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
ADDRESS = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
NAMES = (*TORCH, *STEP, *MPI, "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")


def subsets(table):
    names = list(table)
    for chosen in itertools.product((False, True), repeat=len(names)):
        yield {name: table[name] for name, take in zip(names, chosen, strict=True) if take}


def answer(environ):
    try:
        return launch_environment(environ)
    except UsageError as error:
        return str(error)


@pytest.mark.parametrize("environ", list(subsets(TORCH)), ids="+".join)
def test_torchruns_variables_count_whole_or_are_refused_by_name(environ):
    found = answer(environ)
    if len(environ) == len(TORCH):
        assert found == Launch(rank=1, world_size=2, local_rank=0, local_world_size=2)
    elif not {"RANK", "WORLD_SIZE"} & environ.keys() or environ.keys() == {"RANK"}:
        assert found is None
    else:
        assert isinstance(found, str)
        there, _, missing = found.splitlines()[0].partition("), but ")
        unset = [name for name in TORCH if name not in environ]
        assert missing == f"{', '.join(unset)} {'are' if unset[1:] else 'is'} not set"
        assert all(f"{name}={value}" in there for name, value in environ.items())


@pytest.mark.parametrize(
    "environ", list(subsets({"RANK": "0", "LOCAL_RANK": "0", **ADDRESS})), ids="+".join
)
def test_a_world_of_one_needs_a_rank_and_no_address(environ):
    found = answer({**environ, "WORLD_SIZE": "1"})
    assert found == (Launch(0, 1, 0, 1) if "RANK" in environ else None)


def test_every_subset_of_all_sets_is_a_whole_launch_none_or_refused():
    for environ in subsets({**TORCH, **STEP, **{name: MPI[name] for name in OPEN_MPI[1:4]}}):
        found = answer(environ)
        if isinstance(found, Launch):
            assert environ.keys() >= ADDRESS.keys()
            whole = {
                2: TORCH,
                4: STEP if environ.keys() >= STEP.keys() else dict.fromkeys(OPEN_MPI[1:4]),
            }
            assert environ.keys() >= whole[found.world_size].keys()
        elif found is None:
            assert not environ.keys() >= TORCH.keys()
            assert not environ.keys() >= {*STEP, *ADDRESS}


@pytest.mark.parametrize("tasks", [STEP, MPI], ids=["Slurm", "Open MPI"])
def test_tasks_are_a_launch_if_an_address_says_where_they_meet(tasks):
    local = 2 if tasks is MPI else 4
    assert launch_environment({**tasks, **ADDRESS}) == Launch(3, 4, 1, local)
    assert launch_environment(tasks) is None
    unused = unused_launch(tasks)
    assert unused is not None
    assert "started 4 processes, each alone: set MASTER_ADDR and MASTER_PORT" in unused
    assert "but MASTER_PORT is not set" in answer({**tasks, "MASTER_ADDR": "node1"})
    alone = {**tasks, ("SLURM_STEP_NUM_TASKS" if tasks is STEP else "OMPI_COMM_WORLD_SIZE"): "1"}
    assert launch_environment({**alone, **ADDRESS}) is None
    # torchrun in each task
    assert launch_environment({**tasks, **ADDRESS, **TORCH}) == Launch(1, 2, 0, 2)


def test_the_shell_of_a_slurm_job_is_one_process():
    for shell in (
        {"SLURM_PROCID": "3"},
        {
            "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0",
            "SLURM_NTASKS": "8",
            "SLURM_NPROCS": "8",
            **ADDRESS,
        },
        {
            "SLURM_PROCID": "0",
            "SLURM_LOCALID": "0",
            "SLURM_NTASKS": "8",
            "SLURM_STEP_NUM_TASKS": "1",
            **ADDRESS,
        },
    ):
        assert launch_environment(shell) is None
        assert unused_launch(shell) is None


def test_scripts_for_slurm_set_the_world_and_leave_the_rank_to_srun():
    assert launch_environment({**STEP, **ADDRESS, "WORLD_SIZE": "4"}) == Launch(3, 4, 1, 4)
    assert "WORLD_SIZE=8" in answer({**STEP, **ADDRESS, "WORLD_SIZE": "8"})


def test_other_variables_of_torchrun():
    launch = launch_environment(
        {**TORCH, "LOCAL_WORLD_SIZE": "1", "TORCHELASTIC_RESTART_COUNT": "2"}
    )
    assert launch == Launch(1, 2, 0, 1, restarts=2)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("RANK", "first", "RANK is 'first'"),
        ("RANK", "-1", "RANK is '-1'"),
        ("RANK", "2", "RANK is 2, but WORLD_SIZE is 2"),
        ("WORLD_SIZE", "0", "WORLD_SIZE is '0'"),
        ("WORLD_SIZE", "2.0", "WORLD_SIZE is '2.0'"),
        ("LOCAL_RANK", "2", "LOCAL_RANK is 2, but WORLD_SIZE is 2"),
        ("LOCAL_WORLD_SIZE", "none", "LOCAL_WORLD_SIZE is 'none'"),
        ("MASTER_PORT", "http", "MASTER_PORT is 'http'"),
        ("MASTER_PORT", "65536", "MASTER_PORT is 65536"),
        ("TORCHELASTIC_RESTART_COUNT", "x", "TORCHELASTIC_RESTART_COUNT is 'x'"),
    ],
)
def test_impossible_values_are_named(name, value, words):
    assert words in answer({**TORCH, name: value})


@given(
    st.dictionaries(
        st.sampled_from(NAMES), st.one_of(st.text(max_size=3), st.integers(-1, 5).map(str))
    )
)
def test_any_environment_is_a_place_in_a_launch_none_or_one_message(environ):
    found = answer(environ)
    blank = {name: "" if not value.strip() else value for name, value in environ.items()}
    assert found == answer({name: value for name, value in blank.items() if value})
    if isinstance(found, Launch):
        assert 0 <= found.rank < found.world_size
        assert 0 <= found.local_rank < max(found.local_world_size, 1)
    if not isinstance(found, str):
        unused_launch(environ)


def test_rank_alone_is_another_programs_and_said(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    assert is_main()
    assert unused_launch() is None
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert is_main()
    assert is_main_on_node()
    assert not restarted()
    assert unused_launch() == "RANK is set without WORLD_SIZE: this process works alone"
    for name, value in TORCH.items():
        monkeypatch.setenv(name, value)
    assert not is_main()
    assert is_main_on_node()
    assert restarted()
    assert unused_launch(os.environ) is None


def test_the_names_are_the_launchers_own():
    assert set(SLURM[1:4]) == STEP.keys()
    assert set(OPEN_MPI[1:]) == MPI.keys()


@pytest.mark.parametrize("training", [True, False])
def test_cuda_sums_exactly_and_plans_attention_for_training_alone(training):
    """No TF32, no sums in 16 bits; cuDNN's attention plans half a second for each new shape."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    switches = [
        (cudnn, "allow_tf32"),
        (cuda.matmul, "allow_bf16_reduced_precision_reduction"),
        (cuda.matmul, "allow_fp16_reduced_precision_reduction"),
    ]
    before, planned = [getattr(*switch) for switch in switches], cuda.cudnn_sdp_enabled()
    try:
        with warnings.catch_warnings():
            for switch in switches:
                setattr(*switch, True)
            set_cuda_arithmetic(training=training)
        assert torch.get_float32_matmul_precision() == "highest"
        assert not any(getattr(*switch) for switch in switches)
        assert cuda.cudnn_sdp_enabled() == training
    finally:
        for switch, value in zip(switches, before, strict=True):
            setattr(*switch, value)
        cuda.enable_cudnn_sdp(planned)


CPU = "processor : {core}\nvendor_id : {vendor}\nmodel\t\t: {model}\nmodel name\t: CPU of {vendor}\nflags\t\t: {flags}\n\n"


@pytest.mark.parametrize(
    ("vendor", "model", "flags", "fast"),
    [
        ("AuthenticAMD", "17", "avx2 avx512f avx512_bf16", True),
        ("AuthenticAMD", "1", "avx2", False),
        ("GenuineIntel", "207", "avx512f avx512_bf16 avx512_fp16", False),
        ("GenuineIntel", "207", "avx512f avx512_bf16 amx_bf16 amx_tile", True),
        ("GenuineIntel", "85", "avx512f avx512_bf16", True),
        ("GenuineIntel", "151", "avx2", False),
    ],
)
def test_bf16_is_fast_by_the_processors_model(vendor, model, flags, fast, monkeypatch):
    text = "".join(
        CPU.format(core=core, vendor=vendor, model=model, flags=flags) for core in range(2)
    )
    monkeypatch.setattr(Path, "read_text", lambda path, **_: text)
    runtime.processor.cache_clear()
    try:
        assert runtime.processor() == (f"CPU of {vendor}", frozenset(flags.split()))
        monkeypatch.delenv("GPT_KERNELS", raising=False)
        assert runtime.has_fast_bf16() == fast
        monkeypatch.setenv("GPT_KERNELS", "avx512-bf16")  # as a processor without AMX
        assert runtime.has_fast_bf16() == (fast and "amx_tile" not in flags)
        monkeypatch.setenv("GPT_KERNELS", "avx2")
        assert not runtime.has_fast_bf16()
    finally:
        monkeypatch.undo()
        runtime.processor.cache_clear()


def test_a_system_without_cpuinfo_has_no_features(monkeypatch):
    def missing(path, **_):
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", missing)
    runtime.processor.cache_clear()
    try:
        assert runtime.processor()[0]
        assert not runtime.has_fast_bf16()
    finally:
        monkeypatch.undo()
        runtime.processor.cache_clear()


def test_each_kind_of_cpu_has_its_own_compiled_code(monkeypatch):
    """Unless the user has named a folder. A container's user may have no name."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    folders = set()
    for user in ("someone", None):
        monkeypatch.setattr(pwd, "getpwuid", lambda _, names={0: [user]} if user else {}: names[0])
        for capability in ("AVX2", "AVX512"):
            monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
            runtime.separate_compiler_cache(capability)
            runtime.separate_compiler_cache("another")
            folders.add(os.environ["TORCHINDUCTOR_CACHE_DIR"])
            assert os.environ["TORCHINDUCTOR_CACHE_DIR"].endswith(f"_{capability}")
    assert len(folders) == 4
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    runtime.separate_compiler_cache("AVX2")
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "mine"
