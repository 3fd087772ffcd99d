"""Tests mirror the package: gptcli/a/b.py is tested by tests/a/test_b.py, and every test has a module.

Suites that test the commands or the documents as a whole have folders of their own.
"""

from __future__ import annotations

from pathlib import Path

import gptcli

PACKAGE, TESTS = Path(gptcli.__file__).parent, Path(__file__).parent
SUITES = {"benchmarks", "examples", "faults", "fuzz", "golden", "gpu", "interrupts", "mutation"}
WHOLE = {  # tests of something larger than one module, with what it is
    "test_bootstrap.py": "bootstrap.py of the repository",
    "test_collection.py": "the suite itself",
    "test_floors.py": "imports of the whole package",
    "test_mirror.py": "the tests themselves",
    "test_prose.py": "how the package reads",
    "test_vocabulary.py": "names of the package",
    "test_cuda_benchmark.py": "tests/benchmarks/cuda.py",
}


def modules() -> set[Path]:
    return {
        path.relative_to(PACKAGE)
        for path in PACKAGE.rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py")
    }


def tested() -> set[Path]:
    """The modules that the test files are named after."""
    files = {path.relative_to(TESTS) for path in TESTS.rglob("test_*.py")}
    return {
        file.with_name(file.name.removeprefix("test_"))
        for file in files
        if file.parts[0] not in SUITES and str(file) not in WHOLE
    }


def test_every_module_has_its_test_file() -> None:
    assert sorted(map(str, modules() - tested())) == []


def test_every_test_file_is_named_after_a_module() -> None:
    assert sorted(map(str, tested() - modules())) == []
