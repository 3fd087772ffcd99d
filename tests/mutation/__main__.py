"""Change the code a little, one place at a time, and see whether its tests notice.

    python -m tests.mutation                                       60 mutants of cost/, 40 of shards/, 20 of trainer/schedule.py
    python -m tests.mutation --sample 100 --seed 1 cost shards     more of some, and others

Drawn by the seed out of all that there are. A mutant is killed where the tests of its own file
fail; of a package that is named as a whole, also where any others of its tests do. Each runs in a
fork of this process, which has imported what the tests need but nothing of gptcli. Exits 1 below 80
%.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import random
import signal
import sys
import tempfile
from pathlib import Path

from tests.mutation.mutants import Mutant, mutants_of, plant

ROOT = Path(__file__).parents[2]
SAMPLES = {"cost": 60, "shards": 40, "trainer/schedule": 20}
PATIENCE = 120  # seconds; tests that run longer than that have noticed something
LEAST = 0.8
OURS = ("gptcli", "tests", "conftest", "__main__")


def passes(tests: list[Path], mutant: Mutant, imported: Path | None = None) -> bool:
    """Return whether these tests pass, in a fork, with the mutant in the place of its module;
    `imported` is told what they import.
    """
    if (child := os.fork()) == 0:
        import pytest

        signal.alarm(PATIENCE)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        plant(mutant)
        options = ["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", "-W", "ignore"]
        code = int(pytest.main([*options, *map(str, tests)]))
        if imported is not None:
            imported.write_text(
                "\n".join(name for name in sys.modules if name.partition(".")[0] not in OURS)
            )
        os._exit(code)
    return os.waitpid(child, 0)[1] == 0


def preload(tests: list[Path], mutant: Mutant) -> bool:
    """Import what these tests need, but nothing of gptcli, once for all forks. Whether they
    pass.
    """
    with tempfile.TemporaryDirectory() as folder:
        listed = Path(folder) / "modules"
        passed = passes(tests, mutant, listed)
        for name in listed.read_text().splitlines():
            with contextlib.suppress(Exception):  # what is only there under some name of its own
                importlib.import_module(name)
    return passed


def survives(mutant: Mutant, *, whole_package: bool) -> bool:
    package = ROOT / "tests" / mutant.path.relative_to(ROOT / "gptcli").parent
    own = package / f"test_{mutant.path.stem}.py"
    others = (
        [file for file in sorted(package.glob("test_*.py")) if file != own] if whole_package else []
    )
    return (not own.exists() or passes([own], mutant)) and (not others or passes(others, mutant))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutation")
    parser.add_argument("names", nargs="*", help="packages or files below gptcli/")
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.chdir(ROOT)
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = tempfile.mkdtemp()
    low = False
    for name in options.names or SAMPLES:
        where = ROOT / "gptcli" / name
        paths = sorted(where.glob("*.py")) if where.is_dir() else [where.with_suffix(".py")]
        every = [mutant for path in paths for mutant in mutants_of(path, ROOT)]
        some = random.Random(options.seed).sample(
            every, min(len(every), options.sample or SAMPLES.get(name, 40))
        )
        tests = ROOT / "tests" / where.relative_to(ROOT / "gptcli")
        if not preload(
            [tests] if where.is_dir() else [tests.with_name(f"test_{tests.name}.py")],
            Mutant(paths[0], "", 0),
        ):
            print(f"the tests of {name} fail as it is")
            return 2
        alive = []
        for mutant in sorted(some, key=lambda one: (one.path, one.number)):
            if survives(mutant, whole_package=where.is_dir()):
                alive.append(mutant)
                print(f"  survives: {mutant}", flush=True)
        share = 1 - len(alive) / len(some)
        low = low or share < LEAST
        print(
            f"{name:<20}{len(every):>6} mutants {len(some):>5} tried {len(some) - len(alive):>5} killed {share:>7.1%}",
            flush=True,
        )
    return int(low)


if __name__ == "__main__":
    sys.exit(main())
