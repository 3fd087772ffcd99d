"""`gpt train --report`: draws, and trains nothing."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from gptcli.cli.train_report import draw
from gptcli.errors import UsageError

LINE = {
    "step": 1,
    "tokens": 64,
    "loss": 5.0,
    "lr": 1e-4,
    "grad_norm": 1.0,
    "batch_tokens": 64,
    "tokens_per_second": 100.0,
}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        folder = Path(name)
        folder.mkdir()
        (folder / "run.toml").write_text("# parameters: 10\nlr = 1.0\n")
        (folder / "metrics.jsonl").write_text(json.dumps(LINE) + "\n")
    return [Path("a"), Path("b")]


def test_one_run_is_drawn_where_its_report_is_and_several_where_one_says(runs, capsys):
    draw(runs[:1], None, force=False, as_json=False)
    draw(runs[:1], None, force=False, as_json=False)  # over itself
    draw(runs, "two.html", force=False, as_json=True)
    one, again, two = capsys.readouterr().out.splitlines()
    assert one == again == "a/report.html"
    assert json.loads(two) == {"schema": "gpt.train/1", "report": "two.html", "runs": ["a", "b"]}
    assert "<h1>GPT: a</h1>" in Path("a/report.html").read_text()
    assert "<h1>2 runs</h1>" in Path("two.html").read_text()
    draw(runs, "-", force=False, as_json=False)
    assert capsys.readouterr().out == Path("two.html").read_text()


def test_the_losses_alone_are_a_picture(runs):
    for chosen, names in ((runs[:1], ["training, running mean"]), (runs, ["a", "b"])):
        draw(chosen, "run.svg", force=True, as_json=False)
        root = ElementTree.parse("run.svg").getroot()
        words = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
        assert all(name in words for name in ["nats per token", "tokens", *names])


@pytest.mark.parametrize(
    ("several", "out", "says"),
    [(0, None, "RUN is missing"), (2, None, "needs a name"), (2, "a/run.toml", "exists")],
)
def test_what_cannot_be_drawn(runs, several, out, says):
    before = sorted(Path().rglob("*"))
    with pytest.raises(UsageError, match=says):
        draw(runs[:several], out, force=False, as_json=False)
    assert sorted(Path().rglob("*")) == before


def test_from_the_command_line_without_torch(runs, gpt, tmp_path):
    # found first, in the current folder
    (tmp_path / "torch.py").write_text("raise ImportError('a report needs no torch')")
    assert gpt("train", "--report", "a", "b", "-o", "c.html").stdout == "c.html\n"
    stray = gpt("train", "a", code=2)
    assert "a: unexpected run folder" in stray.stderr
    both = gpt("train", "--report", "a", "--lr", "1e-3", code=2)
    assert "--lr: --report only draws" in both.stderr
