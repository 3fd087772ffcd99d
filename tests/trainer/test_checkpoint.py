from __future__ import annotations

import json
import shutil
import threading
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from gptcli.distributed.context import RankContext
from gptcli.errors import InputError, RunError
from gptcli.events import SILENT, Events
from gptcli.files import PARTIAL, sha256
from gptcli.model.source import INDEX, STATE
from gptcli.model.tensor_file import CheckpointStateDict
from gptcli.trainer import checkpoint, checkpoint_storage
from gptcli.trainer.checkpoint import Checkpoints, CheckpointState, plain_named_parameters
from gptcli.trainer.parallelize import build_train_step
from gptcli.trainer.schedule import Position, Rates
from tests.waiting import HANG_S

CONTEXT = RankContext(torch.device("cpu"))


class Warnings(Events):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def warn(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture
def train_step(make_run):
    train_step = build_train_step(make_run(), CONTEXT, SILENT)
    batch = (torch.arange(32).view(2, 16), torch.arange(1, 33).view(2, 16))
    train_step.forward_backward([batch], 32, 1)
    train_step.update(Rates(1e-3))
    train_step.optimizer.zero_grad()
    return train_step


def save(out, train_step, step, *, keep=3):
    state = CheckpointState(Position(step, 4 * step), {"seed": 1}, {"step": step, "loss": 2.5})
    checkpoints = Checkpoints(out, CONTEXT, keep=keep)
    checkpoints.save(state, plain_named_parameters(train_step.model), train_step.optimizer)
    checkpoints.wait()
    return checkpoint.checkpoint_folder(out, step)


def newest(out, events=SILENT):
    return Checkpoints(out, CONTEXT, keep=1).newest(events)


def test_a_checkpoint_is_loaded_bit_for_bit(make_run, train_step, tmp_path):
    folder = save(tmp_path, train_step, 7)
    fresh = build_train_step(make_run(seed=99), CONTEXT, SILENT)
    state = Checkpoints(tmp_path, CONTEXT, keep=1).load(
        folder, plain_named_parameters(fresh.model), fresh.optimizer
    )
    assert state == CheckpointState(Position(7, 28), {"seed": 1}, {"step": 7, "loss": 2.5})
    for old, new in zip(train_step.model.parameters(), fresh.model.parameters(), strict=True):
        assert torch.equal(old, new)
        before, after = train_step.optimizer.state[old], fresh.optimizer.state[new]
        assert before.keys() == after.keys() >= {"exp_avg", "exp_avg_sq", "step"}
        assert all(torch.equal(before[key], after[key]) for key in before)
    assert fresh.model.get_parameter("lm_head.weight") is fresh.model.get_parameter("wte.weight")
    assert [group["weight_decay"] for group in fresh.optimizer.param_groups] == [0.1, 0.0]


def test_files_have_the_plain_models_tensor_names(train_step, tmp_path):
    folder = save(tmp_path, train_step, 1)
    assert sorted(path.name for path in folder.iterdir()) == [
        "index.json",
        "model.safetensors",
        "optimizer.safetensors",
        "state.json",
    ]
    names = {name for name, _ in train_step.model.named_parameters()}
    assert load_file(folder / "model.safetensors").keys() == names
    assert load_file(folder / "optimizer.safetensors").keys() == {
        f"{n}/{part}" for n in names for part in ("exp_avg", "exp_avg_sq", "step")
    }


def test_the_newest_are_kept_and_steps_after_a_resumed_one_are_removed(train_step, tmp_path):
    for step in (5, 10, 15, 100):
        save(tmp_path, train_step, step, keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000015",
        "step-00000100",
    ]
    save(tmp_path, train_step, 20, keep=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000015",
        "step-00000020",
    ]


@pytest.mark.parametrize(
    "file", ["model.safetensors", "optimizer.safetensors", "index.json", "state.json"]
)
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_a_broken_checkpoint_is_skipped_for_the_one_before_it(train_step, tmp_path, file, harm):
    good, broken = save(tmp_path, train_step, 5), save(tmp_path, train_step, 10)
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
    assert events.texts[0].endswith("; trying that of step 5")
    shutil.rmtree(good)
    with pytest.raises(InputError, match="no checkpoint here is intact"):
        newest(tmp_path, events)
    assert "trying" not in events.texts[1], "there is none before it"


def test_an_unfinished_checkpoint_counts_as_none(train_step, tmp_path):
    assert newest(tmp_path) is None
    folder = save(tmp_path, train_step, 5)
    folder.rename(folder.with_name(f".{folder.name}.1{PARTIAL}"))
    assert newest(tmp_path) is None


def test_a_checkpoint_of_another_format_is_rejected(train_step, tmp_path):
    path = save(tmp_path, train_step, 5) / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
    events = Warnings()
    with pytest.raises(InputError):
        newest(tmp_path, events)
    assert "format 1" in events.texts[0]


def test_a_full_disk_leaves_earlier_checkpoints_intact(train_step, tmp_path, monkeypatch):
    save(tmp_path, train_step, 5)

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    # the last file: the tensors are written already
    monkeypatch.setattr(checkpoint, "write_json", full)
    with pytest.raises(RunError, match="No space left on device") as caught:
        save(tmp_path, train_step, 10, keep=1)
    assert "resume" in str(caught.value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000005"]
    assert newest(tmp_path) == checkpoint.checkpoint_folder(tmp_path, 5)


@pytest.fixture
def gate(monkeypatch):
    """Checkpoints of a GPU, large enough to be written in the background, which waits until the gate
    is set.
    """
    opened = threading.Event()
    write = checkpoint_storage.write_file

    def write_later(*args):
        assert opened.wait(HANG_S)
        return write(*args)

    monkeypatch.setattr(checkpoint_storage, "write_file", write_later)
    monkeypatch.setattr(checkpoint, "SYNC_BYTES", 0)
    return opened


GPU_CONTEXT = RankContext(torch.device("mps"))


def state_at(step):
    return CheckpointState(Position(step, 4 * step), {}, {})


def test_a_background_write_has_the_values_at_the_time_of_the_save(train_step, tmp_path, gate):
    checkpoints, parameters = (
        Checkpoints(tmp_path, GPU_CONTEXT, keep=3),
        plain_named_parameters(train_step.model),
    )
    before = {name: tensor.clone() for name, tensor in parameters.items()}
    checkpoints.save(state_at(5), parameters, train_step.optimizer)
    assert not checkpoint.checkpoint_folder(tmp_path, 5).exists()
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.zero_()
    gate.set()
    checkpoints.wait()
    written = dict(CheckpointStateDict(newest(tmp_path)))
    assert written.keys() == before.keys()
    assert all(torch.equal(written[name], before[name]) for name in before)


def test_one_write_is_in_flight_at_most_and_its_failure_is_raised_at_the_next_save(
    train_step, tmp_path, gate, monkeypatch
):
    checkpoints, parameters = (
        Checkpoints(tmp_path, GPU_CONTEXT, keep=3),
        plain_named_parameters(train_step.model),
    )
    checkpoints.save(state_at(5), parameters, train_step.optimizer)
    threading.Timer(0.2, gate.set).start()
    checkpoints.save(state_at(10), parameters, train_step.optimizer)
    assert checkpoint.checkpoint_folder(tmp_path, 5).exists(), (
        "the second save waited for the first"
    )
    checkpoints.wait()
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1 << 20))
    checkpoints.save(state_at(15), parameters, train_step.optimizer)
    with pytest.raises(RunError, match=r"bytes are needed and 1,048,576 are free"):
        checkpoints.save(state_at(20), parameters, train_step.optimizer)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000005",
        "step-00000010",
    ]


def test_nothing_is_pickled_and_safetensors_reads_every_file(train_step, tmp_path):
    folder = save(tmp_path, train_step, 5)
    for path in folder.iterdir():
        json.loads(path.read_text()) if path.suffix == ".json" else load_file(path)
    index = json.loads((folder / "index.json").read_text())
    piece = {"file": "model.safetensors", "offset": [0, 0], "size": [260, 16]}
    assert index["wte.weight"] == {"dtype": "F32", "size": [260, 16], "pieces": [piece]}
    assert index["wte.weight/step"]["pieces"][0]["size"] == []


def test_a_killed_removal_leaves_no_partial_checkpoint(train_step, tmp_path):
    folder = save(tmp_path, train_step, 5)
    folder.rename(folder.with_name(f".{folder.name}.old{PARTIAL}"))
    save(tmp_path, train_step, 10)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000010"]


def sealed(folder, file, table):
    """Write a file of a checkpoint, and make its checksum right."""
    (folder / file).write_text(json.dumps(table))
    state = json.loads((folder / STATE).read_text())
    state["sha256"][file] = sha256(folder / file)
    (folder / STATE).write_text(json.dumps(state))


@pytest.mark.parametrize(
    "name",
    ["../model.safetensors", "/etc/passwd", "model.safetensors/../../x", "m\ud800.safetensors", 3],
)
def test_no_file_outside_of_a_checkpoint_is_read(train_step, tmp_path, name):
    folder, events = save(tmp_path, train_step, 7), Warnings()
    (tmp_path / "checkpoints" / "model.safetensors").write_bytes(
        (folder / "model.safetensors").read_bytes()
    )
    index = json.loads((folder / INDEX).read_text())
    index["wpe.weight"]["pieces"][0]["file"] = name
    sealed(folder, INDEX, index)
    with pytest.raises(InputError, match="no checkpoint here is intact"):
        newest(tmp_path, events)
    assert "not the index of a checkpoint" in events.texts[0]
    with pytest.raises(InputError, match="not the index of a checkpoint"):
        dict(CheckpointStateDict(folder))


@pytest.mark.parametrize("name", ["../other", "m\ud800.safetensors"])
def test_no_file_outside_of_a_checkpoint_is_hashed(train_step, tmp_path, name):
    folder, events = save(tmp_path, train_step, 7), Warnings()
    state = json.loads((folder / STATE).read_text())
    state["sha256"][name] = "0"
    (folder / STATE).write_text(json.dumps(state))
    with pytest.raises(InputError, match="no checkpoint here is intact"):
        newest(tmp_path, events)
    assert "disagree" in events.texts[0]


def test_an_index_that_claims_too_many_bytes_allocates_no_memory(train_step, tmp_path):
    folder = save(tmp_path, train_step, 7)
    index = json.loads((folder / INDEX).read_text())
    index["wpe.weight"]["size"] = [10**9, 10**6]
    sealed(folder, INDEX, index)
    with pytest.raises(InputError, match=r"bytes of tensors, and the files have"):
        dict(CheckpointStateDict(folder))


def test_tensors_of_another_shape_raise_one_clear_error(make_run, train_step, tmp_path):
    folder = save(tmp_path, train_step, 7)
    fresh = build_train_step(make_run(n_ctx=8), CONTEXT, SILENT)
    with pytest.raises(InputError, match="does not fit this run"):
        Checkpoints(tmp_path, CONTEXT, keep=1).load(
            folder, plain_named_parameters(fresh.model), fresh.optimizer
        )


def test_a_malformed_state_is_rejected(train_step, tmp_path):
    folder = save(tmp_path, train_step, 7)
    state = json.loads((folder / STATE).read_text())
    for changes in (
        {"position": {"step": "7", "sequences": 28}},
        {"identity": 3},
        {"metrics": None},
    ):
        (folder / STATE).write_text(json.dumps(state | changes))
        with pytest.raises(InputError, match="not the state of a checkpoint"):
            checkpoint.read_state(folder)


def test_a_resume_removes_old_checkpoints_that_a_killed_run_left(make_run, train_step, tmp_path):
    for step in (2, 4, 6):
        save(tmp_path, train_step, step)
    fresh, checkpoints = (
        build_train_step(make_run(), CONTEXT, SILENT),
        Checkpoints(tmp_path, CONTEXT, keep=2),
    )
    newest = checkpoints.newest(SILENT)
    assert newest is not None
    checkpoints.load(newest, plain_named_parameters(fresh.model), fresh.optimizer)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000004",
        "step-00000006",
    ]


def test_a_gpus_tensors_are_staged_in_the_same_memory_each_time(train_step, tmp_path):
    checkpoints = Checkpoints(tmp_path, RankContext(torch.device("cuda")), keep=1)
    tensors = {"a": torch.zeros(2)}
    stager = checkpoints._stager(tensors)
    assert stager.cache_staged_state_dict
    assert checkpoints._stager({"a": torch.ones(2)}) is stager
    assert checkpoints._stager({**tensors, "b": torch.zeros(1)}) is not stager
    apples = Checkpoints(tmp_path, GPU_CONTEXT, keep=1)
    assert not apples._stager(tensors).cache_staged_state_dict
    assert apples._stager(tensors).stage(tensors)["a"] is not tensors["a"]


def test_a_cpus_tensors_are_written_where_they_are_before_the_next_step(
    train_step, tmp_path, monkeypatch
):
    """However many they are: none is copied, and the checkpoint is on disk when `save` returns."""
    monkeypatch.setattr(checkpoint, "SYNC_BYTES", 0)
    seen: list[int] = []
    write = checkpoint_storage.write_file

    def spied(path, tensors):
        seen.extend(tensor.data_ptr() for tensor in tensors.values())
        return write(path, tensors)

    monkeypatch.setattr(checkpoint_storage, "write_file", spied)
    parameters = plain_named_parameters(train_step.model)
    Checkpoints(tmp_path, CONTEXT, keep=3).save(state_at(5), parameters, train_step.optimizer)
    assert checkpoint.checkpoint_folder(tmp_path, 5).exists()
    assert {parameter.data_ptr() for parameter in parameters.values()} <= set(seen)
