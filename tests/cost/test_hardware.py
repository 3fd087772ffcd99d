from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import gptcli.cost
from gptcli.cost.cluster import make_cluster
from gptcli.cost.estimate import Estimate, price_training
from gptcli.cost.hardware import (
    Assumption,
    Gpu,
    Precision,
    find_gpu,
    gpu_names,
    gpus,
    identify_gpu,
    peak_flops,
    read_rows,
    read_table,
    throughput,
    typical_throughput,
)
from gptcli.cost.prices import (
    published_offers,
)
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig, find_size

# name: dense peak in TFLOP/s, GB, GB/s; None where papers.md gives none
PEAKS = {
    "v100": (125, 32, 900), "v100-16gb": (125, 16, 900), "rtx8000": (130.5, 48, 672), "t4": (65, 16, 320), "l4": (121, 24, 300),
    "rtx4090": (165.2, 24, 1008), "a100": (312, 80, 2039), "a100-40gb": (312, 40, 1555), "h100": (989.5, 80, 3350),
    "h100-pcie": (756, 80, 2000), "h800": (989.5, 80, 3350), "h200": (989.5, 141, 4800), "b200": (2250, 180, 7700), "l40s": (362, 48, 864),
    "mi300x": (1307.4, 192, 5300), "tpu-v3": (123, None, None), "tpu-v4": (275, None, None), "tpu-v5e": (197, None, None),
    "tpu-v5p": (459, None, None),
    # of rows that came later, by the makers' pages that each names
    "a100-pcie": (312, 80, 1935), "a100-pcie-40gb": (312, 40, 1555), "a10": (125, 24, 600), "a10g": (70, 24, 600), "a40": (149.7, 48, 696), "a6000": (154.8, 48, 768),
    "rtx3090": (71, 24, 936), "rtx6000-ada": (364.2, 48, 960), "rtx5090": (209.5, 32, 1792), "rtx-pro-6000": (503.8, 96, 1792),
    "h100-nvl": (835.5, 94, 3900), "h20": (148, 96, 4000), "gh200": (989.5, 96, 4000), "gb200": (2500, 186, 8000), "b300": (2250, 288, 8000),
    "gb300": (2500, 279, 8000), "mi250x": (383, 128, 3200), "mi325x": (1307.4, 256, 6000), "mi355x": (2516.6, 288, 8000),
    "tpu-v6e": (918, 32, 1638), "tpu-v7": (2307, 192, 7380), "trainium2": (667, 96, 2900), "gaudi3": (1835, 128, 3700),
    "m1-max": (10.4, 64, 400), "m1-ultra": (21, 128, 800),
}  # fmt: skip


def test_every_gpu_has_its_figures() -> None:
    assert {gpu.name for gpu in gpus()} == set(PEAKS)
    for name, (tflops, memory, bandwidth) in PEAKS.items():
        gpu = find_gpu(name)
        assert gpu.peak_flops == tflops * 1e12
        assert memory is None or gpu.memory_bytes == memory * 1e9
        assert bandwidth is None or gpu.bandwidth == bandwidth * 1e9
    assert (find_gpu("v100").fp32_flops, find_gpu("rtx8000").fp32_flops) == (15.7e12, 16.3e12)


@pytest.mark.parametrize("gpu", gpus(), ids=lambda gpu: gpu.name)
def test_every_row_is_sound(gpu: Gpu) -> None:
    assert gpu.source
    assert gpu.url.startswith("https://")
    assert re.fullmatch(r"\d{4}-\d{2}", gpu.date)
    assert gpu.family
    matrix_units = gpu.family != "apple"
    assert gpu.fp32_flops is None or gpu.fp32_flops < gpu.peak_flops or not matrix_units


def test_no_bf16_before_ampere() -> None:
    assert {gpu.name for gpu in gpus() if not gpu.bf16} == {"v100", "v100-16gb", "rtx8000", "t4"}


def test_names_and_device_names_are_unambiguous() -> None:
    assert len({re.sub("[ -]", "", name) for name in gpu_names()}) == len(gpu_names())
    device_names = [name for gpu in gpus() for name in gpu.device_names]
    assert len(set(device_names)) == len(device_names)
    assert not [name for name in device_names if name.startswith("NVIDIA")], (
        "identify_gpu strips it"
    )


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("A100-80GB", "a100"),
        ("RTX 8000", "rtx8000"),
        ("H100_SXM", "h100"),
        ("tpuv4", "tpu-v4"),
        ("h200", "h200"),
    ],
)
def test_found_however_written(written: str, name: str) -> None:
    assert find_gpu(written).name == name


def test_unknown_gpu_names_the_nearest_and_the_way_out() -> None:
    with pytest.raises(UsageError, match="unknown GPU 'h1000'") as caught:
        find_gpu("h1000")
    assert "h100" in str(caught.value.hint)
    assert "{option:tflops}" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("device_name", "name"),
    [
        ("Tesla V100-SXM2-16GB", "v100-16gb"),
        ("Tesla V100-SXM2-32GB", "v100"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA L4", "l4"),
        ("Tesla T4", "t4"),
        ("AMD Instinct MI300X", "mi300x"),
        ("NVIDIA A10G", "a10g"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA GeForce RTX 5090", "rtx5090"),
    ],
)
def test_identified_by_cuda(device_name: str, name: str) -> None:
    gpu = identify_gpu(device_name)
    assert gpu is not None
    assert gpu.name == name


@pytest.mark.parametrize(
    "device_name",
    [
        "",
        "NVIDIA A16",
        "NVIDIA L40",
        "Tesla V100-PCIE-16GB",
        "NVIDIA H100 MIG 1g.10gb",
        "NVIDIA H200 NVL",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
    ],
)
def test_other_peaks_are_never_guessed(device_name: str) -> None:
    assert identify_gpu(device_name) is None


def value_of(found: Assumption | None) -> float:
    assert found is not None
    return found.value


def test_throughput_is_what_was_said() -> None:
    assert value_of(throughput(find_gpu("a100"), tflops=150)) == 150e12
    assert value_of(throughput(find_gpu("a100"), mfu=0.5)) == 156e12
    assert value_of(throughput(None, tflops=15)) == 15e12


def test_throughput_by_default_is_the_articles_or_a_median_of_published_runs() -> None:
    assert value_of(throughput(find_gpu("v100"))) == 28e12
    assert value_of(throughput(find_gpu("rtx8000"))) == 15e12
    assert throughput(find_gpu("a100")) is None, "which depends on the model"
    default = typical_throughput(find_gpu("a100"))
    assert default.value == pytest.approx(0.32 * 312e12)
    assert default.source
    assert default.date


@pytest.mark.parametrize(
    ("gpu", "precision", "tflops"),
    [
        ("h100", "fp8", 1979),
        ("h100", "bf16", 989.5),
        ("a100", "fp32", 19.5),
        ("v100", "fp16", 125),
        ("v100", "bf16", None),
        ("a100", "fp8", None),
    ],
)
def test_peaks_by_precision(gpu: str, precision: Precision, tflops: float | None) -> None:
    if tflops is not None:
        assert peak_flops(find_gpu(gpu), precision) == tflops * 1e12
        return
    with pytest.raises(UsageError, match=f"{gpu} has no {precision}") as caught:
        peak_flops(find_gpu(gpu), precision)
    assert "fp16" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("gpu", "said", "message"),
    [
        ("v100", {"mfu": 1.01}, "MFU 1.01 is impossible"),
        ("v100", {"mfu": 0.0}, "MFU 0 is impossible"),
        ("v100", {"mfu": -0.1}, "MFU -0.1 is impossible"),
        ("v100", {"mfu": 0.3, "tflops": 30.0}, "contradict each other"),
        ("v100", {"tflops": 125.1}, "impossible on v100: its dense peak is 125"),
        (None, {}, "no GPU and no speed"),
        (None, {"mfu": 0.3}, "no GPU and no speed"),
    ],
)
def test_impossible_throughput_is_refused(
    gpu: str | None, said: dict[str, float], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        throughput(None if gpu is None else find_gpu(gpu), said.get("tflops"), said.get("mfu"))


def test_a_doubled_peak_is_recognised() -> None:
    with pytest.raises(UsageError) as caught:
        throughput(find_gpu("h100"), tflops=1979)
    assert "sparsity" in str(caught.value.hint)
    with pytest.raises(UsageError) as caught:
        throughput(find_gpu("h100"), tflops=5000)
    assert "sparsity" not in str(caught.value.hint)


TABLES = sorted(Path(gptcli.cost.__file__).parent.glob("*.toml"))


def sourced(table: dict[str, Any]) -> list[dict[str, Any]]:
    """Every table of a file that names a source, however deep."""
    found = [table] if "source" in table else []
    for value in table.values():
        for inner in value if isinstance(value, list) else [value]:
            found += sourced(inner) if isinstance(inner, dict) else []
    return found


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.name)
def test_tables(path: Path) -> None:
    rows = sourced(tomllib.loads(path.read_text(encoding="utf-8")))
    assert rows
    for row in rows:
        assert len(row["source"]) > 10
        assert re.fullmatch(r"\d{4}(-\d{2}){0,2}", row["date"]), row
        assert all(
            address.startswith("https://") for address in row.get("url", "https://").split(", ")
        ), row


@pytest.mark.parametrize("gpu", gpus(), ids=lambda gpu: gpu.name)
def test_estimates_on_every_gpu_say_where_all_is_from(gpu: Any) -> None:
    model = ModelConfig.from_paper(find_size("125M"))
    cluster, plan = make_cluster(gpu, 8, model=model, sequences=256)
    estimate = price_training("125M", model, 10**10, cluster, tokens_source="the test", plan=plan)
    assert estimate.gpu_hours > 0
    assert all(assumption.source and assumption.value > 0 for assumption in estimate.assumptions)
    names = [assumption.name for assumption in estimate.assumptions]
    assert len(names) == len(set(names))
    assert {
        "FLOPs",
        "tokens",
        "throughput",
        "year",
        "PF-day",
        "peak",
        "GPU memory",
        "training state",
    } <= set(names)
    assert ("board power" in names) == (gpu.watts is not None)


def test_flops_alone_rest_on_little() -> None:
    cluster, _ = make_cluster(None, 1, model=None, tflops=10)
    names = [assumption.name for assumption in Estimate("x", 1e20, cluster).assumptions]
    assert names == ["throughput", "year", "PF-day"]


@pytest.mark.parametrize("name", ["hardware.toml", "prices.toml"])
def test_sections_are_those_of_the_whole_file(name: str) -> None:
    for section, whole in read_table(name).items():
        rows = whole if isinstance(whole, list) else [whole]
        assert read_rows(name, section) == rows
        assert read_rows(name, section, "h100") == [row for row in rows if "h100" in _bare(row)]


def _bare(row: dict[str, Any]) -> str:
    return re.sub(r"[\s_-]", "", json.dumps(row).lower())


def test_a_gpu_is_parsed_without_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """`gpt cost` of one GPU answers in a fraction of a second."""
    parsed: list[str] = []

    def loads(text: str) -> dict[str, Any]:
        parsed.append(text)
        return tomllib.loads(text)

    monkeypatch.setattr("gptcli.cost.hardware.tomllib", SimpleNamespace(loads=loads))
    published_offers.cache_clear()
    assert find_gpu("a1 00-80_gb").name == "a100"
    assert published_offers("a100")
    assert 2 <= len(parsed) < 40
    assert len("".join(parsed)) < 10_000, "of 40,000 characters"
