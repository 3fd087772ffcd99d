"""Tests mirror the package: `gptcli/a/b.py` is tested by `tests/a/test_b.py`.

A folder of the package, `gptcli/a/b/`, may have a `tests/a/test_b.py` too, for what its modules or
files share. Tests of whole commands, of several rooms and of documents are in suites of their own.
"""

from __future__ import annotations

from pathlib import Path

import gptcli

PACKAGE, TESTS = Path(gptcli.__file__).parent, Path(__file__).parent
SUITES = {
    "benchmarks",
    "examples",
    "faults",
    "fuzz",
    "golden",
    "gpu",
    "interrupts",
    "mutation",
    "system",
}
OTHER_SUBJECTS = {  # test files of something other than a module, and their subject
    "corpus/test_damage.py": "builds of damaged inputs of every format",
    "test_bootstrap.py": "bootstrap.py of the repository",
    "test_collection.py": "the suite itself",
    "test_cuda_benchmark.py": "tests/benchmarks/cuda.py",
    "test_floors.py": "imports of the whole package",
    "test_fork_server.py": "tests/fork_server.py",
    "test_mirror.py": "names of the test files",
    "test_prose.py": "prose of the whole package",
    "test_private_names.py": "imports of the whole package",
    "test_vocabulary.py": "names of the whole package",
}


def package_modules() -> set[Path]:
    """Return the paths of all modules inside the package, without those that begin with `__`."""
    return {
        path.relative_to(PACKAGE)
        for path in PACKAGE.rglob("*.py")
        if not path.name.startswith("__")
    }


def package_folders() -> set[Path]:
    """Return the paths of all folders inside the package, each as if it were a module."""
    return {
        path.relative_to(PACKAGE).with_suffix(".py")
        for path in PACKAGE.rglob("*")
        if path.is_dir() and path.name != "__pycache__"
    }


def modules_of_test_files() -> set[Path]:
    """Return the path of the module after which each test file is named."""
    files = {path.relative_to(TESTS) for path in TESTS.rglob("test_*.py")}
    return {
        file.with_name(file.name.removeprefix("test_"))
        for file in files
        if file.parts[0] not in SUITES and str(file) not in OTHER_SUBJECTS
    }


def test_every_module_has_a_test_file() -> None:
    assert sorted(map(str, package_modules() - modules_of_test_files())) == []


def test_every_test_file_is_named_after_a_module_or_folder() -> None:
    assert sorted(map(str, modules_of_test_files() - package_modules() - package_folders())) == []


def test_every_exception_exists() -> None:
    assert [name for name in OTHER_SUBJECTS if not (TESTS / name).is_file()] == []
