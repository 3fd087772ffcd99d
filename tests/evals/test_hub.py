"""Data from the hub: files under the names that are looked for, or what to do without a network."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from gptcli.errors import InputError, UsageError
from gptcli.evals.find_data import find_data, find_examples
from gptcli.evals.hub import download_tasks
from gptcli.evals.task import find_task
from gptcli.evals.task_data import read_items

ROW = {"goal": "To sit", "sol1": "sit", "sol2": "stand", "label": 1}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Path]:
    """Return the files of a hub by their names, and make it the one that is downloaded from."""
    files: dict[str, Path] = {}

    def download(dataset: str, name: str, **_: Any) -> str:
        return str(files[name])

    api = SimpleNamespace(list_repo_files=lambda dataset, **_: list(files))
    module = SimpleNamespace(HfApi=lambda: api, hf_hub_download=download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return files


def test_the_splits_of_a_task_are_downloaded_once(hub: dict[str, Path], tmp_path: Path) -> None:
    for name, rows in (("validation/0000", 2), ("validation/0001", 1), ("train/0000", 4)):
        path = tmp_path / f"{name.replace('/', '-')}.parquet"
        pyarrow.parquet.write_table(pa.Table.from_pylist([ROW] * rows), path)
        hub[f"plain_text/{name}.parquet"] = path
    task = find_task("piqa")
    folder = download_tasks([task], shots=True)
    items = find_data(task, folder)
    assert items is not None
    assert len(read_items(task, items)) == 3
    assert len(read_items(task, find_examples(task, items, folder / "piqa"))) == 4
    hub.clear()
    assert download_tasks([task], shots=True) == folder


def test_an_unreachable_hub_is_one_message(
    hub: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class ConnectError(Exception):
        """As httpx raises it: neither an OSError nor a RuntimeError."""

    def unreachable(dataset: str, **_: Any) -> list[str]:
        raise ConnectError("Name or service not known")

    module = sys.modules["huggingface_hub"]
    monkeypatch.setattr(module, "HfApi", lambda: SimpleNamespace(list_repo_files=unreachable))
    with pytest.raises(InputError, match="from the hub: Name or service not known"):
        download_tasks([find_task("piqa")], shots=False)


def test_what_cannot_be_downloaded_says_what_to_do(hub: dict[str, Path]) -> None:
    with pytest.raises(
        InputError, match=r"piqa could not be downloaded(.|\n)*hf download ybisk/piqa"
    ):
        download_tasks([find_task("piqa")], shots=False)
    with pytest.raises(UsageError, match="sat_analogies is not on the hub"):
        download_tasks([find_task("sat_analogies")], shots=False)
    with pytest.raises(UsageError, match="bundle is not on the hub"):
        download_tasks([], "core", shots=False)
