"""Tests of how every command reads its line: one message for what is wrong, exit code 2, and
nothing typed is taken for something else.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from gptcli.cli import COMMANDS, build_app, reworded
from gptcli.cli.command import FREE_TEXT, Group, option_table, repeated_options
from gptcli.cli.options import Word, is_option, read_words
from gptcli.errors import GptError, RunError, UsageError
from gptcli.settings import NUMBERS

PATHS = (
    *((name,) for name in COMMANDS if name != "tokenize"),
    *(("tokenize", name) for name in ("train", "encode", "decode")),
)
ALWAYS = ("--help", "-h")


def command_at(path: tuple[str, ...]) -> tuple[Any, Any]:
    """The command at `path`, with a context to ask it of its options."""
    found = typer.main.get_command(build_app(list(path)))
    ctx: Any = found.context_class(found, info_name="gpt", **found.context_settings)
    for name in path:
        found = found.commands[name]  # type: ignore[attr-defined]
        ctx = found.context_class(found, info_name=name, parent=ctx)
    return found, ctx


def run(*argv: str) -> Any:
    """Run a command line in this process; errors are raised."""
    return typer.main.get_command(build_app(list(argv))).main(
        list(argv), prog_name="gpt", standalone_mode=False
    )


def refused(*argv: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        run(*argv)
    assert caught.value.exit_code == 2
    assert caught.value.hint, "an error says what to do"
    return caught.value


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_help_shows_metavars_and_no_python_types(
    path: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    run(*path, "--help")
    text = capsys.readouterr().out
    assert not re.search(r"<(bool|int|str|float|list|path)", text, re.IGNORECASE)
    assert "[x>" not in text
    command, ctx = command_at(path)
    for param in command.get_params(ctx):
        if param.param_type_name == "argument" or not param.is_flag:
            assert param.metavar, f"{param.name} needs a name for its value"


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_every_option_has_a_help_sentence(path: tuple[str, ...]) -> None:
    command, ctx = command_at(path)
    for param in command.get_params(ctx):
        assert re.match(r"[A-Z1]", param.help), f"{param.name}: {param.help}"
        assert not re.match(r"(Of|What|Which|Where|Whether|How|As) ", param.help), (
            f"{param.name} needs its neighbours: {param.help}"
        )
        assert param.help.endswith("."), param.help
        assert len(param.help.split()) > 1


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_out_and_output_are_the_same_option(path: tuple[str, ...]) -> None:
    command, ctx = command_at(path)
    options = option_table(command, ctx)
    if path == ("cost",):  # which writes no file but a picture
        assert "--out" not in options
    else:
        assert options["--out"] is options["--output"] is options["-o"]


def test_shared_options_have_one_form_in_all_commands() -> None:
    shown: dict[str, set[str]] = {}
    for path in PATHS:
        command, ctx = command_at(path)
        for name, param in option_table(command, ctx).items():
            if name in (
                "--force",
                "--json",
                "--seed",
                "--config",
                "--device",
                "--resume",
                "--dry-run",
                "--layout",
                "--recompute",
            ):
                shown.setdefault(name, set()).add(str(param.metavar))
    assert {name: len(metavars) for name, metavars in shown.items()} == dict.fromkeys(shown, 1)


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_errors_for_numbers_out_of_range_name_the_option(
    path: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    command, ctx = command_at(path)
    needed = [
        word
        for param in command.get_params(ctx)
        if param.required
        for word in ([param.opts[0], "x"] if param.opts[0][0] == "-" else ["x"])
    ]
    if path == ("cost",):  # whose numbers are read once it knows the question
        needed = []
    (tmp_path / "x").write_text("a model")  # a missing one is told first
    for name, param in option_table(command, ctx).items():
        if (
            not name.startswith("--")
            or param.name not in NUMBERS
            or param.metavar in ("FILE", *FREE_TEXT)
        ):
            continue
        for value in ("1e400", "-1", "nan", "inf", "many", "1e300"):
            if (value, param.name) == ("1e300", "flops"):
                continue
            error = refused(
                *path,
                *needed,
                *(["--dry-run"] if path == ("train",) else []),
                *alone(path, param.name),
                f"{name}={value}",
            )
            assert error.where == name, f"{name} {value}: {error}"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def alone(path: tuple[str, ...], name: str) -> list[str]:
    """Return the options that an option of `gpt cost` needs beside it."""
    if path != ("cost",):
        return []
    shape = {"n_layer": "1", "n_head": "1", "d_model": "8"}
    if name == "memory":
        return ["--tflops", "10"]
    if name in shape:
        return [
            f"--{other.replace('_', '-')}={value}"
            for other, value in shape.items()
            if other != name
        ]
    return []


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_empty_values_are_refused(path: tuple[str, ...]) -> None:
    command, ctx = command_at(path)
    for name, param in option_table(command, ctx).items():
        if not param.is_flag and param.metavar not in FREE_TEXT:
            assert refused(*path, name, "").what == "the value is empty"
    first = next(
        (param for param in command.get_params(ctx) if param.param_type_name == "argument"), None
    )
    assert first is not None
    assert (refused(*path, "").where, refused(*path, "").what) == (
        first.metavar,
        "the value is empty",
    )


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_flags_take_no_value_and_options_need_one(path: tuple[str, ...]) -> None:
    command, ctx = command_at(path)
    for name, param in option_table(command, ctx).items():
        if name in ALWAYS:
            continue
        if param.is_flag:
            assert "takes no value" in refused(*path, name, "true").what
            if name.startswith("--"):
                assert "takes no value" in refused(*path, f"{name}=true").what
        elif name != "--flops":
            assert "needs a value" in refused(*path, name).what
            assert "needs a value" in refused(*path, name, "--help").what


@pytest.mark.parametrize("words", [("Compressed file ended early",), ()])
def test_an_end_of_data_is_no_end_of_typed_input(words: tuple[str, ...]) -> None:
    """Typer would print "Aborted." and nothing else."""

    def read() -> None:
        raise EOFError(*words)

    app = typer.Typer(cls=Group)
    app.callback()(lambda: None)
    app.command("read")(read)
    with pytest.raises(RunError, match="data ended too early") as caught:
        app(["read"], prog_name="gpt")
    assert all(word in str(caught.value) for word in words)


def test_misspelled_options_get_a_suggestion() -> None:
    error = refused("train", "--n-layr", "4")
    assert (error.where, error.what) == ("--n-layr", "gpt train has no such option")
    assert error.hint == "did you mean --n-layer? gpt train --help lists all options"
    assert (
        refused("train", "--learning-rte", "1").hint
        == "did you mean --lr? gpt train --help lists all options"
    )
    for name in ("--xyzzy", "--nonsense", "--colour", "--hello"):
        assert refused("train", name).hint == "gpt train --help lists all options"


def test_unknown_commands_get_a_suggestion() -> None:
    assert str(refused("trian").hint) == "did you mean train?\ngpt train"
    for word in ("nonsense", "import", "clean", "upload"):
        assert "did you mean" not in str(refused(word).hint)


def test_short_options_of_other_commands_are_explained() -> None:
    error = refused("cost", "-o", "cost.json")
    assert (error.where, error.what) == ("-o", "gpt cost has no such option")
    assert str(error.hint).startswith("the report goes to stdout")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "–size", "gpt2"], "–size: begins with '–', which is no hyphen\n  gpt train --size gpt2"),
        (
            ["sample", "runs/a", "Once", "—max-tokens", "5"],
            "—max-tokens: begins with '—', which is no hyphen\n  gpt sample runs/a Once --max-tokens 5",
        ),
        (
            ["train", "--size", "gpt2", " "],
            "' ': a blank is an argument of its own here\n"
            "  remove it; one after the \\ at the end of a line would be such a blank",
        ),
        (
            ["cost", "--tokens", "300", "B"],
            "--tokens 300 B: a blank stands inside the number\n  --tokens 300B",
        ),
        (
            ["sample", "Once", "upon", "a", "time"],
            "upon: the prompt must be one argument, after the model\n"
            "  quote it:\n  gpt sample RUN 'Once upon a time'",
        ),
        (
            ["train", "a.py"],
            "a.py: a configuration is an option, and TOML\n"
            "  gpt train --config FILE.toml; a line of it is lr = 3e-4",
        ),
        (
            ["train", "a b.txt"],
            "a b.txt: text is turned into shards first\n"
            "  gpt build-shards 'a b.txt' --tokenizer gpt2 -o shards\n"
            "  gpt train --data shards --size gpt2",
        ),
        (
            ["train", "--config", "table.toml"],
            "table.toml:1: unknown table [train]\n"
            "  remove this line: options stand alone, lr = ...",
        ),
        (["cost", "--gpu", "4090"], "did you mean rtx4090?"),
        (["train", "--sweep", "lr", "--size", "gpt2"], "--sweep: 'lr' has no values"),
        (["eval", "runs/a", "a b.txt"], "a b.txt: a text is an option\n  gpt eval runs/a --text 'a b.txt'"),
    ],
)  # fmt: skip
def test_slips_of_the_hand_get_the_line_that_was_meant(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a b.txt").touch()
    Path("table.toml").write_text("[train]\nlr = 1e-3\n")
    Path("runs/a").mkdir(parents=True)
    with pytest.raises(GptError) as caught:
        run(*argv)
    assert caught.value.exit_code == 2
    assert message in str(caught.value)


def test_a_missing_argument_gets_an_example() -> None:
    assert str(refused("sample").hint).startswith("for example: gpt sample runs/350M ")
    assert str(refused("tokenize", "train").hint).startswith("for example: gpt tokenize train ")
    assert "--tokenizer gpt2" in str(refused("tokenize", "encode", "a").hint)


def test_missing_arguments_are_named() -> None:
    assert (refused("sample").where, refused("sample").what) == ("RUN", "is missing")
    assert (refused("tokenize", "encode", "a").where, refused("eval").where) == (
        "--tokenizer",
        "RUN",
    )


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (
            ["sample", "run", "once", "upon a", "time", "--seed", "3"],
            "quote it:\ngpt sample run 'once upon a time' --seed 3",
        ),
        (["--size", "350M", "train"], "gpt train --size 350M"),
        (["350M", "train"], "gpt train 350M"),
        (["train", "350m"], "gpt train --size 350M"),
        (["cost", "175B"], "gpt cost --size 175B"),
        (["eval", "lambada", "run"], "gpt eval run --task lambada --data FOLDER"),
        (
            ["tokenize", "corpus.txt"],
            "its commands are train, encode, decode:\ngpt tokenize train corpus.txt",
        ),
        (["tokenize", "trian", "corpus.txt"], "did you mean train?\ngpt tokenize train corpus.txt"),
        (
            ["tokenize", "--vocab-size", "400", "train", "a"],
            "gpt tokenize train --vocab-size 400 a",
        ),
        (["trian", "--size", "gpt2"], "did you mean train?\ngpt train --size gpt2"),
        (["train", "-out", "runs/x", "--size", "gpt2"], "gpt train --out runs/x --size gpt2"),
        (["train", "lr=3e-4", "--size", "gpt2"], "gpt train --lr 3e-4 --size gpt2"),
    ],
)
def test_words_in_the_wrong_order_are_reordered_in_the_hint(
    argv: list[str], hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    assert refused(*argv).hint == hint


def test_prompt_before_the_run_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    assert refused("sample", "a prompt", "run").hint == "gpt sample run 'a prompt'"


def test_help_and_version_work_as_commands(gpt: Any) -> None:
    assert reworded(["help"]) == ["--help"]
    assert reworded(["help", "tokenize", "train"]) == ["tokenize", "train", "--help"]
    assert reworded(["train", "help"]) == ["train", "help"]
    assert gpt("version").stdout == gpt("--version").stdout
    assert gpt("help", "cost").stdout == gpt("cost", "--help").stdout


def test_underscores_in_options_are_hyphens() -> None:
    assert refused("train", "--n_layer", "x", "--size", "gpt2").where == "--n-layer"
    assert refused("build_shards", "--on_error").where == "--on-error"


def test_lists_accept_commas_and_repetition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gptcli.settings import split_list

    monkeypatch.chdir(tmp_path)
    assert split_list("a,b, c,") == ["a", "b", "c"]
    (tmp_path / "x,y.txt").touch()
    assert split_list("x,y.txt") == ["x,y.txt"]
    for typed in (["--task", "a,b", "--task", "c"], ["--task", "a", "--task", "b", "--task=c"]):
        command, ctx = command_at(("eval",))
        command.parse_args(ctx, ["run", *typed, "--text", "p.txt,q.txt"])
        assert ctx.params["task"] == ["a", "b", "c"]
        assert ctx.params["text"] == [Path("p.txt"), Path("q.txt")]
    command, ctx = command_at(("sample",))
    command.parse_args(ctx, ["run", "--stop", "a,b", "--article", "p,q"])
    assert (ctx.params["stop"], ctx.params["article"]) == (["a,b"], [Path("p"), Path("q")])


words = st.text(alphabet="abc-=_1. /", max_size=8)


TAKES = {"--a-b": True, "-a": True, "--flag": False}
spelled = st.one_of(  # a word as it is read, and ways to type it
    st.text("xyz=/.1 ", min_size=1, max_size=5).map(lambda text: (Word("", text), [text])),
    st.text("xyz=/-1 ", min_size=1, max_size=5).flatmap(
        lambda text: st.sampled_from(
            [
                (Word("--a-b", text, True), ["--a-b", text]),
                (Word("--a-b", text, True), [f"--a_b={text}"]),
                (Word("-a", text, True), ["-a", text]),
            ]
        )
    ),
    st.text("xyz/.1", min_size=1, max_size=5).map(
        lambda text: (Word("-a", text, True), [f"-a{text}"])
    ),
    st.just((Word("--flag", None, False), ["--flag"])),
    st.just((Word("--other", None, None), ["--other"])),
    st.just((Word("--other", "1", None), ["--other=1"])),
)


@given(st.lists(spelled, max_size=6), st.lists(words, max_size=3))
def test_words_are_read_as_options_and_values(
    typed: list[tuple[Word, list[str]]], behind: list[str]
) -> None:
    args = [part for _, parts in typed for part in parts]
    meant = [word for word, _ in typed]
    assert list(read_words(args, TAKES.get)) == meant
    assert list(read_words([*args, "--", *behind], TAKES.get)) == [
        *meant,
        *(Word("", word) for word in behind),
    ]


@given(st.sampled_from(PATHS), st.lists(words, min_size=1, max_size=5))
def test_any_command_line_is_read_or_refused_with_one_message(
    path: tuple[str, ...], args: list[str]
) -> None:
    command, ctx = command_at(path)
    if any(is_option(arg) and set(arg.partition("=")[0]) & set("h") for arg in args):
        return
    try:
        command.parse_args(ctx, list(args))
    except UsageError as error:
        lines, where = str(error).splitlines(), error.where
    else:
        return
    assert where
    assert all(line.startswith("  ") for line in lines[1:])


def test_an_option_given_twice_is_said() -> None:
    command, ctx = command_at(("cost",))
    options = option_table(command, ctx)
    assert repeated_options(["--size", "gpt2", "--size=350M"], options) == [
        "--size is given 2 times: 350M holds, not gpt2"
    ]
    assert repeated_options(["--n_layer", "1", "--n-layer", "1"], options) == [], "the same value"
    command, ctx = command_at(("eval",))
    options = option_table(command, ctx)
    assert repeated_options(["--task", "a", "--task", "b", "-o", "x", "--out", "y"], options) == [
        "--out is given 2 times: y holds, not x"
    ]
    assert repeated_options(["--json", "--json", "--", "-o", "x", "-o", "y"], options) == []


@pytest.mark.parametrize(
    ("path", "name", "one", "other"),
    [
        (("cost",), "--tokens", "300B", "3e11"),
        (("cost",), "--hours", "2d", "48"),
        (("train",), "--lr", "6e-4", "0.0006"),
        (("train",), "--out", "runs/a/", "runs/a"),
        (("tokenize", "train"), "--vocab-size", "8k", "8000"),
    ],
)
def test_two_spellings_of_one_value_are_one(
    path: tuple[str, ...], name: str, one: str, other: str
) -> None:
    command, ctx = command_at(path)
    options = option_table(command, ctx)
    assert repeated_options([name, one, name, other], options) == []
    assert repeated_options([name, one, name, other + "1"], options) != []


@pytest.mark.parametrize("path", PATHS, ids=" ".join)
def test_an_option_in_place_of_a_value_is_no_value(path: tuple[str, ...]) -> None:
    command, ctx = command_at(path)
    for name, param in option_table(command, ctx).items():
        if param.is_flag or param.metavar in FREE_TEXT or name == "--flops":
            continue
        for follows in ("--", "--unknown", "-q", "--log_file"):
            with pytest.raises(UsageError) as caught:
                command.parse_args(ctx, [name, follows])
            assert caught.value.message.startswith(f"{name} needs a value, but {follows} follows")


def test_a_file_that_begins_with_a_dash_is_a_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("-t.json").write_text("")
    command, ctx = command_at(("build-shards",))
    command.parse_args(ctx, ["book.txt", "-t", "-t.json"])
    assert ctx.params["tokenizer"] == "-t.json"
    command, ctx = command_at(("build-shards",))
    command.parse_args(ctx, ["book.txt", "--tokenizer=-other.json"])
    assert ctx.params["tokenizer"] == "-other.json"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["cost", "--gpus", "8", "16"], "--gpus takes one value, but 8 and 16 follow"),
        (["cost", "--gpu", "a100", "h100"], "--gpu takes one value, but a100 and h100 follow"),
        (["cost", "--size", "1.3B", "2.7B"], "--size takes one value, but 1.3B and 2.7B follow"),
        (["train", "--lr", "1e-3", "1e-4"], "--lr takes one value, but 1e-3 and 1e-4 follow"),
        (["eval", "run", "--shots", "0", "5"], "--shots takes one value, but 0 and 5 follow"),
        (["sample", "run", "hi", "--top-k", "5", "10"], "--top-k takes one value, but 5 and 10"),
        (["eval", "run", "--task", "lambada", "hellaswag"], "--task lambada,hellaswag"),
    ],
)
def test_a_second_value_behind_an_option_is_told_as_such(argv: list[str], message: str) -> None:
    assert message in refused(*argv).message


def test_a_number_behind_an_option_may_be_an_argument(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("16").mkdir()
    command, ctx = command_at(("cost",))
    command.parse_args(ctx, ["--gpus", "8", "16"])
    assert ctx.params["runs"] == [Path("16")]
    command, ctx = command_at(("sample",))
    command.parse_args(ctx, ["run", "--top-k", "5", "10"])
    assert ctx.params["prompt"] == "10", "a text to continue"


def test_the_line_with_our_names_has_no_option_as_a_value() -> None:
    error = refused("train", "--learning-rate", "--size", "gpt2")
    assert error.hint == "gpt train --size gpt2\nwithout --learning-rate: its value is missing"


def test_the_warning_of_an_option_given_twice_is_printed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command, ctx = command_at(("cost",))
    command.parse_args(ctx, ["--gpus", "1", "--gpus", "2"])
    assert ctx.params["gpus"] == 2
    assert capsys.readouterr().err == "warning: --gpus is given 2 times: 2 holds, not 1\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["train", "--size gpt2", "--dry-run"],
            "--size gpt2: the quotes join an option and its value\n"
            "  gpt train --size gpt2 --dry-run",
        ),
        (
            ["train", "--size:gpt2"],
            "--size:gpt2: a blank or = stands between an option and its value\n"
            "  gpt train --size gpt2",
        ),
        (
            ["train", "/size", "gpt2"],
            "/size: an option begins with two dashes here\n  gpt train --size gpt2",
        ),
        (
            ["train", "--", "--size", "gpt2"],
            "--size: options behind -- are arguments\n  leave out the --:\n  gpt train --size gpt2",
        ),
        (
            ["train --size gpt2", "--dry-run"],
            "'train --size gpt2': the quotes join several words\n  leave them out:\n"
            "  gpt train --size gpt2 --dry-run",
        ),
        (
            ["gpt", "train", "--size", "gpt2"],
            "gpt gpt: the name of the program stands once\n  gpt train --size gpt2",
        ),
        (["cost", "--gpu", "8xh100"], "--gpu h100 --gpus 8"),
        (["cost", "--gpu", "h100,a100"], "one at a time: h100 or a100"),
        (["cost", "--gpu", "foo"], "gpt cost --gpu list lists them"),
        (["cost", "--size", "foo"], "gpt cost --table lists them"),
        (["eval", "runs/a", "--task", "foo"], "gpt eval --list lists them"),
    ],
)
def test_words_that_a_shell_joined_are_taken_apart_in_the_hint(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/a").mkdir(parents=True)
    with pytest.raises(GptError) as caught:
        run(*argv)
    assert caught.value.exit_code == 2
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "--resume", "auto"], "--resume is a flag and takes no value, but got 'auto'"),
        (["train", "--force", "--resume"], "--resume and --force contradict each other"),
        (["eval", "R", "--resume", "--force"], "--resume and --force contradict each other"),
        (
            ["build-shards", "a", "--force", "--resume"],
            "--resume and --force contradict each other",
        ),
    ],
)
def test_flags_are_refused_before_anything_is_read(argv: list[str], message: str) -> None:
    error = refused(*argv)
    assert message in error.message
    assert "--resume" in str(error.hint)


def test_an_argument_that_begins_with_an_equals_sign_is_no_option() -> None:
    command, ctx = command_at(("sample",))
    command.parse_args(ctx, ["=x"])
    assert str(ctx.params["run"]) == "=x"
