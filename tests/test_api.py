"""The library does what the commands do, is light to import and is typed for a user's program."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest

import gptcli
from tests.run_python import run_python
from tests.small_runs import make_shards

ROOT = Path(__file__).parents[1]


def test_import_is_light() -> None:
    heavy = ("torch", "numpy", "tokenizers", "typer", "rich")
    program = f"import sys, gptcli; print([name for name in {heavy!r} if name in sys.modules])"
    assert run_python("-c", program, cwd=ROOT, started=True).strip() == "[]"


def test_the_version_is_one_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
        "version"
    ]
    assert gptcli.__version__ == version
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", changes, re.MULTILINE)[0] in (version, "Unreleased")


def test_every_public_name_is_importable_and_documented() -> None:
    assert set(gptcli.__all__) <= set(dir(gptcli))
    for name in gptcli.__all__:
        assert getattr(gptcli, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        gptcli.nothing  # noqa: B018
    assert (Path(gptcli.__file__).parent / "py.typed").is_file()


def test_a_program_that_uses_every_name_is_typed_for_its_author(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        """from pathlib import Path

import torch

import gptcli

model: gptcli.GPT = gptcli.load_model("run").model
config: gptcli.TrainConfig = gptcli.TrainConfig.for_size("350M", tokens="10M", lr=1e-3)
plain = gptcli.TrainConfig(tokens=1000, batch_tokens=100, lr=1e-3)
shape = gptcli.ModelConfig(n_layer=1, n_head=1, d_model=8, n_ctx=16)
tokenizer: gptcli.Tokenizer = gptcli.load_tokenizer("run")
other: gptcli.Tokenizer = gptcli.train_tokenizer(["text"], 300)
gptcli.build_shards([Path("a.txt")], "shards", tokenizer=other, events=gptcli.Events())
loader = gptcli.DataLoader("shards", batch_size=2, n_ctx=16)
for x, y in loader:
    z: torch.Tensor = x + y
loader.load_state_dict(loader.state_dict())
try:
    step: int = gptcli.train(plain, data="shards", out="run", model=shape)["step"]
except (gptcli.UsageError, gptcli.InputError, gptcli.RunError, gptcli.Interrupted) as error:
    field: str | None = error.field
one: str = gptcli.generate("run", "a", params=gptcli.SamplingParams(greedy=True))
many: list[str] = gptcli.generate("run", ["a", "b"])
losses: list[dict[str, float]] = gptcli.evaluate("run", tasks=["lambada"])["losses"]
gptcli.export_model("run", "run.gguf", precision="fp16")
days: float = gptcli.estimate_cost(shape, gpus=8).days
report: dict[str, object] = gptcli.estimate_cost("175B").as_dict()
""",
        encoding="utf-8",
    )
    run_python(
        "-m", "mypy", "--strict", "--cache-dir", tmp_path, program, cwd=tmp_path, started=True
    )


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "model.safetensors"])
def test_a_folder_is_not_written_under_the_name_of_a_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(gptcli.UsageError, match=r"no \.\w+ file can be written") as caught:
        gptcli.export_model("run", tmp_path / name)
    assert "ends in .gguf" in str(caught.value.hint)
    assert not (tmp_path / name).exists()


def test_train_config_has_defaults_and_recipes() -> None:
    plain = gptcli.TrainConfig(tokens=1000, batch_tokens=100, lr=1e-3)
    assert (plain.decay_tokens, plain.beta2, plain.layout) == (1000, 0.95, "dp=1")
    paper = gptcli.TrainConfig.for_size("350M", precision="fp32", layout="dp=1", micro_batch=4)
    assert (paper.lr, paper.tokens, paper.micro_batch) == (3e-4, 300_000_000_000, 4)
    short = gptcli.TrainConfig.for_size("350M", tokens="10M", seed=7)
    assert (short.tokens, short.seed) == (10_000_000, 7)
    with pytest.raises(gptcli.UsageError, match="unknown field 'learning_rate'"):
        gptcli.TrainConfig.for_size("350M", learning_rate=1)
    with pytest.raises(gptcli.UsageError, match=r"lr: -1 is out of range") as caught:
        gptcli.TrainConfig(tokens=1000, batch_tokens=100, lr=-1)
    assert (caught.value.field, caught.value.code) == ("lr", "out_of_range")


def test_a_run_from_python_is_one_of_the_command_line(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards")
    out = tmp_path / "run"
    shape = gptcli.ModelConfig(n_layer=1, n_head=1, d_model=8, n_ctx=16)
    config = gptcli.TrainConfig(
        tokens=640, batch_tokens=64, lr=1e-3, micro_batch=4, eval_tokens=64, checkpoint_every=5
    )
    report = gptcli.train(config, data=shards, out=out, model=shape)
    assert (report["tokens"], report["interrupted"]) == (640, False)
    with pytest.raises(gptcli.UsageError, match="not empty"):
        gptcli.train(config, data=shards, out=out, model=shape)
    with pytest.raises(gptcli.UsageError, match="is finished"):
        gptcli.train(config, data=shards, out=out, model=shape, resume=True)
    words = ("-m", "gptcli", "train", "--resume", "--out", out, "--data", shards)
    run_python(*words, cwd=tmp_path)
    told = json.loads(run_python("-m", "gptcli", "eval", out, "--json", cwd=tmp_path))
    del told["schema"]
    assert gptcli.evaluate(out, device="cpu") | {"model": str(out)} == told


def test_estimate_is_that_of_the_command(tmp_path: Path) -> None:
    words = ("-m", "gptcli", "cost", "--size", "1.3B", "--gpus", "64", "--gpu", "a100", "--json")
    told = json.loads(run_python(*words, cwd=tmp_path))
    del told["schema"]
    found = gptcli.estimate_cost("1.3B", gpus=64, gpu="a100").as_dict()
    assert json.loads(json.dumps(found)) == told
