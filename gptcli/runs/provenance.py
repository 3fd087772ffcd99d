"""When, where, by what and from what a run was made: comments at the top of its run.toml, from
which report and model card take them.

Comments, because run.toml is read back as the run's options, and none of this is one. A resume
keeps them, and adds a line if anything of them has changed.
"""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import gptcli
from gptcli.runtime import available_cores

FACTS = ("date", "host", "device", "torch", "python", "commit", "data", "passes")  # in this order
# of these a resume tells what has changed
MADE_BY = ("host", "device", "torch", "python", "commit")
RESUMED, AS_AT_FIRST = "resumed", "as at first"
LINE = re.compile(r"# (\w+): (.*)")


def provenance(
    processes: int, data: Path, sha256: str, data_tokens: int, tokens: int
) -> dict[str, str]:
    """Return the facts of a run that begins here, on `tokens` tokens out of the `data_tokens` of
    the shards in `data`. What cannot be found out is left out."""
    import torch

    found = {
        "date": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "host": platform.node(),
        "device": device_name(processes),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit(Path(gptcli.__file__).parent.parent),
        "data": f"{data.resolve()}, {data_tokens:,} training tokens, sha256 {sha256}",
        "passes": f"{tokens / data_tokens:.3g}" if data_tokens else "",
    }
    return {name: _one_line(text) for name, text in found.items() if text}


def read_provenance(resolved: str) -> dict[str, str]:
    """Return the facts in the head of a run.toml, and the newest resume that changed any; none of a
    file that an older version wrote."""
    head = resolved.split("\n\n", 1)[0]
    found = {match[1]: match[2] for match in map(LINE.fullmatch, head.splitlines()) if match}
    return {name: found[name] for name in (*FACTS, RESUMED) if name in found}


def resumed(resolved: str, now: Mapping[str, str]) -> str:
    """Return run.toml's text with a line on this resume, if it differs from what the newest such
    line tells, or the beginning."""
    before = read_provenance(resolved)
    differs = (
        "; ".join(
            f"{name} {now[name]}"
            for name in MADE_BY
            if name in now and now[name] != before.get(name)
        )
        or AS_AT_FIRST
    )
    if not before or differs == (before.get(RESUMED, "").partition("; ")[2] or AS_AT_FIRST):
        return resolved
    head, gap, rest = resolved.partition("\n\n")
    return f"{head}\n# {RESUMED}: {now['date']}; {differs}{gap}{rest}"


def device_name(processes: int) -> str:
    """Name the GPU or the processor, with how many of them or how many cores."""
    import torch

    if torch.cuda.is_available():
        return (
            f"{processes} x {torch.cuda.get_device_name()}"
            if processes > 1
            else torch.cuda.get_device_name()
        )
    cores = available_cores()
    return f"{_processor()}, {cores} {'cores' if cores > 1 else 'core'}"


def _processor() -> str:
    try:
        words = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        words = ""
    found = re.search(r"^model name\s*:\s*(.+)$", words, re.MULTILINE)
    return found[1] if found else platform.processor() or platform.machine()


def commit(root: Path) -> str:
    """Return the commit that is checked out in `root`, read from its .git; nothing if there is
    none. Runs no program."""
    try:
        git = root / ".git"
        if git.is_file():  # a work tree beside its repository
            git = (root / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()).resolve()
        head = (git / "HEAD").read_text(encoding="utf-8").strip()
        if not head.startswith("ref: "):
            return _hash(head)
        name = head.removeprefix("ref: ")
        common = git / "commondir"
        folders = (
            [git, (git / common.read_text(encoding="utf-8").strip()).resolve()]
            if common.is_file()
            else [git]
        )
        for folder in folders:
            if (folder / name).is_file():
                return _hash((folder / name).read_text(encoding="utf-8").strip())
        packed = (folders[-1] / "packed-refs").read_text(encoding="utf-8")
        found = re.search(rf"^([0-9a-f]+) {re.escape(name)}$", packed, re.MULTILINE)
        return _hash(found[1]) if found else ""
    except (OSError, ValueError):
        return ""


def _hash(text: str) -> str:
    return text if re.fullmatch(r"[0-9a-f]{40,64}", text) else ""


def _one_line(text: str) -> str:
    """As a comment in TOML can hold it."""
    return "".join(c if c.isprintable() else " " for c in text).strip()
