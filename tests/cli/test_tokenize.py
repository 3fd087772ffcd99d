"""`gpt tokenize` as a user runs it: the chain train, encode, decode, and what it says when
something is wrong.
"""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptcli.shards.format import document_lengths, open_shard
from gptcli.tokenizer.load import load_tokenizer
from gptcli.tokenizer.tokenizer import Tokenizer
from gptcli.tokenizer.training import train_tokenizer
from tests.waiting import HANG_S

AWKWARD = "one\r\ntwo \x00\x1c\u2028 café 😀\n\n\n<|endoftext|>  \t last"


@pytest.fixture
def gpt(gpt_here: Any) -> Any:
    """Run the command line in this process."""
    return gpt_here


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([Path(json.__file__).read_text(encoding="utf-8")], 400)


@pytest.fixture
def here(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    """The folder that the commands run in, with a tokenizer and three small files of two kinds."""
    tokenizer.save(tmp_path / "tokenizer.json")
    (tmp_path / "a.txt").write_bytes(AWKWARD.encode())
    (tmp_path / "b.jsonl").write_text(
        '{"text": "first"}\n{"text": ""}\n{"text": "sec\\nond"}\n', encoding="utf-8"
    )
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"l1\nl2\n\nl3\n"))
    return tmp_path


def piped(folder: Path, *args: object, stdin: bytes = b"") -> bytes:
    """Return the bytes that a command, which must succeed, writes to stdout."""
    command = [sys.executable, "-m", "gptcli", "tokenize", *map(str, args)]
    return subprocess.run(command, cwd=folder, input=stdin, capture_output=True, check=True).stdout


def test_stdin_to_ids_to_stdout_byte_for_byte(here: Path, tokenizer: Tokenizer) -> None:
    ids = piped(here, "encode", "-", "--tokenizer", "tokenizer.json", stdin=AWKWARD.encode())
    assert ids == " ".join(map(str, tokenizer.encode(AWKWARD))).encode() + b"\n"
    assert piped(here, "decode", "-t", ".", stdin=ids) == AWKWARD.encode()


def test_every_line_is_a_document_with_documents_line(here: Path, tokenizer: Tokenizer) -> None:
    lines = piped(here, "encode", ".", "-t", ".").splitlines()
    texts = [AWKWARD, "first", "sec\nond", "l1\nl2\n\nl3\n"]
    assert [list(map(int, line.split())) for line in lines] == [
        tokenizer.encode(text) for text in texts
    ]
    (here / "ids").write_bytes(b"\n".join(lines[1:]))
    assert piped(here, "decode", "ids", "-t", ".", "ids") == b"firstsec\nondl1\nl2\n\nl3\n" * 2


@pytest.mark.parametrize(("documents", "count"), [("file", 1), ("line", 3), ("paragraph", 2)])
def test_separators_of_documents_are_restored(here: Path, documents: str, count: int) -> None:
    text = {"line": b"l1\nl2\nl3\n"}.get(documents, b"l1\nl2\n\nl3\n")
    ids = piped(here, "encode", "c.txt.gz", "-t", ".", "--documents", documents)
    assert ids.count(b"\n") == count
    assert piped(here, "decode", "-t", ".", "--documents", documents, stdin=ids) == text
    piped(here, "encode", "c.txt.gz", "-t", ".", "--documents", documents, "-o", "c.bin")
    assert piped(here, "decode", "c.bin", "-t", ".", "--documents", documents) == text


def test_token_file_is_a_shard(here: Path, tokenizer: Tokenizer, gpt: Any) -> None:
    done = gpt("tokenize", "encode", "b.jsonl", "a.txt", "-t", ".", "-o", "out/tokens.bin")
    documents = [
        [tokenizer.eot_id, *tokenizer.encode(text)] for text in (AWKWARD, "first", "sec\nond")
    ]
    assert open_shard(here / "out" / "tokens.bin").dtype == np.uint16
    assert open_shard(here / "out" / "tokens.bin").tolist() == list(chain.from_iterable(documents))
    assert document_lengths(here / "out" / "tokens.bin").tolist() == list(map(len, documents))
    assert sorted(path.name for path in (here / "out").iterdir()) == ["tokens.bin", "tokens.idx"]
    assert (done.stdout, done.stderr) == (
        "",
        "warning: not counted as documents: 1 without text\n"
        "warning: 1 document spells <|endoftext|>, which is ordinary text: "
        "--eot-in-text divides documents there\n"
        f"3 documents, {sum(map(len, documents))} tokens -> out/tokens.bin\n",
    )
    assert piped(here, "decode", "out/tokens.bin", "-t", ".") == AWKWARD.encode() + b"firstsec\nond"


def test_token_file_is_decoded_in_blocks(
    here: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, capfdbinary: Any
) -> None:
    from gptcli.cli import tokenize
    from gptcli.shards import token_ids

    monkeypatch.chdir(here)
    monkeypatch.setattr(tokenize, "BATCH_CHARACTERS", 3)
    tokenize.encode(".", ["a.txt", "b.jsonl"], "tokens.bin")
    for tokens in (1, 2, 7, 1000):
        monkeypatch.setattr(token_ids, "DECODE_TOKENS", tokens)
        tokenize.decode(".", ["tokens.bin"], "line")
        assert capfdbinary.readouterr().out == AWKWARD.encode() + b"\nfirst\nsec\nond\n"


def test_train_writes_a_tokenizer_and_reports(here: Path, gpt: Any) -> None:
    source = Path(json.__file__)
    done = gpt(
        "tokenize", "train", source, "--vocab-size", "0.4k", "-o", "new/tokenizer.json", "--json"
    )
    learnt = load_tokenizer(here / "new")
    text = source.read_text(encoding="utf-8")
    assert learnt.to_json() == load_tokenizer(here).to_json()
    assert json.loads(done.stdout) == {
        "schema": "gpt.tokenize.train/1", "output": "new/tokenizer.json", "vocab_size": 400, "merges": 143, "sha256": learnt.sha256,
        "bytes_per_token": len(text.encode()) / len(learnt.encode(text)), "sample_bytes": len(text.encode()),
    }  # fmt: skip
    assert "400 entries, 143 merges" in done.stderr
    on_stdout = gpt("tokenize", "train", "-", "--vocab-size", 400, "-o", "-", stdin=text)
    assert on_stdout.stdout == learnt.to_json()


def test_small_corpus_is_a_warning(here: Path, gpt: Any) -> None:
    done = gpt("tokenize", "train", "b.jsonl", "-o", "small.json")
    assert "warning: the text has pairs for a vocabulary of 2" in done.stderr
    assert "not 50,257" in done.stderr
    assert load_tokenizer(here / "small.json").vocab_size < 270


def test_outputs_are_replaced_only_with_force_and_atomically(here: Path, gpt: Any) -> None:
    before = (here / "tokenizer.json").read_bytes()
    (here / "z.txt").write_bytes(b"words \xff")
    assert "the output file exists already" in gpt("tokenize", "train", "a.txt", code=2).stderr
    assert (
        "z.txt: not valid UTF-8 at byte 6"
        in gpt("tokenize", "train", "a.txt", "z.txt", "--force", code=2).stderr
    )
    assert (here / "tokenizer.json").read_bytes() == before
    gpt("tokenize", "train", "a.txt", "--vocab-size", 257, "--force")
    assert load_tokenizer(here).vocab_size == 257
    (here / "t.bin").write_bytes(b"old")
    assert (
        "--force replaces it"
        in gpt("tokenize", "encode", "a.txt", "-t", ".", "-o", "t.bin", code=2).stderr
    )
    assert (
        "z.txt"
        in gpt(
            "tokenize", "encode", "a.txt", "z.txt", "-t", ".", "-o", "t.bin", "--force", code=2
        ).stderr
    )
    assert (here / "t.bin").read_bytes() == b"old"
    assert sorted(path.name for path in here.iterdir()) == [
        "a.txt",
        "b.jsonl",
        "c.txt.gz",
        "t.bin",
        "tokenizer.json",
        "z.txt",
    ]


@pytest.mark.parametrize(
    ("args", "stdin", "message"),
    [
        (["encode", "absent", "-t", "."], "", "gpt: absent: no such file or folder\n"),
        (["encode", "Hello world", "-t", "."], "", "gpt: Hello world: no such file or folder\n  a text itself comes from another program: echo TEXT | gpt tokenize encode"),
        (["encode", "Hello", "-t", "."], "", "gpt: Hello: no such file or folder\n  a text itself comes from another program"),
        (["encode", "one", "two.txt", "-t", "."], "", "gpt: one: no such file or folder\n  a name with blanks stands between quotes: 'one two.txt'\n"),
        (["encode", "C:\\Users\\me\\a.txt", "-t", "."], "", "no such file or folder\n  a path of Windows is, in WSL: /mnt/c/Users/me/a.txt\n"),
        (["decode", "[15, 99]", "-t", "."], "", "gpt: [15, 99]: no such file\n  ids themselves come from another program"),
        (["decode", "15 99", "-t", "."], "", "gpt: 15 99: no such file\n  ids themselves come from another program: echo 15496 995 | gpt tokenize decode"),
        (["train", "~/a.txt", "-o", "t.json"], "", "no such file or folder\n  the shell did not expand the ~"),
        (["encode", "-t", "."], "", "gpt: stdin: there is no text in the inputs (1 empty file)\n"),
        (["encode", "a.txt", "-t", "absent"], "", "gpt: absent: no such tokenizer\n  name a tokenizer.json, a folder that contains one"),
        (["encode", "a.txt", "-t", "b.jsonl"], "", "gpt: b.jsonl is not a tokenizer.json\n"),
        (["encode", "a.txt", "-t", ".", "-o", "t.npy"], "", "gpt: t.npy: the name of a token file must end in .bin\n  -o t.bin\n"),
        (["encode", "a.txt", "-t", ".", "--documents", "lines"], "", "unknown kind of document 'lines'\n  did you mean line?\n"),
        (["decode", "-t", ".", "--documents", "lines"], "", "unknown kind of document 'lines'\n  did you mean line?\n"),
        (["decode", "-t", "."], "1 2\n3 x4\n", "gpt: stdin:2: 'x4' is not a token id\n"),
        (["decode", "-t", "."], "1" * 5000, "gpt: stdin:1: '1111111111111111111111111111111111111111...' is not a token id\n"),
        (["decode", "-t", "."], "1 -2", "gpt: stdin:1: '-2' is not a token id\n"),
        (["decode", "-t", "."], "1 2\n3 400\n", "gpt: stdin:2: the id 400 is outside the vocabulary (0 to 399)\n"),
        (["decode", "-t", "."], "-1", "gpt: stdin:1: '-1' is not a token id\n"),
        (["decode", "absent", "-t", "."], "", "gpt: absent: no such file"),
        (["decode", "cut.bin", "-t", "."], "", "gpt: cut.bin: truncated"),
        (["train", "a.txt", "--vocab-size", "256", "-o", "t.json"], "", "gpt: a vocabulary of 256 is too small\n"),
        (["train", "a.txt", "--vocab-size", "many", "-o", "t.json"], "", "gpt: --vocab-size: 'many' is not a number\n"),
        (["train", "a.txt", "-o", "-", "--json"], "", "gpt: --json and -o - would both write to stdout\n"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message(
    here: Path, gpt: Any, args: list[str], stdin: str, message: str
) -> None:
    (here / "cut.bin").write_bytes(b"\x88")
    (here / "one two.txt").touch()
    done = gpt("tokenize", *args, stdin=stdin, code=2)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(here.glob("t.*"))


def test_token_file_of_another_tokenizer_is_a_warning(here: Path, gpt: Any) -> None:
    gpt("tokenize", "encode", "a.txt", "-t", ".", "-o", "t.bin")
    gpt("tokenize", "train", "a.txt", "--vocab-size", 257, "-o", "small/tokenizer.json")
    done = gpt("tokenize", "decode", "t.bin", "-t", "small", code=2)
    assert "warning: t.bin does not begin with <|endoftext|> of this vocabulary" in done.stderr
    assert "t.bin: from token 0: the id 399 is outside the vocabulary (0 to 256)" in done.stderr


def test_token_file_needs_end_of_text(here: Path, gpt: Any) -> None:
    value = json.loads((here / "tokenizer.json").read_text(encoding="utf-8"))
    del value["added_tokens"], value["model"]["vocab"]["<|endoftext|>"]
    (here / "bare.json").write_text(json.dumps(value), encoding="utf-8")
    assert (
        "has no <|endoftext|>"
        in gpt("tokenize", "encode", "a.txt", "-t", "bare.json", "-o", "t.bin", code=2).stderr
    )
    (here / "ids").write_text(
        gpt("tokenize", "encode", "a.txt", "-t", "bare.json").stdout, encoding="utf-8"
    )
    assert piped(here, "decode", "ids", "-t", "bare.json") == AWKWARD.encode()


def test_ctrl_c_exits_with_130(here: Path) -> None:
    command = [sys.executable, "-m", "gptcli", "tokenize", "encode", "-t", ".", "-o", "t.bin"]
    with subprocess.Popen(
        command, cwd=here, stdin=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        # returns when most of it is read: the command is running
        process.stdin.write(b"words " * 100_000)
        process.stdin.flush()
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(HANG_S) == 130
        assert b"Traceback" not in process.stderr.read()
    assert not list(here.glob("*.bin")) + list(here.glob(".*"))


def test_closed_pipe_is_not_a_traceback(here: Path) -> None:
    (here / "long.txt").write_text("words\n" * 100_000, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "gptcli",
        "tokenize",
        "encode",
        "long.txt",
        "-t",
        ".",
        "--documents",
        "line",
        "--quiet",
    ]
    with subprocess.Popen(
        command, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(HANG_S) == 0


@pytest.mark.parametrize("encoder", ["auto", "tokenizers", "tiktoken"])
def test_fields_formats_and_marks_of_end_of_text(gpt: Any, here: Path, encoder: str) -> None:
    line = json.dumps({"meta": {"body": "one<|endoftext|>two"}})
    (here / "rows.dat").write_text(line + "\n")
    names = ("-t", "tokenizer.json", "--field", "meta.body", "--encoder", encoder)
    whole = gpt("tokenize", "encode", "rows.dat", *names)
    assert len(whole.stdout.splitlines()) == 1
    assert "1 document spells <|endoftext|>" in whole.stderr
    parts = gpt("tokenize", "encode", "rows.dat", *names, "--eot-in-text")
    assert (len(parts.stdout.splitlines()), parts.stderr) == (2, "")
    raw = gpt("tokenize", "encode", "rows.dat", *names, "--input-format", "text", "-o", "a.bin")
    assert "1 document, " in raw.stderr
    refused = gpt("tokenize", "encode", "rows.dat", *names, "--input-format", "jsnl", code=2)
    assert "--input-format: unknown format 'jsnl'\n  did you mean jsonl" in refused.stderr


@pytest.mark.parametrize("output", [[], ["-o", "none.bin"]])
@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("none.txt", "", "1 empty file"),
        ("none.jsonl", '{"text": ""}\n{"text": ""}\n', "2 without text"),
        ("-", "", "1 empty file"),
    ],
)
def test_no_text_is_one_error_however_it_is_read(
    here: Path, gpt: Any, name: str, text: str, why: str, output: list[str]
) -> None:
    (here / name).write_text(text)
    done = gpt("tokenize", "encode", name, "-t", ".", *output, stdin=text, code=2)
    where = name.replace("-", "stdin")
    assert done.stderr == (
        f"gpt: {where}: there is no text in the inputs ({why})\n  name files that contain text\n"
    )
    assert not (here / "none.bin").exists()
    if name != "-":
        done = gpt("tokenize", "encode", name, "c.txt.gz", "-t", ".")
        assert done.stderr == f"warning: not counted as documents: {why}\n"


def test_json_lines_are_recognized_on_stdin_and_in_a_text_file(here: Path, gpt: Any) -> None:
    text = '{"text": "l1"}\n{"text": "l2"}\n'
    (here / "lines.txt").write_text(text)
    by_name = gpt("tokenize", "encode", "lines.txt", "-t", ".", "--documents", "line")
    piped_in = gpt("tokenize", "encode", "-t", ".", "--documents", "line", stdin=text)
    assert by_name.stdout == piped_in.stdout
    assert by_name.stdout.count("\n") == 2
    no_effect = (
        "warning: --documents line has no effect: it divides text, and the inputs are JSON lines\n"
    )
    as_it_stands = "--input-format text reads it as it stands\n"
    assert by_name.stderr == (
        f"warning: lines.txt looks like JSON lines and is read as such: {as_it_stands}{no_effect}"
    )
    assert piped_in.stderr == f"stdin is read as JSON lines: {as_it_stands}{no_effect}"


def test_a_token_file_is_recognized_by_its_first_bytes(here: Path, gpt: Any) -> None:
    gpt("tokenize", "encode", "a.txt", "-t", ".", "-o", "a.bin")
    (here / "tokens").write_bytes((here / "a.bin").read_bytes())
    assert piped(here, "decode", "tokens", "-t", ".") == AWKWARD.encode()
    data = (here / "a.bin").read_bytes()
    assert piped(here, "decode", "-t", ".", stdin=data) == AWKWARD.encode()
    command = [sys.executable, "-m", "gptcli", "tokenize", "decode", "-t", "."]
    done = subprocess.run(command, cwd=here, input=data[:-1], capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(b"gpt: stdin: truncated")
