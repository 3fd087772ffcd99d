"""This machine is looked at: its memory, disk and speed."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from gptcli.model.config import ModelConfig, find_size
from gptcli.trainer import machine as module
from gptcli.trainer.forecast import forecast
from gptcli.trainer.machine import this_machine
from gptcli.trainer.memory import host_memory


def test_this_machine_is_looked_at(make_run, tmp_path):
    run = make_run(layout="dp=1")
    here = this_machine(run.model, run.train, tmp_path / "not yet" / "there")
    assert here.tokens_per_second is not None
    slow, fast = here.tokens_per_second
    assert 0 < slow < fast
    assert here.memory_bytes is not None
    assert here.memory_bytes > 0
    assert here.disk_free_bytes > 0
    train = replace(run.train, tokens=10**7, batch_tokens=2**21, layout="dp=16,tp=8,pp=8")
    beyond = this_machine(run.model, train, tmp_path)
    assert (beyond.memory_bytes, beyond.tokens_per_second) == (None, None)
    assert forecast(ModelConfig.from_paper(find_size("175B")), train, None, beyond).fits is None


def test_a_plan_names_the_cores_that_its_threads_use(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "available_cores", lambda: 4)
    monkeypatch.setattr(module, "product_rate", lambda *_: 1e9 * torch.get_num_threads())
    speeds = {}
    for threads, layout, name in (
        (1, "dp=1", "1 of 4 CPU cores"),
        (4, "dp=1", "4 CPU cores"),
        (8, "dp=1", "4 CPU cores"),
        (1, "dp=2", "4 CPU cores"),
    ):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        run = make_run(layout=layout)
        here = this_machine(run.model, run.train, tmp_path)
        assert here.name == name
        assert here.tokens_per_second is not None
        speeds[threads, layout] = here.tokens_per_second[1]
    least = speeds.pop((1, "dp=1"))
    assert [*speeds.values()] == [pytest.approx(4 * least)] * 3


def test_a_cpu_s_speed_does_not_depend_on_other_work(monkeypatch):
    """Every look at the wall clock finds a second gone; a product takes 4 ms of CPU time on two
    threads.
    """
    clock = SimpleNamespace(cpu=0.0, wall=0.0)

    def product(a, b):
        clock.cpu += 0.004

    def wall():
        clock.wall += 1.0
        return clock.wall

    monkeypatch.setattr(torch, "matmul", product)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(time, "process_time", lambda: clock.cpu)
    monkeypatch.setattr(time, "perf_counter", wall)
    assert module.product_rate(256, "bf16") == pytest.approx(2 * 512 * 256 * 1024 / 0.002)


def test_checkpoints_that_are_there_count_as_free(make_run, train_here, monkeypatch):
    run = make_run()
    train_here(run)
    monkeypatch.setattr(shutil, "disk_usage", lambda where: SimpleNamespace(free=0))
    assert module.disk_free(run.out) >= 2 * 12 * run.model.parameters


def test_a_known_gpu_has_the_cost_model_s_speed_and_an_unknown_one_none(make_run, monkeypatch):
    model = ModelConfig.from_paper(find_size("350M"))
    train = replace(
        make_run().train, tokens=10**9, batch_tokens=2**19, precision="bf16", micro_batch=8
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda number: SimpleNamespace(total_memory=85 * 10**9)
    )
    memory = (85 * 10**9, 85 * 10**9)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda number: memory)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    speed = this_machine(model, train, make_run().out).tokens_per_second
    assert speed is not None
    slow, fast = speed
    assert 5e4 < slow < fast < 1e6
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA of tomorrow")
    assert this_machine(model, train, make_run().out).tokens_per_second is None


def test_this_processor_is_a_device(monkeypatch):
    monkeypatch.setattr(module, "available_cores", lambda: 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)  # as OMP_NUM_THREADS says
    gpu = module.this_cpu("fp32")
    assert ", 3 cores" in gpu.source
    assert gpu.name == "cpu"
    assert gpu.peak_flops > 0
    assert gpu.bandwidth > 0
    assert gpu.memory_bytes == int(0.93 * host_memory())


def test_a_copy_reads_and_writes(monkeypatch):
    seconds = iter([0.0, 0.5, 1.0, 1.25, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(seconds))
    assert module.copy_rate() == 2 * module.COPIED / 0.25
