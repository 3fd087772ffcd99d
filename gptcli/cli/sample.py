"""`gpt sample`: generate text with a trained model, and stream it to stdout."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli.cli.command import Command, Mode, read_config, releasing
from gptcli.cli.console import ConsoleEvents, print_json, print_piece, terminal_restored
from gptcli.cli.options import (
    MACHINE,
    OUTPUT,
    Option,
    declaring,
    flag,
    model_path,
    out,
    read_option,
    read_options,
    readers,
    shared,
    value,
)
from gptcli.cli.serve import (
    OF_THE_MODEL,
    ApiKey,
    Host,
    Port,
    ServeFlag,
    ServerOptions,
    load_options,
)
from gptcli.encodings import decode
from gptcli.errors import InputError, UsageError, nearest
from gptcli.interrupts import Cleanup, Raise, write
from gptcli.model.source import check_exists
from gptcli.numbers import counted
from gptcli.sampling.defaults import MAX_TOKENS, TEMPERATURE, TOP_K
from gptcli.settings import Resolved, boolean

if TYPE_CHECKING:
    from gptcli.sampling.batch import PromptParts
    from gptcli.sampling.generate import Completion
    from gptcli.sampling.params import SamplingParams
    from gptcli.sampling.sampler import Sampler

CHOOSING, PROMPTS = "Choosing tokens", "Prompts"
BATCH_SIZE = 8
EARLY_TOKENS = 16  # of a sample that ends before, the reason is said
# pairs of options that cannot be combined
CONFLICTS = (
    ("--beam", "--best-of"),
    ("--beam", "--draft"),
    ("--beam", "--prompts"),
    ("--best-of", "--draft"),
    ("--best-of", "--prompts"),
    ("--draft", "--prompts"),
    ("-i", "--json"),
)


def _texts(value: object) -> list[str]:
    """Return a text, or the texts of a list; they may be empty."""
    texts = value if isinstance(value, list) else [value]
    if strange := [text for text in texts if not isinstance(text, str)]:
        raise UsageError(f"{strange[0]!r} is not text")
    return [str(text) for text in texts]


# fmt: off
OPTIONS = {  # also the keys of --config, which may name a preset too
    "checkpoint": Option(None, "the finished model, or the newest checkpoint"),
    "num_samples": Option(None, "1", "Number of samples; the text of each does not depend on how "
                                     "many there are."),
    "max_tokens": Option(
        None, str(MAX_TOKENS), "Maximum length of a sample, in tokens; it ends earlier at end-of-text."),
    "stop": Option(
        None, "", "Text that ends a sample and is left out of it; repeat the option for several.",
        "TEXT", _texts, repeats=True),
    "seed": Option(None, "0", "Random seed; the same seed gives the same text."),
    "preset": Option(
        CHOOSING, "",
        "Sampling options of a paper: gpt2 or gpt3 (their released samples), or news (GPT-3's "
        "articles).", "NAME"),
    "temperature": Option(
        CHOOSING, f"{TEMPERATURE:g}",
        "Sampling temperature: text is more predictable below 1 and more varied above it; 0 is "
        "greedy.", "X"),
    "top_k": Option(
        CHOOSING, f"{TOP_K}, or all with --top-p",
        "Sample only from the N most probable tokens; --top-p 1 samples from all."),
    "top_p": Option(
        CHOOSING, "", "Sample only from the fewest tokens whose probabilities add up to P.", "P"),
    "greedy": Option(CHOOSING, "", "Always take the most probable token.", reader=boolean),
    "repetition_penalty": Option(
        CHOOSING, "", "Penalty on tokens that are already in the text; above 1 discourages them.",
        "X"),
    "beam": Option(
        CHOOSING, "", "Beam search of width N with GPT-3's length penalty; GPT-3 uses 4."),
    "best_of": Option(
        CHOOSING, "", "Draw N samples and show the one with the highest mean log-probability."),
    "device": Option(MACHINE, "auto"),
    "precision": Option(
        MACHINE, "auto",
        "Precision of matrix products: fp32, bf16 or auto, which is bf16 on a GPU that supports "
        "it; in bf16, a text may depend on the number of samples.", "KIND"),
    "quantize": Option(MACHINE, "none", "Quantization of the weights: none or int8.", "KIND"),
    "batch_size": Option(
        MACHINE, "8, or 16 with --serve",
        "Number of samples generated at once by --prompts, or by --serve for each model."),
}
# fmt: on
DEFAULTS: dict[str, Any] = {
    **{
        name: read_option(name, OPTIONS[name].shown, OPTIONS[name].reader_of(name))
        for name in (
            "num_samples",
            "max_tokens",
            "seed",
            "device",
            "precision",
            "quantize",
        )
    },
    "stop": [],
    "greedy": False,
}


SERVER_OPTIONS = ("host", "port", "api_key")
MODES = (
    Mode(
        "serve",
        "takes prompts and options from the requests and the page",
        ("run", "prompt", "config", *SERVER_OPTIONS, *OF_THE_MODEL),
        hint="leave it out: each request contains its own",
    ),
    Mode(
        "prompts",
        "samples the prompts of a file into another",
        ("run", "output", "resume", "force", "config", *OPTIONS),
    ),
)


class SampleCommand(Command):
    """`gpt sample`, whose modes take the prompts from elsewhere."""

    modes = MODES


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("sample", cls=SampleCommand)(releasing(sample))


@declaring(OPTIONS)
def sample(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            parser=model_path,
            help="Run, transformers folder, file of nanoGPT or llm.c, or a name on the Hub such as gpt2.",
        ),
    ],
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT",
            show_default=False,
            help="Text to continue; - or a pipe reads stdin. An empty prompt starts from "
            "end-of-text. With --serve, a second run, to compare.",
        ),
    ] = None,
    interactive: Annotated[
        bool, flag("-i", "Start an interactive session with a history of prompts.")
    ] = False,
    instruction: Annotated[
        str | None,
        value("Task description to put before the examples.", "TEXT", PROMPTS, False),
    ] = None,
    example: Annotated[
        list[str] | None,
        value(
            "Solved example of the task; repeat the option for several.",
            *("TEXT", PROMPTS, False),
        ),
    ] = None,
    title: Annotated[
        str | None, value("Title of a news article to write.", "TEXT", PROMPTS, False)
    ] = None,
    subtitle: Annotated[
        str | None, value("Subtitle of a news article to write.", "TEXT", PROMPTS, False)
    ] = None,
    article: Annotated[
        list[Path] | None,
        value(
            "Text file with an example article that begins with its title; separate several "
            "with commas. GPT-3 uses three.",
            *("FILE", PROMPTS, False),
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        value(
            'File of prompts, one JSON object per line: {"prompt": "..."}; needs -o.',
            *("FILE.jsonl", PROMPTS, False),
        ),
    ] = None,
    output: Annotated[
        Path | None,
        out("File to write the samples of --prompts to, one JSON object per line.", shown=False),
    ] = None,
    resume: Annotated[
        bool, flag("--resume", "Continue an unfinished output file.", OUTPUT)
    ] = False,
    force: Annotated[
        bool, flag("--force", "Start over and replace the output file.", OUTPUT)
    ] = False,
    as_json: Annotated[bool, shared("json", OUTPUT)] = False,
    draft: Annotated[
        Path | None,
        value(
            "Smaller run with the same tokenizer for speculative decoding; the distribution of "
            "the text does not change.",
            *("RUN", MACHINE, False),
            parser=model_path,
        ),
    ] = None,
    config: Annotated[Path | None, shared("config", None, False)] = None,
    serve: ServeFlag = False,
    host: Host = None,
    port: Port = None,
    api_key: ApiKey = None,
    **options: Any,
) -> None:
    """Continue a prompt with a trained model, and stream the text.

    The prompt is printed too, and a line of dashes separates samples.

    The last newline of a prompt from stdin is removed. When the text exceeds the model's context,
    generation continues from its last half.

    Examples:

        gpt sample runs/350M "Once upon a time" --max-tokens 100

        gpt sample runs/350M --preset gpt3 "The meaning of life is"

        gpt sample runs/350M --serve
    """
    # 2 MB pages for weights and cache, which are read 10 % faster
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if prompt is not None and not run.exists() and os.path.isdir(prompt) and not serve:  # noqa: PTH112
        line = shlex.join(["gpt", "sample", prompt, str(run)])
        raise UsageError("the run comes before the prompt", where=run, hint=line)
    check_exists(run)
    from gptcli.sampling.batch import PromptParts
    from gptcli.sampling.params import sampling_params

    values = resolve(options, config)
    used = {
        "--beam": "beam" in values,
        "--best-of": "best_of" in values,
        "--draft": draft is not None,
        "--prompts": prompts is not None,
        "-i": interactive,
        "--json": as_json,
    }
    server = ServerOptions(host, port, api_key)
    if serve:
        if config is not None:
            server.refuse(read_config(config, readers(OPTIONS), "gpt sample"), config)
        server.start(run, prompt, values)
        return
    server.require_serve()
    if options["batch_size"] is not None and prompts is None:
        raise UsageError(
            "--batch-size needs --prompts or --serve",
            hint="the samples of one prompt are generated together: --num-samples",
        )
    params = sampling_params(values)
    check_conflicts({name for name, is_used in used.items() if is_used}, values["num_samples"])
    _check_output(prompts, output, is_used=output is not None or resume or force)
    parts = PromptParts(instruction, example or [], title, subtitle, article or [])
    if prompts is not None and output is not None:
        _sample_file(run, prompts, output, params, values, resume=resume, force=force)
        return
    waits_for_line = interactive and prompt is None and title is None
    text = None if waits_for_line else parts.text(prompt, _read_prompt)
    if prompt is not None and os.path.isfile(prompt):  # noqa: PTH113  a long prompt is no path
        ConsoleEvents().warn(
            f"the prompt is the text {prompt!r} and not the file of this name, which "
            f"gpt sample {run} - < {prompt} would read"
        )
    sampler = _load_sampler(run, draft, params, values)
    if interactive:
        _session(sampler, text, parts, values["seed"])
    else:
        _sample_prompt(run, sampler, text or "", values, as_json=as_json)


def resolve(options: Mapping[str, Any], config: Path | None) -> dict[str, Any]:
    """Return the values of the options: option over file over preset over default.

    Raises UsageError for an unknown preset or an empty --stop.
    """
    from gptcli.sampling.params import PRESETS

    from_file = {} if config is None else read_config(config, readers(OPTIONS), "gpt sample")
    given = read_options(OPTIONS, options)
    preset = given.pop("preset", None) or from_file.pop("preset", None)
    if preset is not None and preset not in PRESETS:
        raise UsageError(
            f"unknown preset {preset!r}", where="--preset", hint=nearest(preset, PRESETS)
        )
    resolved = Resolved()
    resolved.put(DEFAULTS, "default")
    resolved.put(PRESETS[preset] if preset else {}, "preset")
    resolved.put(from_file, str(config))
    resolved.put(given, "option")
    if "" in resolved.values["stop"]:
        raise UsageError(
            "--stop is empty, and every text begins with the empty text",
            hint=r"for the end of a line: --stop $'\n'",
        )
    return resolved.values


def check_conflicts(used: set[str], num_samples: int) -> None:
    """Raise UsageError if two of the `used` options cannot be combined."""
    for first, second in CONFLICTS:
        if first in used and second in used:
            raise UsageError(
                f"{first} cannot be combined with {second}", hint="leave out one of them"
            )
    for name in ("--beam", "--best-of") if num_samples > 1 else ():
        if name in used:
            raise UsageError(
                f"{name} cannot be combined with --num-samples {num_samples}",
                hint="leave out one of them",
            )


def _check_output(prompts: Path | None, output: Path | None, *, is_used: bool) -> None:
    if prompts is not None and output is None:
        raise UsageError(
            "--prompts needs an output file", hint="name one, for example -o samples.jsonl"
        )
    if prompts is None and is_used:
        raise UsageError(
            "-o, --resume and --force need --prompts", hint="redirect stdout to keep a sample"
        )


def _read_prompt(prompt: str | None) -> str:
    """Return the prompt, or the text of stdin if it is piped. Raises InputError if not UTF-8."""
    if prompt is not None and prompt != "-":
        # Python passes bytes of the command line that the locale does not know as surrogates: those
        # that are not UTF-8, and in the C locale those that are not ASCII.
        if any("\udc80" <= char <= "\udcff" for char in prompt):
            try:
                return os.fsencode(prompt).decode()
            except UnicodeError:
                raise InputError(
                    "the prompt is not valid UTF-8",
                    hint="type it in a terminal that uses UTF-8, or pipe it to stdin",
                ) from None
        return prompt
    if prompt is None and sys.stdin.isatty():
        return ""
    return decode(sys.stdin.buffer.read(), "stdin").removesuffix("\n")


def _ended_early(completions: list[Completion], values: dict[str, Any]) -> str:
    """Return a line on samples that end-of-text made much shorter than asked for, or ""."""
    longest = max(len(one.tokens) for one in completions)
    if values["stop"] or longest >= min(EARLY_TOKENS, values["max_tokens"]):
        return ""
    return (
        f"ended after {counted(longest, 'token')}: the model predicted end-of-text, as after each "
        "document it was trained on\n"
        "--num-samples 5 gives more texts; longer ones need longer training documents than paragraphs"
    )


def _load_sampler(
    run: Path, draft: Path | None, params: SamplingParams, values: dict[str, Any]
) -> Sampler:
    """Load the model and the draft model. Raises InputError if their tokenizers differ."""
    from gptcli.sampling.load import load
    from gptcli.sampling.sampler import Sampler, load_draft

    events = ConsoleEvents()
    loaded = load(run, **load_options(values), events=events)
    machine = {name: values[name] for name in ("device", "precision")}
    return Sampler(
        loaded=loaded,
        params=params,
        draft=None if draft is None else load_draft(draft, loaded, **machine, events=events),
        max_tokens=values["max_tokens"],
        num_samples=values["num_samples"],
        stops=values["stop"],
        beam=values.get("beam"),
        best_of=values.get("best_of"),
    )


def _sample_prompt(
    run: Path, sampler: Sampler, text: str, values: dict[str, Any], *, as_json: bool
) -> None:
    """Print the samples of one prompt, as text or as one JSON object."""
    from gptcli.sampling.generate import encode_prompt

    loaded = sampler.loaded
    tokens, n_ctx = encode_prompt(loaded.tokenizer, text), loaded.model.config.n_ctx
    if len(tokens) > n_ctx:
        ConsoleEvents().warn(
            f"the prompt has {counted(len(tokens), 'token')}: the model reads the last {n_ctx:,}"
        )
    # after an interrupt, the shell's prompt begins on a new line
    with Cleanup(write, 1, "" if as_json else "\n"):
        completions = sampler.sample(
            text, seed=values["seed"], on_text=None if as_json else print_piece
        )
    if not as_json:
        if line := _ended_early(completions, values):
            ConsoleEvents().info(line)
        return
    settings = {name: values.get(name) for name in ("stop", "seed", "quantize")}
    report = {"model": str(run), **sampler.report(text, completions, settings)}
    print_json("sample", report)


def _sample_file(
    run: Path,
    prompts: Path,
    out: Path,
    params: SamplingParams,
    values: dict[str, Any],
    *,
    resume: bool,
    force: bool,
) -> None:
    """Write the samples of a file of prompts."""
    from gptcli.sampling.batch import BatchJob, sample_file

    if resume and force:
        raise UsageError("--resume cannot be combined with --force", hint="choose one")
    job = BatchJob(
        params=params,
        max_tokens=values["max_tokens"],
        num_samples=values["num_samples"],
        stops=tuple(values["stop"]),
        seed=values["seed"],
        batch_size=values.get("batch_size", BATCH_SIZE),
    )
    sample_file(
        run,
        prompts,
        job,
        out,
        **load_options(values),
        resume=resume,
        force=force,
        events=ConsoleEvents(),
    )


def _session(sampler: Sampler, text: str | None, parts: PromptParts, seed: int) -> None:
    """Sample prompt after prompt, `text` first, until the end of stdin.

    Ctrl-C stops a sample; at the prompt it ends the session.
    """
    with contextlib.suppress(ImportError):  # missing on Windows, where lines have no history
        import readline  # noqa: F401  # gives input() history and editing

    from gptcli.sampling.batch import few_shot_prompt

    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print(
            "Type a prompt and Enter; Ctrl-C stops a sample, Ctrl-D ends the session.",
            file=sys.stderr,
        )
    number = 0
    with terminal_restored(), Raise("the token under way") as interrupt:
        while True:
            try:
                if text is None:
                    line = _read_prompt(input("> " if is_terminal else ""))
                    text = few_shot_prompt(parts.instruction, parts.examples, line)
                # a repeated prompt gets another sample
                sampler.sample(text, seed=seed + number, on_text=print_piece)
                number += 1
            except EOFError:
                return
            except UnicodeDecodeError:
                print("not valid UTF-8: type it again", file=sys.stderr)
            except KeyboardInterrupt:
                interrupt.late = False
                if text is None:
                    if is_terminal:
                        print(file=sys.stderr)
                    raise
            text = None
