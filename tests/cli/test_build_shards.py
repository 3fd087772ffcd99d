"""`gpt build-shards` as a user runs it: what it prints, what it refuses, and that it can be killed
at any moment.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gptcli import cli
from gptcli.files import sha256
from gptcli.shards.manifest import read_manifest
from gptcli.tokenizer.tokenizer import END_OF_TEXT, Tokenizer, byte_alphabet
from tests.waiting import HANG_S, wait_until

Gpt = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A tokenizer of bytes, and 2 MB of text in lines: several units for several workers."""
    Tokenizer([*byte_alphabet(), END_OF_TEXT], []).save(tmp_path / "tokenizer.json")
    chance = random.Random(0)
    words = ["shard", "token", "Grüße", "a", "\t", "of", "the", "12"]
    lines = [" ".join(chance.choices(words, k=chance.randrange(1, 60))) for _ in range(15_000)]
    (tmp_path / "corpus").mkdir()
    for number in range(3):
        (tmp_path / f"corpus/{number}.txt").write_text(
            "\n".join(lines[number::3]), encoding="utf-8"
        )
    return tmp_path


ARGUMENTS = (
    "build-shards",
    "corpus",
    "--tokenizer",
    "tokenizer.json",
    "--documents",
    "line",
    "--shard-tokens",
    "200k",
    "--workers",
    "2",
)


def shards(folder: Path) -> dict[str, str]:
    """Every file and its SHA-256, but for those that tell the command line or the inputs' names."""
    return {
        path.name: sha256(path)
        for path in folder.iterdir()
        if path.name not in ("build.toml", "resume.json", "report.md")
    }


def test_short_documents_are_pointed_out(corpus: Path, gpt: Gpt) -> None:
    (corpus / "lines.txt").write_text("one short line\n" * 200)
    words = ("build-shards", "lines.txt", "--tokenizer", "tokenizer.json", "-o")
    told = gpt(*words, "short", "--documents", "line").stdout
    assert "the documents are short, 15 tokens on average: samples of the model will" in told
    assert "documents are short" not in gpt(*words, "long", "--documents", "file").stdout
    assert "documents are short" not in gpt(*words, "quiet", "--documents", "line", "-q").stdout


def test_the_result_fits_a_narrow_terminal(
    corpus: Path, gpt_here: Gpt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptcli.cli.console.columns", lambda stream: 40)
    (corpus / "lines.txt").write_text("one short line\n\n" * 200)
    words = ("build-shards", "lines.txt", "--tokenizer", "tokenizer.json", "--documents", "line")
    plan = gpt_here(*words, "--dry-run").stdout
    result = gpt_here(*words, "--workers", "1").stdout
    for told in (plan[plan.index("\ncpu ") :], result):
        assert max(map(len, told.splitlines())) <= 40, told


def test_text_becomes_shards(corpus: Path, gpt: Gpt) -> None:
    done = gpt(*ARGUMENTS)
    manifest = read_manifest(corpus / "shards")
    # A slow machine says how far it is.
    assert [
        line
        for line in done.stderr.splitlines()
        if not line.startswith(("read: ", "write shards: "))
    ] == []
    assert done.stdout.splitlines() == [
        f"train: {manifest.tokens('train'):,} tokens, {sum(shard.documents for shard in manifest.shards_of('train')):,} documents, "
        f"{len(manifest.shards_of('train'))} shards",
        f"val:   {manifest.tokens('val'):,} tokens, {sum(shard.documents for shard in manifest.shards_of('val')):,} documents, 1 shard",
        "dropped: 35 of 15,000 documents; report.md says why",
        f"{Path('shards/manifest.json')} lists the shards; report.md next to it describes them",
    ]
    config = (corpus / "shards/build.toml").read_text()
    assert 'inputs = ["corpus"]' in config
    assert "shard_tokens = 200000" in config
    assert "seed = 0" in config
    assert gpt(*ARGUMENTS, "--resume").stderr == f"{Path('shards/manifest.json')} is up to date\n"
    assert (
        "the output folder is not empty\n  --resume continues it; another --out leaves it as it is"
        in gpt(*ARGUMENTS, code=2).stderr
    )
    report = json.loads(gpt(*ARGUMENTS, "--force", "--seed", "4", "--json").stdout)
    assert report["schema"] == "gpt.build-shards/1"
    assert report["train"]["tokens"] == manifest.tokens("train")
    assert report["sources"][0]["documents_in"] == 15_000
    assert read_manifest(corpus / "shards").seed == 4


def test_number_of_workers_and_stdin_do_not_change_the_shards(corpus: Path, gpt: Gpt) -> None:
    text = (corpus / "corpus/0.txt").read_text(encoding="utf-8")
    one = (*ARGUMENTS[2:], "--workers", "1")
    gpt("build-shards", "corpus/0.txt", *one, "-o", "file")
    gpt("build-shards", "-", *one, "-o", "stdin", stdin=text)
    assert shards(corpus / "file") == shards(corpus / "stdin")
    assert (
        "cannot be resumed"
        in gpt("build-shards", "-", *one, "-o", "stdin", "--resume", stdin=text, code=2).stderr
    )


SMALL_CHUNKS = "import gptcli.cli, gptcli.corpus.config as its; its.CHUNK_CHARACTERS = (1 << 18, 1 << 18); gptcli.cli.main()"


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The command, in units so small that the corpus has several."""
    return subprocess.Popen(
        [sys.executable, "-c", SMALL_CHUNKS, *ARGUMENTS, *arguments],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def gone(group: int) -> bool:
    """Return whether every process of the group has ended."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def wait_for_files(folder: Path, process: subprocess.Popen[str], count: int) -> None:
    """Until `process` has made so many more files in the folder, or ended."""
    before = len(list(folder.rglob("*")))
    while process.poll() is None and len(list(folder.rglob("*"))) < before + count:
        time.sleep(0.002)


def test_build_killed_at_any_moment_can_be_resumed(corpus: Path, gpt: Gpt) -> None:
    gpt(*ARGUMENTS, "-o", "whole")
    expected, wanted = shards(corpus / "whole"), int(os.environ.get("GPT_KILLS", 6))
    chance = random.Random()
    kills = 0
    for _ in range(4 * wanted):
        with start(corpus, "-o", "killed", "--resume") as process:
            wait_for_files(corpus / "killed", process, chance.randrange(1, 6))
            time.sleep(chance.random() * 0.02)
            with contextlib.suppress(ProcessLookupError):  # it has ended
                os.killpg(process.pid, signal.SIGKILL)
        kills += process.returncode == -signal.SIGKILL
        if process.returncode == 0:
            assert shards(corpus / "killed") == expected
            shutil.rmtree(corpus / "killed")
        if kills == wanted:
            break
    assert kills == wanted
    with start(corpus, "-o", "killed", "--resume") as process:
        assert process.wait(HANG_S) == 0
    assert shards(corpus / "killed") == expected


@pytest.mark.parametrize("files_made", [0, 4])
def test_interrupt_ends_all_workers(corpus: Path, files_made: int) -> None:
    """Ctrl-C, while the workers start and while they work: no traceback from anyone, and nobody
    stays behind.
    """
    with start(corpus) as process:
        while not (corpus / "shards/resume.json").exists():
            time.sleep(0.002)
        wait_for_files(corpus / "shards", process, files_made)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=HANG_S)
    assert process.returncode == 130
    told = [line for line in errors.splitlines() if not line.startswith("read: ")]  # progress
    assert told in ([], ["gpt: interrupted"])
    wait_until(lambda: gone(process.pid))
    assert not (corpus / "shards/manifest.json").exists()


def test_full_disk_is_one_message(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: int) -> None:
        if len(list(corpus.glob("shards/.work/unit-*"))) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.chdir(corpus)
    monkeypatch.setattr(sys, "argv", ["gpt", *ARGUMENTS, "--workers", "1"])
    monkeypatch.setattr("gptcli.corpus.config.CHUNK_CHARACTERS", (1 << 18, 1 << 18))
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(os, "fsync", full)
        cli.main()
    assert left.value.code == 1
    assert "the disk is full" in capsys.readouterr().err
    assert not (corpus / "shards/manifest.json").exists()
    assert not list(corpus.rglob("*.partial"))


def test_configuration_file_sets_options(corpus: Path, gpt: Gpt) -> None:
    (corpus / "build.toml").write_text(
        'inputs = ["corpus/0.txt"]\ntokenizer = "tokenizer.json"\nval-fraction = 0.5\nshard_tokens = "1M"\noutput = "from-file"\n'
    )
    gpt("build-shards", "--config", "build.toml", "--val-fraction", "0.25", "--documents", "line")
    manifest = read_manifest(corpus / "from-file")
    assert manifest.val_fraction == 0.25
    lines = (corpus / "from-file/build.toml").read_text().splitlines()
    assert any(
        line.startswith("val_fraction = 0.25") and line.endswith("# option") for line in lines
    )
    assert any(
        line.startswith("shard_tokens = 1000000") and line.endswith("# build.toml")
        for line in lines
    )
    # the resolved configuration is one
    gpt("build-shards", "--config", "from-file/build.toml", "-o", "again")
    assert (corpus / "again/manifest.json").read_bytes() == (
        corpus / "from-file/manifest.json"
    ).read_bytes()
    for text, message in (
        ("colour = 1", "build.toml:1: unknown key 'colour'"),
        (
            "seed = 1\nval_fracton = 1",
            "build.toml:2: unknown key 'val_fracton'\n  did you mean val_fraction?",
        ),
        ('inputs = "a"', "inputs: 'a' is not a list of strings"),
        ("tokenizer = 3", "tokenizer: 3 is not text"),
        ("workers = 1.5", "workers: 1.5 is not a whole number"),
    ):
        (corpus / "build.toml").write_text(text)
        assert message in gpt("build-shards", "--config", "build.toml", code=2).stderr


def test_dry_run_prints_an_estimate_and_writes_nothing(corpus: Path, gpt: Gpt) -> None:
    text = gpt(*ARGUMENTS, "--dry-run").stdout
    assert "shard_tokens = 200000" in text
    size = sum(path.stat().st_size for path in (corpus / "corpus").iterdir())
    assert f"inputs  3 files, {size / 1e6:.3g} MB" in text
    report = json.loads(gpt(*ARGUMENTS, "--dry-run", "--json").stdout)
    assert report["dry_run"]
    assert report["config"]["workers"] == 2
    assert "CPU hours" in text
    assert report["estimate"]["worker_bytes"] >= report["estimate"]["memory_bytes"] / 2
    assert report["estimate"]["tokens"] == pytest.approx(size, rel=0.02)
    assert sorted(path.name for path in corpus.iterdir()) == ["corpus", "tokenizer.json"]


def test_dry_run_prices_a_snapshot_of_common_crawl(corpus: Path, gpt: Gpt) -> None:
    pytest.importorskip("resiliparse")
    arguments = ("CC-MAIN-2024-10", "-t", "tokenizer.json", "-o", "shards")
    text = gpt("build-shards", *arguments, "--runner", "ray", "--dry-run").stdout
    rows = dict(line.split(maxsplit=1) for line in text.splitlines() if line[:1].isalpha())
    assert rows["inputs"] == "1 file, 99.4 TB"
    assert rows["crawl"].startswith("3,106,525,566 pages, as published")
    assert rows["kept"].endswith("documents, before any comparison")
    assert {"tokens", "disk", "memory", "cpu", "worker", "shuffle"} < rows.keys()
    assert "e+" not in rows["cpu"]
    assert "priced by its name, not read" in gpt("build-shards", *arguments, code=2).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "gpt: INPUT is missing"),
        (["corpus"], "gpt: --tokenizer is missing"),
        (["none", "-t", "tokenizer.json"], "gpt: none: no such file or folder"),
        (["corpus", "-t", "none.json"], "gpt: none.json: no such tokenizer"),
        (["corpus", "-t", "corpus"], "gpt: corpus contains no tokenizer"),
        (
            ["corpus", "-t", "tokenizer.json", "--val-fraction", "1"],
            "gpt: --val-fraction: 1 is out of range",
        ),
        (
            ["corpus", "-t", "tokenizer.json", "--val-fraction", "-0.5"],
            "gpt: --val-fraction: -0.5 is out of range",
        ),
        (
            ["corpus", "-t", "tokenizer.json", "--val-fraction", "ten"],
            "gpt: --val-fraction: 'ten' is not a number",
        ),
        (
            ["corpus", "-t", "tokenizer.json", "--shard-tokens", "0"],
            "gpt: --shard-tokens: 0 is out of range",
        ),
        (
            ["corpus", "-t", "tokenizer.json", "--shard-tokens", "1.5"],
            "gpt: --shard-tokens: '1.5' is not a whole number",
        ),
        (
            ["corpus", "-t", "tokenizer.json", "--shard-tokens", "3B"],
            "gpt: --shard-tokens: 3B is out of range",
        ),
        (["corpus", "-t", "tokenizer.json", "--workers", "0"], "gpt: --workers: 0 is out of range"),
        (
            ["corpus", "-t", "tokenizer.json", "--documents", "word"],
            "gpt: --documents: unknown kind of document 'word'",
        ),
        (
            ["corpus", "-t", "tokenizer.json", "--on-error", "ignore"],
            "gpt: --on-error: unknown on_error 'ignore'",
        ),
        (
            ["corpus", "-t", "tokenizer.json", "--encoder", "fast"],
            "gpt: --encoder: unknown encoder 'fast'",
        ),
        (
            ["corpus", "-t", "tokenizer.json", "--format", "nano"],
            "gpt: --format: unknown format 'nano'\n  did you mean nanogpt",
        ),
        (["--verify", "corpus"], "gpt: corpus contains text, not shards"),
        (["--verify", "nowhere"], "gpt: nowhere: no such shard folder"),
        (["corpus", "-t", "tokenizer.json", "-o", "."], "is inside the output folder"),
        (
            ["corpus", "-t", "tokenizer.json", "-o", "tokenizer.json"],
            "gpt: tokenizer.json is not a folder",
        ),
        (
            ["corpus", "-t", "tokenizer.json", "--resume", "--force"],
            "--resume and --force contradict each other",
        ),
        (
            ["corpus/empty.txt", "-t", "tokenizer.json"],
            "gpt: corpus/empty.txt: there is no text in the inputs",
        ),
        (
            ["corpus/latin.txt", "-t", "tokenizer.json"],
            "gpt: corpus/latin.txt: not valid UTF-8 at byte 3",
        ),
        (["corpus/bad.jsonl", "-t", "tokenizer.json"], "gpt: corpus/bad.jsonl:2: "),
        (["--config", "none.toml"], "gpt: none.toml: no such configuration file"),
    ],
)
def test_bad_input_is_one_message(
    corpus: Path, gpt: Gpt, arguments: list[str], message: str
) -> None:
    (corpus / "corpus/empty.txt").touch()
    (corpus / "corpus/latin.txt").write_bytes("Grüße".encode("latin-1")[:2] + b"a\xfc")
    (corpus / "corpus/bad.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n')
    before = sorted(corpus.rglob("*"))
    errors = gpt("build-shards", *arguments, code=2).stderr
    assert message in errors
    assert errors.count("gpt: ") == 1
    assert "Traceback" not in errors
    assert sorted(corpus.rglob("*")) == before


def test_broken_documents_are_skipped_with_on_error_skip(corpus: Path, gpt: Gpt) -> None:
    (corpus / "bad.jsonl").write_text('{"text": "a"}\n{"txt": "b"}\n{"text": "c"}\n')
    report = json.loads(
        gpt(
            "build-shards", "bad.jsonl", "-t", "tokenizer.json", "--on-error", "skip", "--json"
        ).stdout
    )
    source = report["sources"][0]
    assert (source["documents_in"], source["documents_kept"], source["dropped"]) == (
        3,
        2,
        {"no text field": 1},
    )


def test_verify_overlap_and_nanogpt_format(corpus: Path, gpt: Gpt) -> None:
    gpt(*ARGUMENTS, "--format", "nanogpt", "--encoder", "tokenizers")
    manifest = read_manifest(corpus / "shards")
    assert (corpus / "shards/train.bin").stat().st_size == 2 * manifest.tokens("train")
    assert "report.md next to it" in gpt("build-shards", "--verify", "shards").stdout
    report = json.loads(
        gpt("build-shards", "corpus/0.txt", "--overlap", "shards", "--workers", 1, "--json").stdout
    )
    # all but the grams that cross from a line to the next
    assert 0.7 < report["overlap"][0]["share"] < 0.8
    assert report["false_positives"] < 1e-8
    (corpus / "other.txt").write_text("eight words that do not stand there together")
    assert gpt(
        "build-shards", "other.txt", "--overlap", "shards", "--workers", 1
    ).stdout.startswith("other.txt    0.00% of 1 8-grams\n")
    shard = corpus / "shards/train-000001.bin"
    data = shard.read_bytes()
    shard.write_bytes(data[:2000] + b"a" + data[2001:])
    assert "altered: its SHA-256" in gpt("build-shards", "--verify", "shards", code=2).stderr


def test_parts_give_the_same_shards_as_one_build(corpus: Path, gpt: Gpt) -> None:
    gpt(*ARGUMENTS, "-o", "whole")
    one = gpt(*ARGUMENTS, "--part", "2/2")
    assert "1 part to go" in one.stdout
    assert "of 2 parts 1 are not done" in gpt(*ARGUMENTS, "--resume", code=2).stderr
    assert (
        "--force cannot be combined with --part"
        in gpt(*ARGUMENTS, "--part", "1/2", "--force", code=2).stderr
    )
    assert "--part: '3/2' is not a part" in gpt(*ARGUMENTS, "--part", "3/2", code=2).stderr
    two = json.loads(gpt(*ARGUMENTS, "--part", "1/2", "--json").stdout)
    assert (two["part"], two["of"], two["missing"]) == (1, 2, [])
    gpt(*ARGUMENTS, "--resume")
    assert shards(corpus / "shards") == shards(corpus / "whole")


def test_recipe_with_sources_and_mixture(corpus: Path, gpt: Gpt) -> None:
    (corpus / "recipe.toml").write_text(
        """
tokenizer = "tokenizer.json"
val_fraction = 0.01
mixture = "gpt3"
mixture_tokens = "3M"

[sources.common_crawl]
inputs = ["corpus/0.txt"]
documents = "line"
dedup = { method = "lsh", against = ["wikipedia"] }
clean = { min_words = 5 }

[sources.wikipedia]
inputs = ["corpus/1.txt"]
documents = "line"
"""
    )
    done = gpt("build-shards", "--config", "recipe.toml", "--workers", "1")
    manifest = read_manifest(corpus / "shards")
    crawl = manifest.sources[0]
    assert manifest.shares() == {"common_crawl": 60 / 63, "wikipedia": 3 / 63}
    assert crawl.dropped["too few words"] > 100
    assert crawl.documents_in == crawl.documents_kept + sum(crawl.dropped.values()) == 5000
    assert crawl.epochs == pytest.approx(3e6 * 60 / 63 / manifest.tokens("train", "common_crawl"))
    assert "% of the mixture" in done.stdout
    assert "(GPT-3: 3.4)" in done.stdout
    assert "sources = {" in (corpus / "shards/build.toml").read_text()
    (corpus / "recipe.toml").write_text(
        'tokenizer = "tokenizer.json"\n[sources.a]\ninputs = ["corpus"]\nwieght = 3\n'
    )
    assert (
        "sources.a: unknown key 'wieght'"
        in gpt("build-shards", "--config", "recipe.toml", "-o", "x", code=2).stderr
    )
    assert (
        "INPUT cannot be combined with the sources"
        in gpt("build-shards", "corpus", "--config", "recipe.toml", "-o", "x", code=2).stderr
    )
