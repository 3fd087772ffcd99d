"""One message: what, where, what to do. And it survives the way from a worker."""

from __future__ import annotations

import ast
import importlib
import inspect
import pickle
import py_compile
import re
import shutil
import sys
from pathlib import Path

import pytest

import gptcli
from gptcli.cli.console import as_options
from gptcli.errors import (
    FLAGS,
    GptError,
    InputError,
    Interrupted,
    RunError,
    UsageError,
    close_to,
    install_hint,
    message_of,
    nearest,
    package_error,
)


def test_message_has_all_three_parts() -> None:
    assert (
        str(InputError("no text field", where="a.jsonl:3", hint="add one"))
        == "a.jsonl:3: no text field\n  add one"
    )
    assert str(UsageError("bad size")) == "bad size"


@pytest.mark.parametrize(
    ("kind", "code"), [(UsageError, 2), (InputError, 2), (RunError, 1), (Interrupted, 130)]
)
def test_kinds_cross_process_borders(kind: type[GptError], code: int) -> None:
    error = pickle.loads(pickle.dumps(kind("what", where="where", hint="hint")))
    assert type(error) is kind
    assert (error.what, error.where, error.hint, error.exit_code) == ("what", "where", "hint", code)


def test_fields_and_codes_cross_process_borders() -> None:
    error = UsageError("does not divide", field="layout", code="layout_does_not_divide")
    again = pickle.loads(pickle.dumps(error))
    assert (again.field, again.code) == ("layout", "layout_does_not_divide")
    assert str(again) == "layout does not divide"


def test_parameters_are_names_in_python_and_options_on_the_command_line() -> None:
    error = UsageError(
        "does not fit", field="micro_batch", hint="lower {option:n_ctx} or {option:layout} dp=2"
    )
    assert str(error) == "micro_batch does not fit\n  lower n_ctx or layout dp=2"
    assert (
        as_options(error.message) == "--micro-batch does not fit\n  lower --n-ctx or --layout dp=2"
    )
    nested = InputError(f"line 3: {message_of(error)}", where="run.toml")
    assert as_options(nested.message).startswith("run.toml: line 3: --micro-batch does not fit")
    assert message_of(OSError("disk")) == "disk"


def test_flags_are_set_in_python_and_bare_on_the_command_line() -> None:
    error = UsageError("is not empty", where="runs/x", hint="{option:resume} continues it")
    assert str(error) == "runs/x is not empty\n  resume=True continues it"
    assert error.statement == "runs/x is not empty"
    assert as_options(error.message) == "runs/x is not empty\n  --resume continues it"


def test_every_flag_of_the_library_that_a_message_names_is_known_as_one() -> None:
    functions = (
        gptcli.train, gptcli.build_shards, gptcli.TrainConfig, gptcli.generate, gptcli.SamplingParams
    )  # fmt: skip
    flags = {
        name
        for function in functions
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.annotation == "bool"
    }
    assert flags >= FLAGS
    named = {
        name
        for path in Path(gptcli.__file__).parent.rglob("*.py")
        for name in re.findall(r"\{option:(\w+)\}", path.read_text(encoding="utf-8"))
    }
    assert named & flags <= FLAGS | {"compile"}, "compile has a value on the command line"


def test_a_file_has_precedence_over_the_field_in_a_message() -> None:
    error = UsageError("is 3", where="recipe.toml", field="seed")
    assert (str(error), error.field) == ("recipe.toml is 3", "seed")


# a whole command to paste: gpt train --resume, hf download ... --local-dir
COMMAND = re.compile(r"\b(gpt [a-z]|hf download |ray start |-m gptcli )[^;,\n]*")
OTHER_PROGRAMS = {"errors.py", "kernels/build.py", "interrupts.py", "runs/page.py", "runs/svg.py"}
"""Files whose dashes are options of pip or a compiler, `gpt --debug` in sys.argv, or CSS."""


def test_no_message_outside_cli_names_an_option() -> None:
    """Strings of the core hold no --option, docstrings and whole commands to paste excepted."""
    package = Path(gptcli.__file__).parent
    found = []
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        if name.startswith("cli/") or name in OTHER_PROGRAMS:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        prose = {
            id(node.value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                text = "".join(
                    str(part.value) if isinstance(part, ast.Constant) else "X"
                    for part in node.values
                )
                prose |= {id(part) for part in node.values}
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
            else:
                continue
            if id(node) not in prose and re.search(r"(?<![\w-])--[a-z]", COMMAND.sub("", text)):
                found.append(f"{name}:{node.lineno}: {text[:60]}")
    assert not found


def test_nearest() -> None:
    assert nearest("350m", ["125M", "350M", "13B"]) == "did you mean 350M?"
    assert nearest("zzz", ["125M", "13B"]) == "one of: 125M, 13B"
    assert nearest("350m", ["350M"], beyond="or a file") == "did you mean 350M? Or a file"
    assert nearest("zzz", ["125M"], beyond="or a file") == "one of: 125M; or a file"


NAMES = [
    "tokenize",
    "build-shards",
    "train",
    "sample",
    "eval",
    "cost",
    "--n-layer",
    "--batch-tokens",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_slip_of_one_letter_is_close(name: str) -> None:
    first = len(name) - len(name.lstrip("-"))
    for at in range(first, len(name)):
        assert name in close_to(name[:at] + name[at + 1 :], NAMES)
        assert name in close_to(name[:at] + "x" + name[at:], NAMES)
        assert name in close_to(name[:at] + "x" + name[at + 1 :], NAMES)
        assert name in close_to(name[:at] + name[at : at + 2][::-1] + name[at + 2 :], NAMES)
    assert name in close_to(name[: first + 3], NAMES)
    assert len(name) < 4 or name in close_to(f"{name}_of_theirs", NAMES)


@pytest.mark.parametrize(
    "word",
    [
        "nonsense",
        "foo",
        "hello",
        "prune",
        "scale",
        "status",
        "--colour",
        "--verbose-mode",
        "x",
        "-x",
        "",
    ],
)
def test_another_word_is_close_to_nothing(word: str) -> None:
    assert (
        close_to(word, [*NAMES, "tokenise", "run", "ls", "-o", "--lr", "--clip", "--d-model"]) == []
    )


@pytest.mark.parametrize(
    ("python", "on_path", "pip", "hint"),
    [
        ("/v/bin/python", "/v/bin/python", True, "python -m pip install ray"),
        ("/v/bin/python", "/usr/bin/python", True, "/v/bin/python -m pip install ray"),
        ("/my v/bin/python", None, True, "'/my v/bin/python' -m pip install ray"),
        ("/v/bin/python", "/v/bin/python", False, "uv pip install --python python ray"),
        ("/v/bin/python", None, False, "uv pip install --python /v/bin/python ray"),
        ("", None, True, "python -m pip install ray"),
    ],
)
def test_install_hint_names_the_python_that_runs(monkeypatch, python, on_path, pip, hint) -> None:
    monkeypatch.setattr(sys, "executable", python)
    monkeypatch.setenv("VIRTUAL_ENV", "/v")
    monkeypatch.setattr(shutil, "which", {"python": on_path}.get)
    monkeypatch.setattr(importlib.util, "find_spec", {"pip": pip or None}.get)
    assert install_hint("ray") == hint


def test_install_hint_names_the_path_where_only_make_knows_the_environment(monkeypatch) -> None:
    monkeypatch.setattr(sys, "executable", "/v/bin/python")
    monkeypatch.setattr(sys, "prefix", "/v")
    monkeypatch.setattr(shutil, "which", {"python": "/v/bin/python"}.get)
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    assert install_hint("ray").startswith(("/v/bin/python -m pip", "uv pip install --python /v/"))


def raised(error: BaseException, module: str = "gptcli.x") -> BaseException:
    """The error, as code of a module raises it."""
    with pytest.raises(type(error)) as caught:
        exec("raise error", {"__name__": module, "error": error})
    return caught.value


@pytest.mark.parametrize(
    ("installed", "error", "what", "hint"),
    [
        ({"numpy": "2.0"}, KeyError("x"), "the package torch is not installed", "'torch>=2.11'"),
        ({"torch": "2.2.0+cpu"}, KeyError("x"), "torch 2.2.0+cpu is too old", "'torch>=2.11'"),
        ({"torch": "2.9"}, KeyError("x"), "torch 2.9 is too old", "'torch>=2.11'"),
        (
            {},
            raised(ImportError("libtorch_cpu.so: cannot open"), "torch._C"),
            "the package torch is installed, but damaged: libtorch_cpu.so",
            "install --force-reinstall --no-deps torch",
        ),
        (
            {},
            raised(ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn")),
            "the package torch is installed, but damaged: No module named 'torch.nn'",
            "install --force-reinstall --no-deps torch",
        ),
        (
            {},
            raised(ModuleNotFoundError("No module named 'jinja2'", name="jinja2")),
            "a package is missing: No module named 'jinja2'",
            "install jinja2",
        ),
        ({}, raised(ModuleNotFoundError("No module named 'gptcli.y'", name="gptcli.y")), "", ""),
        ({}, raised(ImportError("cannot import name 'x'")), "", ""),
        ({}, KeyError("x"), "", ""),
    ],
)
def test_errors_of_an_installation_name_the_package(
    monkeypatch, installed, error, what, hint
) -> None:
    from importlib import metadata

    versions = installed if "numpy" in installed else {"numpy": "2.3", "torch": "2.11"} | installed

    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(
        metadata, "requires", lambda _: ["numpy>=2.0", "torch>=2.11", "ray>=2; extra == 'ray'"]
    )
    monkeypatch.setattr(metadata, "version", version)
    found = package_error(error)
    assert (found is None) == (what == "")
    if found is not None:
        assert found.exit_code == 2
        assert found.what.startswith(what)
        assert str(found.hint).endswith(hint)


def test_a_compiled_file_that_is_cut_short_is_named(tmp_path: Path, monkeypatch) -> None:
    """A full disk leaves one, and Python reads it again and again."""
    source = tmp_path / "cut_short_module.py"
    source.write_text("x = 1\n")
    compiled = Path(str(py_compile.compile(str(source), doraise=True)))
    compiled.write_bytes(compiled.read_bytes()[:20])
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises((EOFError, ValueError)) as caught:
        importlib.import_module("cut_short_module")
    found = package_error(caught.value)
    assert found is not None
    assert found.message.startswith(f"{compiled}: a compiled file of Python is damaged")


def test_without_typer_the_command_line_says_so(monkeypatch, capsys) -> None:
    from importlib import metadata

    from gptcli.__main__ import main

    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", lambda _: ["typer>=0.29"])
    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr("gptcli.interrupts.begin", lambda words: None)
    monkeypatch.setitem(sys.modules, "gptcli.cli", None)  # an ImportError
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith("gpt: the package typer is not installed for ")


def test_no_other_form_of_the_hint_is_left() -> None:
    """Nothing names a package index's gptcli, which is not this one, or a pip of unknown Python."""
    package = Path(gptcli.__file__).parent
    root = package.parent
    documents = [
        root / "README.md",
        *root.glob("examples/*/README.md"),
        *root.glob("examples/*/Makefile"),
    ]
    for path in [*package.rglob("*.py"), *root.glob("examples/*/*.py"), *documents]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"install\s+['\"]?gptcli", text), path
        if path != package / "errors.py":
            assert not re.search(r"(?<!-m )(?<!uv )\bpip install", text), path


def test_a_long_list_of_choices_is_left_to_the_command_that_prints_it() -> None:
    names = [f"{word}{number}" for word in ("alpha", "beta") for number in range(10)]
    assert nearest("zzz", names, lists="gpt cost --table") == "gpt cost --table lists them"
    assert nearest("alpha", names, lists="gpt cost --table").startswith("did you mean alpha")
    assert nearest("zzz", names[:3], lists="x") == "one of: alpha0, alpha1, alpha2"
    assert nearest("h100,a100", ["a100", "h100", "h200"]) == "one at a time: h100 or a100"


def test_words_of_other_tools_for_a_choice_are_translated() -> None:
    assert nearest("float32", ["fp32", "bf16"]) == "did you mean fp32?"
    assert nearest("yes", ["auto", "on", "off"]) == "did you mean on?"
    for word, ours in {
        "bf16-true": "bf16",
        "bf16-mixed": "bf16",
        "16-mixed": "fp16",
        "32-true": "fp32",
    }.items():
        assert nearest(word, ["auto", "bf16", "fp32", "fp16"]) == f"did you mean {ours}?"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device", "/a/b"), "/a/b: no space left on device"),
        (OSError(28, "No space left on device"), "no space left on device"),
        (ValueError("of a library"), "of a library"),
        (UsageError("wrong", where="x"), "x: wrong"),
    ],
)
def test_errors_in_other_messages_have_no_number_of_the_system(
    error: Exception, message: str
) -> None:
    assert message_of(error) == message
