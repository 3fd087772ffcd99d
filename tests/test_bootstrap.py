"""Setting up: whatever state .venv is in, the next make ends in one that works or says what to
do.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
VERSION = "{}.{}".format(*sys.version_info)


class Killed(BaseException):
    """Death of a process that is killed: nothing of it runs on."""


class Machine:
    """A checkout in a folder, where venv, pip and uv are played: what they are asked for is in
    `calls`.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.calls: list[str] = []
        self.pip_fails: BaseException | bool = False
        self.torch_needs: list[str] = []
        self.uv_works = True
        root.mkdir(exist_ok=True)
        for name in ("bootstrap.py", "pyproject.toml", "requirements.lock"):
            shutil.copy(ROOT / name, root)

    def bootstrap(self) -> ModuleType:
        spec = importlib.util.spec_from_file_location("bootstrap", self.root / "bootstrap.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        patched = {
            "subprocess": SimpleNamespace(
                run=self.run, PIPE=subprocess.PIPE, DEVNULL=subprocess.DEVNULL
            ),
            "run_alone": lambda command: self.run(command).returncode,  # type: ignore[attr-defined]
            "has_nvidia_driver": lambda: False,
        }
        vars(module).update(patched)
        return module

    def make(self, *arguments: str) -> list[str]:
        """Run it, and return the calls this took."""
        self.calls.clear()
        self.bootstrap().main(list(arguments or ["base"]))
        return list(self.calls)

    def run(self, command: list[str], **how: object) -> object:
        if command[1:3] == ["-I", "-c"]:
            return subprocess.run(command, **how)  # type: ignore[call-overload]
        if command[1:3] == ["-m", "venv"]:
            self.calls.append("venv")
            self.make_venv(Path(command[3]))
        elif "--dry-run" in command:
            torch = {"metadata": {"requires_dist": self.torch_needs}}
            return SimpleNamespace(returncode=0, stdout=json.dumps({"install": [torch]}))
        elif "--torch-backend" in command:
            self.calls.append("uv")
            if self.uv_works:
                self.make_torch([])
            return SimpleNamespace(returncode=int(not self.uv_works))
        elif command[-1] != "uv" and "install" in command:
            self.calls.append(command[-1].replace(str(self.root), "."))
            if isinstance(self.pip_fails, BaseException):
                raise self.pip_fails
            if self.pip_fails:
                return SimpleNamespace(returncode=1)
            self.make_torch(self.torch_needs)
        return SimpleNamespace(returncode=0)

    def make_venv(self, venv: Path) -> None:
        (venv / "bin").mkdir(parents=True)
        (venv / "bin" / "python").symlink_to(sys.executable)
        (venv / "bin" / "activate").touch()
        (venv / "bin" / "pip").write_text(f"#!{venv}/bin/python\n")
        (venv / "lib" / f"python{VERSION}" / "site-packages").mkdir(parents=True)
        (venv / "pyvenv.cfg").touch()

    def make_torch(self, needs: list[str]) -> None:
        packages = self.root / ".venv" / "lib" / f"python{VERSION}" / "site-packages"
        if not list(packages.glob("torch-*.dist-info")):
            (packages / "torch-2.dist-info").mkdir()
            text = "".join(f"Requires-Dist: {name}\n" for name in needs)
            (packages / "torch-2.dist-info" / "METADATA").write_text(
                text + "\nnvidia-docker is no need.\n"
            )


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "gpt")


def test_nothing_is_done_twice(machine, capsys) -> None:
    assert machine.make() == ["venv", ".[serve,gpt1]"]
    assert "about 240 MB to download" in capsys.readouterr().err
    assert machine.make() == []
    assert machine.make("dev") == [".[dev]"]
    assert machine.make("dev") == machine.make("base") == []
    capsys.readouterr()
    machine.make()
    assert capsys.readouterr() == ("", "")


def test_other_requirements_are_installed(machine) -> None:
    machine.make()
    with open(machine.root / "requirements.lock", "a") as lock:
        lock.write("one-more==1\n")
    assert machine.make() == [".[serve,gpt1]"]


def half_made(venv: Path) -> None:
    """As venv leaves it on a Debian without python3-venv."""
    for name in ("bin/activate", "bin/pip", "ready.json"):
        (venv / name).unlink()


def python_gone(venv: Path) -> None:
    (venv / "bin" / "python").unlink()
    (venv / "bin" / "python").symlink_to("/nowhere/python3")


def python_upgraded(venv: Path) -> None:
    (venv / "lib" / f"python{VERSION}").rename(venv / "lib" / "python3.2")


def moved(venv: Path) -> None:
    (venv / "bin" / "pip").write_text("#!/elsewhere/gpt/.venv/bin/python\n")


def cut_off(venv: Path) -> None:
    (venv / "unfinished").touch()
    (venv / "ready.json").unlink()


@pytest.mark.parametrize("fault", [half_made, python_gone, python_upgraded, moved, cut_off])
def test_an_environment_that_cannot_work_is_made_anew(machine, fault, capsys) -> None:
    machine.make()
    fault(machine.root / ".venv")
    assert machine.make() == ["venv", ".[serve,gpt1]"]
    assert "Replacing .venv" in capsys.readouterr().err
    assert machine.make() == []


def test_the_python_that_is_asked_for_is_the_one_there_is(machine, monkeypatch) -> None:
    machine.make()
    assert machine.make("base", "--this-python") == []
    monkeypatch.setattr(sys, "version_info", (3, 99, 0))
    assert machine.make("base") == []
    assert machine.make("base", "--this-python") == ["venv", ".[serve,gpt1]"]


@pytest.mark.parametrize("module", ["venv", "ensurepip"])
def test_a_python_that_makes_no_environments_says_what_to_install(
    machine, monkeypatch, capsys, module
) -> None:
    with monkeypatch.context() as debian:
        debian.setitem(sys.modules, module, None)
        with pytest.raises(SystemExit) as stopped:
            machine.make()
        assert stopped.value.code == 1
    assert "sudo apt install python3-venv" in capsys.readouterr().err
    assert not (machine.root / ".venv").exists()
    assert machine.make() == ["venv", ".[serve,gpt1]"]


def test_a_kill_at_any_moment_leaves_nothing_that_is_believed(machine) -> None:
    machine.pip_fails = Killed()
    for extra in ("base", "dev"):
        with pytest.raises(Killed):
            machine.make(extra)
    machine.pip_fails = False
    assert machine.make() == ["venv", ".[serve,gpt1]"]
    machine.pip_fails = Killed()
    with pytest.raises(Killed):
        machine.make("dev")
    machine.pip_fails = False
    assert machine.make("base") == ["venv", ".[serve,gpt1]"]


def test_ctrl_c_ends_what_makes_the_environment_without_its_traceback(capfd) -> None:
    spec = importlib.util.spec_from_file_location("bootstrap", ROOT / "bootstrap.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.run_alone([sys.executable, "-c", "raise SystemExit(3)"]) == 3
    interrupts = "import os, signal, time; os.kill(os.getppid(), signal.SIGINT); time.sleep(1000)"
    with pytest.raises(KeyboardInterrupt):
        module.run_alone([sys.executable, "-c", interrupts])
    assert not any(capfd.readouterr())


def test_a_failed_installation_goes_on_at_the_next_make(machine, capsys) -> None:
    machine.pip_fails = True
    with pytest.raises(SystemExit) as stopped:
        machine.make()
    assert stopped.value.code == 1
    machine.pip_fails = False
    assert machine.make() == [".[serve,gpt1]"]


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_other_folders_are_left_alone(machine, tmp_path, kind, capsys) -> None:
    venv = machine.root / ".venv"
    mine = tmp_path / "mine"
    mine.mkdir()
    if kind == "file":
        venv.touch()
    elif kind == "folder":
        venv.mkdir()
        (venv / "thesis.tex").touch()
    else:
        venv.symlink_to(mine)
    with pytest.raises(SystemExit):
        machine.make()
    assert "move it away" in capsys.readouterr().err
    assert os.path.lexists(venv)
    assert mine.exists()


def test_without_a_driver_the_cpu_build_is_taken(machine, capsys) -> None:
    machine.torch_needs = ["nvidia-nccl-cu13==2"]
    assert machine.make() == ["venv", "uv", ".[serve,gpt1]"]
    told = capsys.readouterr().err
    assert "No NVIDIA driver was found" in told
    assert "PyTorch's CPU build and the other packages: about 240 MB" in told


def test_an_unavailable_download_is_told(machine, capsys) -> None:
    machine.torch_needs = ["cuda-toolkit==13"]
    machine.uv_works = False
    assert machine.make() == ["venv", "uv", ".[serve,gpt1]"]
    told = capsys.readouterr().err
    assert "make TORCH_INDEX=ADDRESS" in told
    assert "PyTorch's CUDA build and the other packages: about 2.8 GB" in told


def test_an_index_that_is_named_is_used(machine, monkeypatch, capsys) -> None:
    monkeypatch.setenv("TORCH_INDEX", "file:///wheels")
    assert machine.make() == ["venv", "torch", ".[serve,gpt1]"]
    assert "Installing PyTorch from file:///wheels" in capsys.readouterr().err


# --- the Makefiles ---

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="no make")


def make(*words: object, **environment: str) -> tuple[int, str]:
    """Run make; returns its exit code and all that it wrote."""
    done = subprocess.run(
        ["make", *map(str, words)],
        env={"PATH": "/usr/bin:/bin", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        check=False,
    )
    return done.returncode, done.stdout


@needs_make
def test_make_names_the_python_that_is_missing_or_too_old(tmp_path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    code, told = make("-C", tmp_path, "PYTHON=no-python-of-this-name")
    assert code == 2
    assert "There is no no-python-of-this-name: install Python 3.11 or newer" in told
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    code, told = make("-C", tmp_path, "test", f"PYTHON={old}")
    assert code == 2
    assert "gpt needs Python 3.11 or newer" in told


@needs_make
def test_make_passes_by_an_old_python3(tmp_path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "bootstrap.py").touch()
    for name, code in (("python3", 1), ("python3.14", 127), ("python3.13", 0)):
        script = tmp_path / name
        script.write_text(f"#!/bin/sh\necho {name} $2 >> {tmp_path}/ran\nexit {code}\n")
        script.chmod(0o755)
    assert make("-C", tmp_path, "setup-dev", PATH=f"{tmp_path}:/usr/bin:/bin")[0] == 0
    assert (tmp_path / "ran").read_text().splitlines()[-1] == "python3.13 dev"


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """One example in a checkout where nothing is installed, and whose path has a space."""
    folder = tmp_path / "my gpt" / "examples" / "gpt2-124M"
    shutil.copytree(ROOT / "examples" / "gpt2-124M", folder, ignore=shutil.ignore_patterns("out"))
    shutil.copy(ROOT / "examples" / "common.mk", folder.parent)
    return folder


def put_gpt(folder: Path, says: str) -> None:
    folder.mkdir(parents=True)
    (folder / "gpt").write_text(f"#!/bin/sh\necho {says} gpt $1\n")
    (folder / "gpt").chmod(0o755)


@needs_make
def test_an_example_finds_the_repository_s_environment(example, tmp_path) -> None:
    root = example.parents[1]
    code, told = make("--no-print-directory", "-C", example, "plan")
    assert code == 2
    assert f"gpt is not installed: run `make setup` in {root}" in told
    assert make("-C", example, "-n")[0] == make("-C", example, "clean")[0] == 0
    put_gpt(tmp_path / "bin", "installed")
    path = f"{tmp_path}/bin:/usr/bin:/bin"
    assert "installed gpt cost" in make("-C", example, "plan", PATH=path)[1]
    put_gpt(root / ".venv" / "bin", "repository")
    assert "installed gpt cost" in make("-C", example, "plan", PATH=path)[1], (
        "an unfinished .venv is not used"
    )
    (root / ".venv" / "ready.json").touch()
    code, told = make("-C", example, "plan", PATH=path)
    assert code == 0, told
    assert "repository gpt cost" in told
    assert "installed" not in told


def test_every_example_includes_what_finds_it() -> None:
    for makefile in ROOT.glob("examples/*/Makefile"):
        text = makefile.read_text(encoding="utf-8")
        assert "\ninclude ../common.mk\n" in text, makefile
        assert "\tpython" not in text, f"{makefile}: $(python)"


def test_a_path_that_is_not_ascii_does_not_stop_python_in_another_locale(machine, tmp_path) -> None:
    """A .pth file in UTF-8 stops Python below 3.13 under LC_ALL=C."""
    machine.make()
    folder = tmp_path / "Größe 文"
    folder.mkdir()
    (folder / "module_of_umlauts.py").write_text("")
    packages = machine.root / ".venv" / "lib" / f"python{VERSION}" / "site-packages"
    (packages / "editable.pth").write_text(f"{folder}\nimport os\n", encoding="utf-8")
    machine.bootstrap().spell_paths_in_ascii()
    _, second = (packages / "editable.pth").read_text(encoding="ascii").splitlines()
    assert second == "import os"
    script = f"import site; site.addsitedir({str(packages)!r}); import module_of_umlauts"
    env = {**os.environ, "LC_ALL": "C", "PYTHONPATH": ""}
    subprocess.run([sys.executable, "-c", script], env=env, check=True)
