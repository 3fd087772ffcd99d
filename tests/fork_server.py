"""Python processes that start in milliseconds: forks of one that has imported the libraries.

Importing torch takes a process seconds, and most tests of a command ask about something else. So
one process per test session imports the libraries that `gpt` uses, but nothing of gptcli, and forks
for each command. The fork has the arguments, environment, folder, streams and exit code of a
process of its own, and it imports gptcli itself.

What it cannot show is the start of a process: which libraries are imported and when, another seed
of Python's hashes, a signal during an import. Tests of those start real processes, and so does
every request whose environment matters to Python or a library before the first line runs.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import io
import json
import os
import runpy
import socket
import struct
import subprocess
import sys
import threading
import traceback
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

ROOT = Path(__file__).parents[1]
LIBRARIES = (
    "numpy",
    "rich.console",
    "safetensors.torch",
    "tokenizers",
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.pipelining",
    "torch.distributed.tensor.parallel",
    "typer",
)
# variables with these beginnings are read before or while the libraries are imported
EARLY = ("PYTHON", "LC_", "LANG", "LD_", "OMP_", "MKL_", "OPENBLAS_", "TORCH", "CUDA", "GLIBC")
THREADS = "OMP_NUM_THREADS"  # is early too, but torch can be told later
SIZE = struct.Struct("!q")
FORKS = sys.platform == "linux"  # macOS's own libraries do not survive a fork

Done = subprocess.CompletedProcess[bytes]


class _Server:
    """The process that forks, and the connection to it."""

    def __init__(self) -> None:
        self.env = {name: value for name, value in os.environ.items() if name != THREADS}
        self.socket, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.fork_server", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=ROOT,
                env=self.env,
            )

    def run(self, words: Sequence[str], cwd: Path, env: Mapping[str, str], stdin: bytes) -> Done:
        pipes = [os.pipe() for _ in range(3)]
        theirs = [pipes[0][0], pipes[1][1], pipes[2][1]]
        request = json.dumps([[*words], os.fspath(cwd), {**env}]).encode()
        socket.send_fds(self.socket, [SIZE.pack(len(request))], theirs)
        self.socket.sendall(request)
        for file in theirs:
            os.close(file)
        out, err = io.BytesIO(), io.BytesIO()
        readers = [
            threading.Thread(target=_drain, args=(end, into))
            for (end, _), into in zip(pipes[1:], (out, err), strict=True)
        ]
        for reader in readers:
            reader.start()
        with contextlib.suppress(BrokenPipeError), open(pipes[0][1], "wb") as writer:
            writer.write(stdin)
        for reader in readers:
            reader.join()
        (status,) = SIZE.unpack(_read(self.socket, SIZE.size))
        return Done([*words], os.waitstatus_to_exitcode(status), out.getvalue(), err.getvalue())


_servers: list[_Server] = []  # one, from the first request on; it ends with this process


def python(
    *words: str | os.PathLike[str],
    cwd: Path,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    started: bool = False,
) -> Done:
    """Run `python WORDS` (`-m MODULE ...`, `-c PROGRAM ...` or a script), and wait for its end.

    `env` is added to the environment of this process. With `started`, it is no fork, but a process
    of its own from the first instruction on.
    """
    line, environ = [os.fspath(word) for word in words], {**os.environ, **(env or {})}
    if not started and not _servers and FORKS:
        _servers.append(_Server())
    if started or not _servers or _early(environ) != _early(_servers[0].env):
        return subprocess.run(
            [sys.executable, *line], cwd=cwd, env=environ, input=stdin, capture_output=True
        )
    return _servers[0].run(line, cwd, environ, stdin)


def _early(env: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value for name, value in env.items() if name.startswith(EARLY) and name != THREADS
    }


def _drain(file: int, into: IO[bytes]) -> None:
    with open(file, "rb") as pipe:
        into.write(pipe.read())


def _read(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        if not (more := connection.recv(count - len(data))):
            raise EOFError("the other end of the fork server has gone")
        data += more
    return data


def serve(connection: socket.socket) -> list[str]:
    """Fork for each request, and return its words in the fork, which then runs them.

    Ends the process when the other end has closed the connection.
    """
    while True:
        size, files, _, _ = socket.recv_fds(connection, SIZE.size, 3)
        if not size:
            os._exit(0)
        size += _read(connection, SIZE.size - len(size))
        words, cwd, env = json.loads(_read(connection, *SIZE.unpack(size)))
        if (child := os.fork()) == 0:
            connection.close()
            _become(cwd, env, files)
            return words
        for file in files:
            os.close(file)
        _, status = os.waitpid(child, 0)
        connection.sendall(SIZE.pack(status))


def _become(cwd: str, env: dict[str, str], files: list[int]) -> None:
    """Take over folder, environment and standard streams, as a new process would."""
    import numpy as np
    import torch

    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        before = getattr(sys, name)
        raw = io.FileIO(number, "w" if number else "r", closefd=False)
        buffer: Any = raw
        if not before.write_through:  # which is python -u
            buffer = io.BufferedWriter(raw) if number else io.BufferedReader(raw)
        stream = io.TextIOWrapper(
            buffer,
            before.encoding,
            before.errors,
            line_buffering=name == "stderr",
            write_through=before.write_through,
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    np.random.seed()  # else every fork draws the same
    torch.seed()
    if threads := env.get(THREADS):
        torch.set_num_threads(int(threads))


def execute(words: list[str]) -> None:
    """Run what `python WORDS` would."""
    kind, *rest = words
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    if kind == "-m":
        sys.argv, sys.path[0] = ["-m", *rest[1:]], os.getcwd()  # noqa: PTH109
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        return
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if kind == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        source, file = rest[0], "<string>"
    else:
        file = os.path.abspath(kind)  # noqa: PTH100
        sys.argv, sys.path[0] = words, os.path.dirname(file)  # noqa: PTH120
        main.__file__, source = file, Path(file).read_text(encoding="utf-8")
    exec(compile(source, file, "exec"), main.__dict__)


def leave(code: object) -> NoReturn:
    """Exit as the interpreter does, but without freeing the libraries, which takes a second."""
    if not isinstance(code, int | None):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
    except (OSError, ValueError) as error:
        print(f"Exception ignored while flushing sys.stdout: {error}", file=sys.stderr)
        code = 120  # as Python's own
    sys.stderr.flush()
    os._exit(code or 0)


def main() -> NoReturn:
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # Python warns of forks of a process with threads
    for library in LIBRARIES:
        importlib.import_module(library)
    words = serve(socket.socket(fileno=int(sys.argv[1])))
    try:
        execute(words)
    except SystemExit as stop:
        leave(stop.code)
    except Exception:
        traceback.print_exc()
        leave(1)
    leave(0)


if __name__ == "__main__":
    main()
