"""Work that follows the checkpoints in a thread that the training does not wait for."""

from __future__ import annotations

import atexit
import threading
import time
from pathlib import Path

import torch

from gptcli.errors import GptError, message_of
from gptcli.events import Events

CHECKPOINT_TIMEOUT = 600.0  # seconds that a checkpoint may take to be on disk


class Left(Exception):  # noqa: N818 - no error: the run ends
    """Raised by `work` that stops because `leaving` is set."""


class Follower:
    """Works on one checkpoint at a time, on the CPU: one that comes while another is worked on is
    passed over, except for the last.
    """

    name = ""
    """Of what is made from a checkpoint, for messages."""

    def __init__(self, events: Events, *, upto: int) -> None:
        """`upto`: the step up to which the work has been done."""
        self.events, self.begun = events, upto
        """The step whose work was begun last."""
        self.thread: threading.Thread | None = None
        self.leaving = threading.Event()
        # however the run ends: a thread that is still in torch then aborts the whole process
        atexit.register(self.leave)

    def work(self, folder: Path, step: int, tokens: int) -> None:
        """Do the work on the checkpoint in `folder`; look at `leaving` often. GptError and OSError
        become a warning.
        """
        raise NotImplementedError

    def begin(self, folder: Path, step: int, tokens: int) -> None:
        """Work on the checkpoint in `folder` as soon as it is there."""
        if self.thread is None or not self.thread.is_alive():
            self.begun = step
            self.thread = threading.Thread(
                target=self._follow, args=(folder, step, tokens), daemon=True
            )
            self.thread.start()

    def finish(self, folder: Path, step: int, tokens: int) -> None:
        """Return once the work on the last checkpoint, this one, is done."""
        self._join()
        if self.begun != step:
            self.begin(folder, step, tokens)
            self._join()

    def leave(self) -> None:
        """Break off the work that is going on, if any; no more is begun."""
        self.leaving.set()
        self._join()
        atexit.unregister(self.leave)

    def _join(self) -> None:
        if self.thread is not None:
            self.thread.join()

    def _follow(self, folder: Path, step: int, tokens: int) -> None:
        end = time.monotonic() + CHECKPOINT_TIMEOUT
        while not folder.exists() and time.monotonic() < end:
            if self.leaving.wait(0.05):
                return
        torch.set_num_threads(1)  # this thread's: the others are the training's
        try:
            self.work(folder, step, tokens)
        except Left:
            return
        except (
            GptError,
            OSError,
        ) as error:  # the next checkpoints took its place, or the disk is full
            self.events.warn(f"no {self.name} from step {step:,}: {message_of(error)}")
