from __future__ import annotations

import json
import shutil
import threading
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from gptcli.distributed.context import Place
from gptcli.errors import InputError, RunError
from gptcli.events import SILENT, Events
from gptcli.files import PARTIAL
from gptcli.model.checkpoint_tensors import SavedModel
from gptcli.trainer import checkpoint, storage
from gptcli.trainer.checkpoint import Checkpoints, State, canonical_parameters
from gptcli.trainer.parallelize import build
from gptcli.trainer.schedule import Position
from tests.waiting import HANG_S

PLACE = Place(torch.device("cpu"))


class Warnings(Events):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def warn(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture
def stepper(make_run):
    stepper = build(make_run(), PLACE, SILENT)
    batch = (torch.arange(32).view(2, 16), torch.arange(1, 33).view(2, 16))
    stepper.gradients([batch], 32, 1)
    stepper.update(1e-3)
    return stepper


def save(out, stepper, step, *, keep=3):
    state = State(Position(step, 4 * step), {"seed": 1}, {"step": step, "loss": 2.5})
    checkpoints = Checkpoints(out, PLACE, keep=keep)
    checkpoints.save(state, canonical_parameters(stepper.model), stepper.optimizer)
    checkpoints.wait()
    return checkpoint.folder_of(out, step)


def newest(out, events=SILENT):
    return Checkpoints(out, PLACE, keep=1).newest(events)


def test_taken_up_to_the_bit(make_run, stepper, tmp_path):
    folder = save(tmp_path, stepper, 7)
    fresh = build(make_run(seed=99), PLACE, SILENT)
    state = Checkpoints(tmp_path, PLACE, keep=1).load(
        folder, canonical_parameters(fresh.model), fresh.optimizer
    )
    assert state == State(Position(7, 28), {"seed": 1}, {"step": 7, "loss": 2.5})
    for old, new in zip(stepper.model.parameters(), fresh.model.parameters(), strict=True):
        assert torch.equal(old, new)
        before, after = stepper.optimizer.state[old], fresh.optimizer.state[new]
        assert before.keys() == after.keys() >= {"exp_avg", "exp_avg_sq", "step"}
        assert all(torch.equal(before[key], after[key]) for key in before)
    assert fresh.model.lm_head.weight is fresh.model.wte.weight
    assert [group["weight_decay"] for group in fresh.optimizer.param_groups] == [0.1, 0.0]


def test_plain_tensors_under_plain_names(stepper, tmp_path):
    folder = save(tmp_path, stepper, 1)
    assert sorted(path.name for path in folder.iterdir()) == [
        "index.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    names = {name for name, _ in stepper.model.named_parameters()}
    assert load_file(folder / "model.safetensors").keys() == names
    assert load_file(folder / "optimizer.safetensors").keys() == {
        f"{n}/{part}" for n in names for part in ("exp_avg", "exp_avg_sq", "step")
    }


def test_the_newest_are_kept_and_an_abandoned_future_goes(stepper, tmp_path):
    for step in (5, 10, 15, 100):
        save(tmp_path, stepper, step, keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000015",
        "step-00000100",
    ]
    save(tmp_path, stepper, 20, keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000015",
        "step-00000020",
    ]


@pytest.mark.parametrize(
    "file", ["model.safetensors", "optimizer.safetensors", "index.json", "state.json"]
)
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_broken_one_is_passed_over_for_the_one_before_it(stepper, tmp_path, file, harm):
    good, broken = save(tmp_path, stepper, 5), save(tmp_path, stepper, 10)
    path = broken / file
    data = bytearray(path.read_bytes())
    if harm == "flip":
        data[len(data) // 3] ^= 0x80
    path.unlink() if harm == "remove" else path.write_bytes(
        data if harm == "flip" else data[: len(data) // 2]
    )
    events = Warnings()
    assert newest(tmp_path, events) == good
    assert len(events.texts) == 1
    assert "step-00000010" in events.texts[0]
    shutil.rmtree(good)
    with pytest.raises(InputError, match="no checkpoint here is whole"):
        newest(tmp_path, events)


def test_none_at_all_and_one_that_was_never_finished(stepper, tmp_path):
    assert newest(tmp_path) is None
    folder = save(tmp_path, stepper, 5)
    folder.rename(folder.with_name(f".{folder.name}.1{PARTIAL}"))
    assert newest(tmp_path) is None


def test_another_format_is_not_guessed_at(stepper, tmp_path):
    path = save(tmp_path, stepper, 5) / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
    events = Warnings()
    with pytest.raises(InputError):
        newest(tmp_path, events)
    assert "format 1" in events.texts[0]


def test_a_full_disk_leaves_the_checkpoints_before(stepper, tmp_path, monkeypatch):
    save(tmp_path, stepper, 5)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    # the last file: the tensors are written already
    monkeypatch.setattr(checkpoint, "write_json", full)
    with pytest.raises(RunError, match="No space left on device") as caught:
        save(tmp_path, stepper, 10, keep=1)
    assert "resume" in str(caught.value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]
    assert newest(tmp_path) == checkpoint.folder_of(tmp_path, 5)


@pytest.fixture
def gate(monkeypatch):
    """Large enough to be written in the background, which waits until the gate is set."""
    opened = threading.Event()
    write = storage.write_file

    def write_later(*args):
        assert opened.wait(HANG_S)
        return write(*args)

    monkeypatch.setattr(storage, "write_file", write_later)
    monkeypatch.setattr(checkpoint, "SMALL", 0)
    return opened


def state_at(step):
    return State(Position(step, 4 * step), {}, {})


def test_written_in_the_background_as_it_was_at_the_moment_of_the_save(stepper, tmp_path, gate):
    checkpoints, parameters = (
        Checkpoints(tmp_path, PLACE, keep=3),
        canonical_parameters(stepper.model),
    )
    before = {name: tensor.clone() for name, tensor in parameters.items()}
    checkpoints.save(state_at(5), parameters, stepper.optimizer)
    assert not checkpoint.folder_of(tmp_path, 5).exists()
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.zero_()
    gate.set()
    checkpoints.wait()
    written = dict(SavedModel(newest(tmp_path)))
    assert written.keys() == before.keys()
    assert all(torch.equal(written[name], before[name]) for name in before)


def test_never_two_in_flight_and_a_write_that_fails_is_an_error_at_the_next_save(
    stepper, tmp_path, gate, monkeypatch
):
    checkpoints, parameters = (
        Checkpoints(tmp_path, PLACE, keep=3),
        canonical_parameters(stepper.model),
    )
    checkpoints.save(state_at(5), parameters, stepper.optimizer)
    threading.Timer(0.2, gate.set).start()
    checkpoints.save(state_at(10), parameters, stepper.optimizer)
    assert checkpoint.folder_of(tmp_path, 5).exists(), "the second save waited for the first"
    checkpoints.wait()
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1 << 20))
    checkpoints.save(state_at(15), parameters, stepper.optimizer)
    with pytest.raises(RunError, match=r"bytes are needed and 1,048,576 are free"):
        checkpoints.save(state_at(20), parameters, stepper.optimizer)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000005",
        "step-00000010",
    ]


def test_nothing_is_pickled_and_the_files_are_what_safetensors_reads(stepper, tmp_path):
    folder = save(tmp_path, stepper, 5)
    for path in folder.iterdir():
        json.loads(path.read_text()) if path.suffix == ".json" else load_file(path)
    index = json.loads((folder / "index.json").read_text())
    piece = {"file": "model.safetensors", "offset": [0, 0], "size": [260, 16]}
    assert index["wte.weight"] == {"dtype": "F32", "size": [260, 16], "pieces": [piece]}
    assert index["wte.weight/step"]["pieces"][0]["size"] == []


def test_a_killed_removal_leaves_no_half_of_a_checkpoint(stepper, tmp_path):
    folder = save(tmp_path, stepper, 5)
    folder.rename(folder.with_name(f".{folder.name}.old{PARTIAL}"))
    save(tmp_path, stepper, 10)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000010"]


def sealed(folder, file, table):
    """Write a file of a checkpoint, and make its checksum right."""
    (folder / file).write_text(json.dumps(table))
    state = json.loads((folder / checkpoint.STATE).read_text())
    state["sha256"][file] = storage.sha256(folder / file)
    (folder / checkpoint.STATE).write_text(json.dumps(state))


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/etc/passwd", "model.safetensors/../../x", "m\ud800.safetensors", 3],
)
def test_no_file_outside_of_a_checkpoint_is_read(stepper, tmp_path, name):
    folder, events = save(tmp_path, stepper, 7), Warnings()
    (tmp_path / "checkpoints" / "model.safetensors").write_bytes(
        (folder / "model.safetensors").read_bytes()
    )
    index = json.loads((folder / storage.INDEX).read_text())
    index["wpe.weight"]["pieces"][0]["file"] = name
    sealed(folder, storage.INDEX, index)
    with pytest.raises(InputError, match="no checkpoint here is whole"):
        newest(tmp_path, events)
    assert "not the index of a checkpoint" in events.texts[0]
    with pytest.raises(InputError, match="not the index of a checkpoint"):
        dict(SavedModel(folder))


@pytest.mark.parametrize("name", ["../other", "m\ud800.safetensors"])
def test_no_file_outside_of_a_checkpoint_is_hashed(stepper, tmp_path, name):
    folder, events = save(tmp_path, stepper, 7), Warnings()
    state = json.loads((folder / checkpoint.STATE).read_text())
    state["sha256"][name] = "0"
    (folder / checkpoint.STATE).write_text(json.dumps(state))
    with pytest.raises(InputError, match="no checkpoint here is whole"):
        newest(tmp_path, events)
    assert "do not agree" in events.texts[0]


def test_memory_is_not_made_for_what_an_index_only_claims(stepper, tmp_path):
    folder = save(tmp_path, stepper, 7)
    index = json.loads((folder / storage.INDEX).read_text())
    index["wpe.weight"]["size"] = [10**9, 10**6]
    sealed(folder, storage.INDEX, index)
    with pytest.raises(InputError, match=r"bytes of tensors, and .* are here"):
        dict(SavedModel(folder))


def test_tensors_that_do_not_fit_are_one_clear_error(make_run, stepper, tmp_path):
    folder = save(tmp_path, stepper, 7)
    fresh = build(make_run(n_ctx=8), PLACE, SILENT)
    with pytest.raises(InputError, match="does not fit this run"):
        Checkpoints(tmp_path, PLACE, keep=1).load(
            folder, canonical_parameters(fresh.model), fresh.optimizer
        )


def test_a_state_that_is_no_state(stepper, tmp_path):
    folder = save(tmp_path, stepper, 7)
    state = json.loads((folder / checkpoint.STATE).read_text())
    for changes in (
        {"position": {"step": "7", "sequences": 28}},
        {"identity": 3},
        {"metrics": None},
    ):
        (folder / checkpoint.STATE).write_text(json.dumps(state | changes))
        with pytest.raises(InputError, match="not the state of a checkpoint"):
            checkpoint.read_state(folder)


def test_a_run_killed_before_it_removed_the_oldest_removes_it_when_it_goes_on(
    make_run, stepper, tmp_path
):
    for step in (2, 4, 6):
        save(tmp_path, stepper, step)
    fresh, checkpoints = build(make_run(), PLACE, SILENT), Checkpoints(tmp_path, PLACE, keep=2)
    checkpoints.load(checkpoints.newest(SILENT), canonical_parameters(fresh.model), fresh.optimizer)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000004",
        "step-00000006",
    ]
