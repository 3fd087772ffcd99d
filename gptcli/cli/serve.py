"""The options of `gpt sample --serve`: what they refuse, and the start of the server."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from gptcli.cli.console import ConsoleEvents
from gptcli.cli.options import flag, option, quantity, value
from gptcli.errors import UsageError

SERVER = "Server"
HOST, PORT, BATCH_SIZE = "127.0.0.1", 8000, 16
KEY_VARIABLE = "GPT_API_KEY"
OF_THE_MODEL = ("checkpoint", "device", "precision", "quantize", "batch_size")
"""Options of `gpt sample` that apply to a server; requests contain the others."""

ServeFlag = Annotated[
    bool,
    flag(
        "--serve",
        "Serve the model to a browser, and to programs through OpenAI's completions API.",
        SERVER,
    ),
]
Host = Annotated[
    str | None,
    value(
        "Address to listen on, such as 0.0.0.0 for all of this machine; one that other machines "
        "can reach needs a key.",
        *("ADDRESS", SERVER, HOST),
    ),
]
Port = Annotated[
    int | None, quantity("port", "Port to listen on; 0 takes any free one.", SERVER, str(PORT))
]
ApiKey = Annotated[
    str | None,
    value(
        f"Key that requests must contain; better set as the environment variable {KEY_VARIABLE}, "
        "which other users of this machine cannot see.",
        *("KEY", SERVER, False),
    ),
]


def load_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the options with which a model is loaded."""
    return {
        "checkpoint": values.get("checkpoint"),
        **{name: values[name] for name in ("device", "precision", "quantize")},
    }


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Options of the server, None where they are not given."""

    host: str | None
    """Address to listen on."""
    port: int | None
    """Port to listen on."""
    api_key: str | None
    """Key that requests must contain."""

    def require_serve(self) -> None:
        """Raise UsageError if one of the options is given, for a command without --serve."""
        for name in ("host", "port", "api_key"):
            if getattr(self, name) is not None:
                raise UsageError(f"{option(name)} needs --serve", hint="gpt sample RUN --serve")

    @staticmethod
    def refuse(keys: Collection[str], config: Path) -> None:
        """Raise UsageError for keys of a configuration file that requests contain."""
        if of_requests := [name for name in sorted(keys) if name not in OF_THE_MODEL]:
            raise UsageError(
                f"{of_requests[0]} has no effect with --serve",
                where=config,
                hint="each request contains its own prompt and options, and so does the page",
            )

    def start(self, run: Path, second: str | None, values: Mapping[str, Any]) -> None:
        """Load the run, and the `second` if there is one, and serve them until the process ends."""
        if second is not None and not (second and Path(second).is_dir()):
            is_port = second.isdecimal()
            raise UsageError(
                f"{second!r} is not a folder: with --serve, a second run may follow the first",
                hint=f"to choose the port: --port {second}"
                if is_port
                else "the prompt is written in the page, or is part of a request",
            )
        from gptcli.serving.server import is_loopback, listen, require_server, serve

        require_server()
        host, port = self.host or HOST, PORT if self.port is None else self.port
        api_key = os.environ.get(KEY_VARIABLE) or None if self.api_key is None else self.api_key
        if api_key is None and not is_loopback(host):
            raise UsageError(
                "other machines could use the server: it needs a key",
                where="--host",
                hint=f"set the environment variable {KEY_VARIABLE}, or give --api-key",
            )
        if second is not None and "checkpoint" in values:
            raise UsageError(
                "--checkpoint cannot be combined with two runs",
                hint="name the checkpoint's folder as the run: RUN/checkpoints/step-...",
            )
        with contextlib.closing(listen(host, port)) as listening:
            from gptcli.sampling.load import load

            events = ConsoleEvents()
            runs = [run] if second is None else [run, Path(second)]
            models = [(one, load(one, **load_options(values), events=events)) for one in runs]
            log = events.messages.log

            def tell(address: str) -> None:
                if log is not None:
                    log.write(address)
                print(address, flush=True)  # the result: it is there with -q, too

            serve(
                models,
                listening,
                batch_size=values.get("batch_size", BATCH_SIZE),
                api_key=api_key,
                events=events,
                on_ready=tell,
                last_words="" if events.messages.quiet else "the server has ended\n",
            )
