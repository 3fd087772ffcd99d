"""Provenance of a run: date, machine, software and data, as comments at the top of its run.toml.

They are comments because run.toml is read back as the run's options. A resume keeps them, and adds
a line if any of them has changed. The report and the model card show them.
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
# facts whose changes a resume records
ENVIRONMENT = ("host", "device", "torch", "python", "commit")
RESUMED, UNCHANGED = "resumed", "as at first"
LINE = re.compile(r"# (\w+): (.*)")


def provenance(
    processes: int, data: Path, sha256: str, data_tokens: int, tokens: int
) -> dict[str, str]:
    """Return the facts of a run that starts on this machine; unknown ones are left out.

    It trains on `tokens` tokens, and the shards in `data` have `data_tokens`.
    """
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
    """Return the facts at the top of a run.toml, and the newest resume that changed any.

    Files of older versions have none.
    """
    head = resolved.split("\n\n", 1)[0]
    found = {match[1]: match[2] for match in map(LINE.fullmatch, head.splitlines()) if match}
    return {name: found[name] for name in (*FACTS, RESUMED) if name in found}


def resumed(resolved: str, now: Mapping[str, str]) -> str:
    """Return run.toml's text with a line about this resume, if its environment differs from that of
    the newest resume, or else of the start.
    """
    before = read_provenance(resolved)
    differs = (
        "; ".join(
            f"{name} {now[name]}"
            for name in ENVIRONMENT
            if name in now and now[name] != before.get(name)
        )
        or UNCHANGED
    )
    if not before or differs == (before.get(RESUMED, "").partition("; ")[2] or UNCHANGED):
        return resolved
    head, gap, rest = resolved.partition("\n\n")
    return f"{head}\n# {RESUMED}: {now['date']}; {differs}{gap}{rest}"


def device_name(processes: int) -> str:
    """Return the GPU with the number of processes, or the processor with its cores."""
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
    """Return the commit checked out in `root`, or "" if it is not a Git work tree.

    Reads the files of .git and runs no program.
    """
    try:
        git = root / ".git"
        if git.is_file():  # an additional work tree
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
    """Return the text without the characters that a TOML comment must not have."""
    return "".join(c if c.isprintable() else " " for c in text).strip()
