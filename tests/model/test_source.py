from __future__ import annotations

import json
import re
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gptcli.errors import InputError, UsageError
from gptcli.model.hub import HUB
from gptcli.model.source import (
    ModelSource,
    checkpoint_digest,
    find_model,
    is_model_file,
    no_weights_error,
    not_a_model_error,
    written,
)


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


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(path: str, data: bytes | str = b"x") -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(data.encode() if isinstance(data, str) else data)


LLMC_STATE = struct.pack("<2i", 20240327, 2) + b"\0" * 100
SHARD = struct.pack("<3i", 20240520, 1, 0) + b"\0" * 100
# files that are there, the path named, what the answer says
FILES: dict[str, tuple[dict[str, bytes | str], str, str]] = {
    "a name of the hub": ({}, "gpt2", "hf download openai-community/gpt2 config.json model.safetensors tokenizer.json --local-dir gpt2"),
    "a whole name of the hub": ({}, "some-lab/tiny-gpt", "hf download some-lab/tiny-gpt .* --local-dir tiny-gpt"),
    "a path that was mistyped": ({"runs/small/x": "x"}, "runs/smal", "did you mean runs/small?"),
    "a run without its folder": ({"runs/350M/x": "x"}, "350M", "did you mean runs/350M?"),
    "a pattern": ({}, "runs/*", "no such folder\n  the shell found nothing for this pattern"),
    "a path of Windows": ({}, "C:\\runs\\a", "no such folder\n  a path of Windows is, in WSL: /mnt/c/runs/a"),
    "nothing": ({}, "runs/350M", "no such folder\n  a model is a run folder"),
    "a quoted home": ({}, "~/runs/a", "remove the quotes"),
    "one file of a model": ({"m/model.safetensors": "x", "m/config.json": "{}"}, "m/model.safetensors", "one file of a model.*\n  name its folder: m"),
    "weights alone": ({"m/model.safetensors": "x"}, "m/model.safetensors", "no config.json of a model is next to it\n  a model is a run folder"),
    "a tokenizer": ({"tokenizer.json": "{}"}, "tokenizer.json", "no config.json of a model is next to it\n  a model is a run folder"),
    "a configuration": ({"m/config.json": "{}"}, "m/config.json", "name its folder: m"),
    "a .pt file": ({"model.pt": b"PK\x03\x04"}, "model.pt", "is neither a checkpoint of nanoGPT"),
    "a checkpoint without an ending": ({"model": b"\x80\x02"}, "model", "is neither a checkpoint of nanoGPT"),
    "pytorch_model.bin": ({"m/pytorch_model.bin": b"PK\x03\x04", "m/config.json": "{}"}, "m/pytorch_model.bin", "name its folder: m"),
    "the folder above nanoGPT's": ({"nano/out/ckpt.pt": b"PK\x03\x04"}, "nano", "name the checkpoint of nanoGPT in it: nano/out/ckpt.pt"),
    "llm.c's state": ({"gpt2_124M_debug_state.bin": LLMC_STATE}, "gpt2_124M_debug_state.bin", "name the model itself"),
    "a folder with a token file": (
        {"s/train.bin": SHARD},
        "s",
        "contains no model: train.bin is a token file, not a model\n  gpt train --data s",
    ),
    "a token file": ({"s/train.bin": SHARD}, "s/train.bin", "token file, not a model\n  gpt train --data s"),
    "a GGUF": ({"m/m.gguf": b"GGUF"}, "m", "GGUF"),
    "shards": ({"shards/manifest.json": "{}"}, "shards", "contains token shards, not a model\n  gpt train --data shards"),
    "a run that has not ended": ({"r/run.toml": ""}, "r", "has not ended.*\n  gpt train --resume --out r"),
    "weights without a configuration": ({"m/model.safetensors": "x"}, "m", "no config.json"),
    "a LoRA adapter": ({"m/adapter_config.json": "{}", "m/adapter_model.safetensors": "x"}, "m", "LoRA adapter"),
    "a folder of runs": ({"runs/a/config.json": "{}", "runs/b/config.json": "{}"}, "runs", "name one of the models in it: runs/a, runs/b"),
    "a folder of many runs, of which one has only begun": (
        {
            **{f"runs/{name}/config.json": "{}" for name in "abcdefg"},
            **{f"runs/{name}/model.safetensors": "x" for name in "acdefg"},
        },
        "runs",
        "name one of the models in it: runs/a, runs/c, runs/d, runs/e and 2 more",
    ),
    "the hub's cache": ({"models--a--b/snapshots/0/config.json": "{}"}, "models--a--b", "models--a--b/snapshots/0"),
    "a model that is not public": ({}, "gpt-4", "are not public; .* openai-community/gpt2-xl"),
    "an address": ({}, "https://huggingface.co/some-lab/tiny/tree/main", "is an address.*\n  name the model alone: some-lab/tiny$"),
    "an address elsewhere": ({}, "https://example.com/model", "is an address, not a model on this machine\n  download it"),
    "a store": ({}, "s3://bucket/run", "is an address, .*\n  download it"),
    "a prompt": ({}, "Once upon a time", "the model comes before the prompt"),
    "checkpoints": ({"r/checkpoints/x": "x", "r/run.toml": "x"}, "r/checkpoints", "name the run: r, with"),
    "a text": ({"book.txt": "x"}, "book.txt", "is text, not a model\n .* gpt eval RUN --text book.txt; .* gpt build-shards book.txt"),
    "any file": ({"notes": "x"}, "notes", "is a file; a model is a folder"),
    "any folder": ({"d/notes": "x"}, "d", "contains no config.json\n  a model is a run folder"),
}  # fmt: skip


@pytest.mark.parametrize("case", FILES)
def test_error_says_what_the_path_is_and_what_to_do(case: str) -> None:
    files, named, answer = FILES[case]
    for path, data in files.items():
        write(path, data)
    error = not_a_model_error(Path(named))
    assert error.where == (named if "://" in named else str(Path(named)))
    assert re.search(answer.replace("?", r"\?"), f"{error.what}\n  {error.hint}"), error


def test_empty_folder_is_reported(tmp_path: Path) -> None:
    assert "is an empty folder" in not_a_model_error(tmp_path).what


@pytest.mark.parametrize("name", HUB)
def test_every_hub_name_gets_a_download_command(name: str) -> None:
    assert f"hf download {HUB[name]} " in str(not_a_model_error(Path(name)).hint)


def test_folder_without_weights_is_reported() -> None:
    write("a/config.json")
    assert "contains no model.safetensors" in no_weights_error(Path("a")).what
    write("a/model.pth", b"PK\x03\x04")
    assert "is neither a checkpoint of nanoGPT" in no_weights_error(Path("a")).what


def test_endings_and_first_bytes_tell_models_of_other_programs() -> None:
    llmc = struct.pack("<2i", 20240326, 3)
    files = {"a/ckpt.pt": b"PK\x03\x04", "b.pth": b"\x80\x02", "c.bin": llmc}
    others = {"d.pt": b"text", "e.bin": LLMC_STATE, "f/pytorch_model.bin": b"PK\x03\x04"}
    for path, data in {**files, **others}.items():
        write(path, data)
    assert [path for path in {**files, **others} if is_model_file(Path(path))] == list(files)
    assert find_model("a").folder == Path("a/ckpt.pt")
    write("a/config.json")  # then it is a transformers folder
    assert find_model("a").folder == Path("a")


def test_a_path_is_written_as_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert written(Path("s3://bucket/run")) == "s3://bucket/run"
    assert written(Path("ab:/run")) == "ab://run"
    (tmp_path / "ab:").mkdir()
    assert written(Path("ab:/run")) == "ab:/run"
    assert written(Path()) == "."
    assert written(tmp_path) == str(tmp_path)
