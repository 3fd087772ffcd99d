from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gptcli.errors import InputError, UsageError
from gptcli.model.source import ModelSource, checkpoint_digest, find_model


def run_folder(folder: Path, *steps: int, finished: bool = False) -> Path:
    for step in steps:
        (folder / f"checkpoints/step-{step:08d}").mkdir(parents=True)
    folder.mkdir(exist_ok=True)
    (folder / "run.toml").write_text("checkpoint_every = 250\n")
    if finished:
        (folder / "model.safetensors").touch()
    return folder


def test_finished_model_precedes_the_newest_checkpoint(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", 9, 10, 1200)
    newest = run / "checkpoints/step-00001200"
    assert find_model(run) == ModelSource(run, newest, 1200)
    assert str(find_model(run)) == f"step 1,200 of {run}, an unfinished run"
    assert find_model(run, 9) == ModelSource(run, run / "checkpoints/step-00000009", 9)
    (run / "model.safetensors").touch()
    assert find_model(run) == ModelSource(run)
    assert str(find_model(run, 10)) == f"step 10 of {run}"


def test_a_checkpoint_folder_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_folder(tmp_path / "run", 9, 10)
    folder = run / "checkpoints/step-00000009"
    assert find_model(folder) == find_model(folder, 9) == ModelSource(run, folder, 9)
    with pytest.raises(UsageError, match="is the checkpoint of step 9, not of step 10"):
        find_model(folder, 10)
    monkeypatch.chdir(folder)
    assert find_model(Path()).step == 9
    with pytest.raises(InputError, match="no checkpoint of step 11"):
        find_model(run / "checkpoints/step-00000011")


def test_skipped_steps_are_not_chosen(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", 9, 10)
    assert find_model(run, skip={10}).step == 9
    with pytest.raises(InputError, match="no checkpoint can be read"):
        find_model(run, skip={9, 10})


@pytest.mark.parametrize(
    ("steps", "listed"),
    [
        ((), "there are no checkpoints"),
        ((7,), "there is a checkpoint of step 7"),
        ((5, 30, 1200), "there are checkpoints of steps 5, 30 and 1,200"),
    ],
)
def test_missing_checkpoint_is_reported_with_those_that_exist(
    tmp_path: Path, steps: tuple[int, ...], listed: str
) -> None:
    with pytest.raises(InputError, match="no checkpoint of step 6") as caught:
        find_model(run_folder(tmp_path / "run", *steps, finished=True), 6)
    assert caught.value.hint == listed


def test_run_without_checkpoints_reports_when_the_first_is_due(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    with pytest.raises(InputError, match="has no checkpoint yet") as caught:
        find_model(run)
    assert caught.value.hint is not None
    assert caught.value.hint.startswith("the first one is due after step 250;")
    (run / "run.toml").write_text("?")
    with pytest.raises(InputError, match="has no checkpoint yet"):
        find_model(run)


def test_partial_checkpoints_are_ignored(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run", 9)
    for name in (".step-00000010.partial", "step-10", "step-00000010.old"):
        (run / "checkpoints" / name).mkdir()
    assert find_model(run).step == 9


@pytest.mark.parametrize("named", ["unfinished.safetensors", "model-00001-of-00002.safetensors"])
def test_unfinished_weights_without_checkpoints_have_a_step(tmp_path: Path, named: str) -> None:
    save_file({"w": torch.zeros(1)}, tmp_path / named, {"step": "1200"})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": named}}))
    assert find_model(tmp_path) == ModelSource(
        tmp_path, step=1200 if named.startswith("unfinished") else None
    )


@pytest.mark.parametrize(
    "broken", ["{", "[]", '{"weight_map": 3}', '{"weight_map": {"w": "unfinished.safetensors"}}']
)
def test_broken_index_is_not_reported_before_loading(tmp_path: Path, broken: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(broken)
    assert find_model(tmp_path) == ModelSource(tmp_path)


def test_digest_depends_on_the_weights_only(tmp_path: Path) -> None:
    def digest(**files: str) -> str:
        (tmp_path / "state.json").write_text(
            json.dumps({"sha256": {f"{name}.safetensors": value for name, value in files.items()}})
        )
        return checkpoint_digest(tmp_path)

    assert (
        digest(model="1", optimizer="2")
        == digest(model="1", optimizer="3")
        != digest(model="2", optimizer="2")
    )
    for broken in ("3", "{}", '{"sha256": 3}'):
        (tmp_path / "state.json").write_text(broken)
        with pytest.raises(InputError, match="not the state of a checkpoint"):
            checkpoint_digest(tmp_path)
