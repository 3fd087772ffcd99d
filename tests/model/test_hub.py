"""Models by their names on the Hub, against a stand-in that speaks its protocol."""

# ruff: noqa: F811
from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from gptcli.cli import build_app, main
from gptcli.errors import GptError, InputError, UsageError
from gptcli.events import Events
from gptcli.model.config import ModelConfig
from gptcli.model.hub import HUB, cached_model, fetch_model, hub_repository
from gptcli.model.safetensors_io import load_model, save_model
from gptcli.model.source import find_model, not_a_model_error
from gptcli.model.transformer import GPT
from gptcli.numbers import in_bytes
from tests.hub_server import COMMIT, Hub, hub  # noqa: F401

NAME = "lab/tiny-gpt"


TINY = ModelConfig(n_layer=2, n_head=2, d_model=16, n_ctx=16, vocab_size=257)


def publish(hub: Hub, folder: Path, name: str = NAME, **config: Any) -> GPT:
    """Put a small GPT-2 with a tokenizer on the Hub."""
    from gptcli.tokenizer.tokenizer import END_OF_TEXT, Tokenizer, byte_alphabet

    torch.manual_seed(0)
    model = GPT(TINY).eval()
    save_model(folder, model, TINY)
    Tokenizer([*byte_alphabet(), END_OF_TEXT], []).save(folder / "tokenizer.json")
    (folder / "README.md").write_text("a card")
    (folder / "pytorch_model.bin").write_bytes(b"the same weights, which are not needed")
    if config:
        table = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**table, **config}))
    hub.repositories[name] = folder
    return model


class Told(Events):
    def __init__(self) -> None:
        self.lines: list[str] = []
        self.done: list[float] = []

    def info(self, text: str) -> None:
        self.lines.append(text)

    def progress(self, task: str, done: float, total: float | None = None, unit: str = "", **facts: object) -> None:  # fmt: skip
        assert total is not None
        self.done.append(done / total)


def test_model_is_downloaded_once_and_then_used_offline(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published, told = publish(hub, tmp_path / "model"), Told()
    fetch_model(NAME, told)
    [line] = told.lines
    assert line.startswith("downloading lab/tiny-gpt: 2 files, ")
    assert told.done == sorted(told.done)
    assert told.done[-1] == 1
    asked = "\n".join(hub.requests)
    assert "README.md" not in asked
    assert "pytorch_model.bin" not in asked
    # the cache is the one that huggingface_hub reads
    from huggingface_hub import snapshot_download

    folder = cached_model(NAME)
    cache = str(tmp_path / "hf/hub")
    assert str(folder) == snapshot_download(NAME, cache_dir=cache, local_files_only=True)
    hub.requests.clear()
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    fetch_model(NAME, told)
    assert not hub.requests
    idx = torch.arange(8)[None]
    with torch.no_grad():
        assert torch.equal(load_model(Path(NAME))(idx), published(idx))


def test_short_names_have_their_repositories(hub: Hub, tmp_path: Path) -> None:
    publish(hub, tmp_path / "model", "openai-community/gpt2")
    fetch_model("gpt2")
    assert find_model("gpt2").folder == cached_model("openai-community/gpt2")
    assert {hub_repository(name) for name in HUB} == set(HUB.values())


def test_a_mistyped_path_is_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models-of-mine" / "book").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for typed in ("model-of-mine/book", "models-of-mine/bok", "model-of-mine/bok"):
        assert hub_repository(typed) is None
        fetch_model(typed)  # downloads nothing
        assert not_a_model_error(Path(typed)).hint == "did you mean models-of-mine/book?"
    assert hub_repository("somebody/book") == "somebody/book"


def test_cache_of_an_old_name_is_used(hub: Hub, tmp_path: Path) -> None:
    publish(hub, tmp_path / "model")
    snapshot = tmp_path / "hf/hub/models--gpt2/snapshots" / COMMIT
    shutil.copytree(tmp_path / "model", snapshot)
    (tmp_path / "hf/hub/models--gpt2/refs").mkdir()
    (tmp_path / "hf/hub/models--gpt2/refs/main").write_text(COMMIT)
    fetch_model("gpt2")
    assert not hub.requests
    assert cached_model("gpt2") == snapshot


@pytest.mark.parametrize("name", ["gpt2", NAME])
def test_local_folder_is_preferred(hub: Hub, tmp_path: Path, name: str) -> None:
    publish(hub, tmp_path / "model", HUB.get(name, name))
    fetch_model(name)
    save_model(Path(name), GPT(TINY), TINY)
    hub.requests.clear()
    fetch_model(name)
    assert not hub.requests
    assert find_model(name).folder == Path(name)


def test_another_architecture_is_refused_before_its_weights(hub: Hub, tmp_path: Path) -> None:
    publish(hub, tmp_path / "model", model_type="llama")
    with pytest.raises(InputError, match="models of type 'llama' are not supported") as caught:
        fetch_model(NAME)
    assert caught.value.where == NAME
    assert "safetensors" not in "\n".join(hub.requests)


def test_truncated_download_is_not_used(hub: Hub, tmp_path: Path) -> None:
    publish(hub, tmp_path / "model")
    hub.cut = "model.safetensors"
    with pytest.raises(InputError, match=NAME):
        fetch_model(NAME)
    assert cached_model(NAME) is None
    with pytest.raises(InputError, match="has to be downloaded"):
        load_model(Path(NAME))
    hub.cut = None
    fetch_model(NAME)
    load_model(Path(NAME))


def test_a_dry_run_tells_what_a_run_would_download(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    publish(hub, tmp_path / "model")
    size = sum(
        (tmp_path / "model" / name).stat().st_size
        for name in ("model.safetensors", "tokenizer.json")
    )
    monkeypatch.setattr(
        "sys.argv", ["gpt", "train", "--init-from", NAME, "--data", "none", "--dry-run"]
    )
    with pytest.raises(SystemExit) as stop:
        main()
    shown = capsys.readouterr()
    assert stop.value.code == 0, shown.err
    assert f"the run will first download {NAME}: 2 files, {in_bytes(size)}, into " in shown.err
    assert f'init_from = "{NAME}"' in shown.out
    assert "n_layer = 2" in shown.out
    asked = [one for one in hub.requests if "/resolve/" in one]
    assert asked
    assert all("/config.json" in one for one in asked)
    assert cached_model(NAME) is None


@pytest.mark.parametrize(
    "command",
    [
        ("sample", "./lab/tiny-gpt", "x"),
        ("eval", "./lab/tiny-gpt"),
        ("cost", "./lab/tiny-gpt"),
        ("train", "--export", "./lab/tiny-gpt", "-o", "y"),
        ("train", "--data", ".", "--init-from", "./lab/tiny-gpt", "--dry-run"),
    ],
    ids=" ".join,
)
def test_a_path_with_a_dot_is_never_a_name(
    hub: Hub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: tuple[str, ...],
) -> None:
    publish(hub, tmp_path / "model")
    monkeypatch.setattr("sys.argv", ["gpt", *command])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "no such folder" in capsys.readouterr().err
    assert hub.requests == []


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors", "tokenizer.json"])
def test_incomplete_snapshot_is_completed(hub: Hub, tmp_path: Path, lost: str) -> None:
    publish(hub, tmp_path / "model")
    fetch_model(NAME)
    folder = cached_model(NAME)
    assert folder is not None
    (folder / lost).unlink()
    assert cached_model(NAME) is None
    fetch_model(NAME)
    assert cached_model(NAME) == folder


def test_files_of_an_index_are_downloaded(hub: Hub, tmp_path: Path) -> None:
    model = publish(hub, tmp_path / "model")
    whole = tmp_path / "model/model.safetensors"
    whole.rename(whole.with_name("model-00001-of-00001.safetensors"))
    index = {"weight_map": dict.fromkeys(model.state_dict(), "model-00001-of-00001.safetensors")}
    (tmp_path / "model/model.safetensors.index.json").write_text(json.dumps(index))
    fetch_model(NAME)
    load_model(Path(NAME))


def test_pickled_weights_are_the_last_choice(hub: Hub, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    publish(hub, tmp_path / "model")
    weights = tmp_path / "model/model.safetensors"
    torch.save(load_file(weights), tmp_path / "model/pytorch_model.bin")
    weights.unlink()
    fetch_model(NAME)
    load_model(Path(NAME))


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "an unknown name": ({"repositories": {}}, "no public model of this name", "check the spelling"),
    "missing rights": ({"status": 403}, "no public model of this name", "hf auth login"),
    "a failing server": ({"status": 500}, "cannot be reached", "hf download lab/tiny-gpt"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusal_says_what_to_do(hub: Hub, tmp_path: Path, case: str) -> None:
    publish(hub, tmp_path / "model")
    state, what, hint = REFUSED[case]
    vars(hub).update(state)
    with pytest.raises(InputError, match=what) as caught:
        fetch_model(NAME)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    ("lost", "message"),
    [("tokenizer.json", "has no tokenizer.json"), ("config.json", "is not a model")],
)
def test_repository_without_a_file_is_refused(
    hub: Hub, tmp_path: Path, lost: str, message: str
) -> None:
    publish(hub, tmp_path / "model")
    (tmp_path / "model" / lost).unlink()
    with pytest.raises(InputError, match=message):
        fetch_model(NAME)
    assert "safetensors" not in "\n".join(hub.requests)


@pytest.mark.parametrize("offline", [False, True])
def test_unreachable_hub_says_how_to_bring_the_files(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, offline: bool
) -> None:
    if offline:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="no such folder, and the Hub cannot be reached") as caught:
        fetch_model("gpt2")
    hint = "hf download openai-community/gpt2 config.json model.safetensors tokenizer.json --local-dir gpt2"
    assert hint in str(caught.value.hint)


def test_missing_package_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match="needs the package huggingface_hub") as caught:
        fetch_model("gpt2")
    assert "hf download openai-community/gpt2" in str(caught.value.hint)


def test_full_disk_is_reported_before_the_download(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(hub, tmp_path / "model")
    usage = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr("gptcli.model.hub.shutil.disk_usage", lambda _: usage)
    with pytest.raises(GptError, match=r"the disk has .* free"):
        fetch_model(NAME)
    assert "GET /lab/tiny-gpt/resolve/main/model.safetensors" not in hub.requests


@pytest.mark.parametrize("path", ["runs/x", "out/y", "../gpt2", "a/b/c", "some words", "/gpt2"])
def test_paths_are_not_names(hub: Hub, path: str) -> None:
    fetch_model(path)
    assert not hub.requests


def test_commands_take_a_name(hub: Hub, tmp_path: Path) -> None:
    publish(hub, tmp_path / "model")
    argv = ["sample", NAME, "a", "--greedy", "--max-tokens", "3"]
    done = CliRunner().invoke(build_app(argv), argv, catch_exceptions=False)
    assert done.exit_code == 0
    assert "downloading lab/tiny-gpt: 2 files" in done.stderr
    assert done.stdout.startswith("a")
    argv = ["train", "--export", NAME, "-o", "tiny.gguf"]
    assert CliRunner().invoke(build_app(argv), argv).exit_code == 0
