"""Checks, before any work, of what the processes of a run must share: the run itself, the software,
and a run folder that all of them see.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import time
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
import torch.distributed as dist

from gptcli import __version__
from gptcli.cost.layout import Layout
from gptcli.distributed.context import RankContext
from gptcli.errors import UsageError
from gptcli.files import PARTIAL

SHARED_WAIT_S = 5  # for a new file to be seen on another host


class Launchable(Protocol):
    """Dataclass that describes a run, as far as its launch is concerned."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def out(self) -> Path:
        """Folder of the run."""
        ...

    @property
    def layout(self) -> Layout:
        """Layout of the run, which gives the number of processes."""
        ...

    @property
    def timeout(self) -> int:
        """Seconds that a process waits for another one in a step before it gives it up."""
        ...

    def shared_values(self) -> dict[str, Any]:
        """Return the values that must be equal on all processes, by name."""
        ...

    @property
    def resume(self) -> bool:
        """True to continue from the newest checkpoint, which a restart sets."""
        ...


def check_agreement(run: Launchable, context: RankContext) -> None:
    """Check that all processes were started for one run, with one software, and share its folder.

    A collective call, before any work. Raises UsageError on every process.
    """
    mine = {
        "gpt": __version__,
        "torch": torch.__version__,
        **run.shared_values(),
    }
    facts = context.all_gather((socket.gethostname(), mine))
    (first, expected), others = facts[0], facts[1:]
    for host, found in others:
        different = [
            f"{name} is {found.get(name)!r} there and {expected.get(name)!r} on {first}"
            for name in expected.keys() | found.keys()
            if found.get(name) != expected.get(name)
        ]
        if different:
            raise UsageError(
                f"started differently from {first}: {'; '.join(sorted(different))}",
                where=host,
                code="processes_disagree",
                hint="start the same command, on the same data and with the same versions, "
                "on every host",
            )
    token = run.out / f".gpt.shared-{secrets.token_hex(8)}{PARTIAL}"
    token = context.all_gather(token)[0]
    if context.is_main:
        run.out.mkdir(parents=True, exist_ok=True)
        token.touch()
    dist.barrier()
    sees = _appears(token)
    blind = sorted(
        {host for host, there in context.all_gather((facts[context.rank][0], sees)) if not there}
    )
    if context.is_main:
        token.unlink(missing_ok=True)
    if blind:
        raise UsageError(
            f"the run folder of {first} is not seen by {', '.join(blind)}",
            where=run.out,
            field="out",
            code="folder_not_shared",
            hint="name an {option:out} on a file system that all hosts share: "
            "each writes its part of every checkpoint there",
        )


def _appears(file: Path) -> bool:
    """Return whether a file that another host has made is seen here, at last after some seconds."""
    end = time.monotonic() + SHARED_WAIT_S
    while True:
        with contextlib.suppress(OSError):  # NFS asks its server for a folder that is listed
            if file in file.parent.iterdir():
                return True
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
