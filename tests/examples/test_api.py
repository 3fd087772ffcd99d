"""The library as a program and a notebook use it: examples/api.py, examples/api.ipynb."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gptcli
from tests.small_runs import make_shards

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "api.ipynb"


def run_python(*words: str | Path, cwd: Path) -> str:
    """Run Python in another folder, with one thread, and return its stdout."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def code_cells() -> list[str]:
    """Return the source of the notebook's code cells."""
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_example_goes_from_a_text_to_a_score(tmp_path: Path) -> None:
    out = run_python(EXAMPLES / "api.py", cwd=tmp_path)
    assert "validation loss" in out
    assert "GPT-3 175B on 1,024 H100s" in out


def test_notebook_runs_cell_by_cell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    names: dict[str, object] = {"__name__": "__main__"}
    for source in code_cells():
        exec(compile(source, str(NOTEBOOK), "exec"), names)
    assert "validation loss" in capsys.readouterr().out


def test_notebook_takes_the_steps_of_the_example() -> None:
    example = (EXAMPLES / "api.py").read_text(encoding="utf-8")
    steps = [line.strip() for line in "\n".join(code_cells()[1:]).splitlines() if line.strip()]
    assert len(steps) > 15
    assert [line for line in steps if line not in example] == []


def test_import_is_light() -> None:
    heavy = ("torch", "numpy", "tokenizers", "typer", "rich")
    program = f"import sys, gptcli; print([name for name in {heavy!r} if name in sys.modules])"
    assert run_python("-c", program, cwd=ROOT).strip() == "[]"


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
days: float = gptcli.estimate_cost(shape, gpus=8).days
report: dict[str, object] = gptcli.estimate_cost("175B").as_dict()
""",
        encoding="utf-8",
    )
    run_python("-m", "mypy", "--strict", "--cache-dir", tmp_path, program, cwd=tmp_path)


def test_data_loader_resumes_and_divides_its_order(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards")
    whole = gptcli.DataLoader(shards, batch_size=6, n_ctx=16, seed=3)
    x, y = next(iter(whole))
    assert x.shape == y.shape == (6, 16)
    assert (x[:, 1:] == y[:, :-1]).all()
    parts = [
        gptcli.DataLoader(shards, batch_size=2, n_ctx=16, seed=3, rank=rank, world_size=3)
        for rank in range(3)
    ]
    divided = [next(iter(part))[0] for part in parts]
    assert [row.tolist() for part in divided for row in part] == x.tolist()
    state = parts[1].state_dict()
    assert state == whole.state_dict()
    again = gptcli.DataLoader(shards, batch_size=6, n_ctx=16, seed=3)
    again.load_state_dict(state)
    assert (next(iter(again))[0] == next(iter(whole))[0]).all()
    with pytest.raises(gptcli.UsageError, match="saved with seed=3"):
        gptcli.DataLoader(shards, batch_size=6, n_ctx=16, seed=4).load_state_dict(state)
    with pytest.raises(gptcli.UsageError, match="rank: 3 is not a rank of 3 processes"):
        gptcli.DataLoader(shards, batch_size=6, n_ctx=16, rank=3, world_size=3)


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
