"""`gpt sample`: generate text with a trained model, and stream it to stdout."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli.cli import options
from gptcli.cli.command import Command, releasing
from gptcli.cli.console import ConsoleEvents, print_json
from gptcli.cli.options import MACHINE, OUTPUT, flag, option, quantity, read_config, shared, value
from gptcli.encodings import decode
from gptcli.errors import InputError, UsageError, nearest
from gptcli.files import read_text
from gptcli.interrupts import Cleanup, Raise, write
from gptcli.settings import NUMBERS, Resolved, boolean

if TYPE_CHECKING:
    from gptcli.sampling.params import SamplingParams
    from gptcli.sampling.sampler import Sampler

CHOOSING, PROMPTS = "Choosing tokens", "Prompts"
TOP_K = 40  # GPT-2's release
DEFAULTS: dict[str, Any] = {
    "num_samples": 1,
    "max_tokens": 200,
    "seed": 0,
    "device": "auto",
    "precision": "auto",
    "quantize": "none",
    "batch_size": 8,
    "stop": [],
    "greedy": False,
}
# pairs of options that cannot be combined
CONFLICTS = (
    ("--beam", "--best-of"),
    ("--beam", "--draft"),
    ("--beam", "--prompts"),
    ("--best-of", "--draft"),
    ("--best-of", "--prompts"),
    ("--draft", "--prompts"),
    ("-i", "--prompts"),
    ("-i", "--json"),
    ("--prompts", "--json"),
)
# control characters, which a terminal would obey, as Unicode's symbols for them
CONTROLS = (
    {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"}
    | {0x7F: 0x2421}
    | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
)


def register(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command("sample", cls=Command)(releasing(sample))


def sample(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="Run folder, or a transformers GPT-2 folder with its tokenizer.json.",
        ),
    ],
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT",
            show_default=False,
            help="Text to continue; - or a pipe reads stdin. An empty prompt starts from end-of-text.",
        ),
    ] = None,
    checkpoint: Annotated[
        int | None,
        shared("checkpoint", None, "the finished model, or the newest checkpoint", numeric=True),
    ] = None,
    num_samples: Annotated[
        int | None,
        quantity(
            "num_samples",
            "Number of samples; their number does not change their text.",
            shown="1",
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        quantity(
            "max_tokens",
            "Maximum length of a sample, in tokens; it ends earlier at end-of-text.",
            shown="200",
        ),
    ] = None,
    stop: Annotated[
        list[str] | None,
        value(
            "Text that ends a sample and is left out of it; repeat the option for several.",
            *("TEXT", None, False),
        ),
    ] = None,
    seed: Annotated[
        int | None, options.seed("Random seed; the same seed gives the same text.")
    ] = None,
    interactive: Annotated[
        bool, flag("-i", "Start an interactive session with a history of prompts.")
    ] = False,
    preset: Annotated[
        str | None,
        value(
            "Sampling options of a paper: gpt2 or gpt3 (their released samples), or news "
            "(GPT-3's articles).",
            *("NAME", CHOOSING, False),
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        quantity(
            "temperature",
            "Sampling temperature: text is more predictable below 1 and more varied above it.",
            *(CHOOSING, "1"),
            metavar="X",
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        quantity(
            "top_k",
            "Sample only from the N most probable tokens.",
            *(CHOOSING, f"{TOP_K}, or all with --top-p"),
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        quantity(
            "top_p",
            "Sample only from the fewest tokens whose probabilities add up to P.",
            *(CHOOSING, False),
            metavar="P",
        ),
    ] = None,
    greedy: Annotated[
        bool | None,
        typer.Option(
            "--greedy",
            help="Always take the most probable token.",
            show_default=False,
            rich_help_panel=CHOOSING,
        ),
    ] = None,
    repetition_penalty: Annotated[
        float | None,
        quantity(
            "repetition_penalty",
            "Penalty on tokens that are already in the text; above 1 discourages them.",
            *(CHOOSING, False),
            metavar="X",
        ),
    ] = None,
    beam: Annotated[
        int | None,
        quantity(
            "beam",
            "Beam search of width N with GPT-3's length penalty; GPT-3 uses 4.",
            *(CHOOSING, False),
        ),
    ] = None,
    best_of: Annotated[
        int | None,
        quantity(
            "best_of",
            "Draw N samples and show the one with the highest mean log-probability.",
            *(CHOOSING, False),
        ),
    ] = None,
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
        options.out(
            "File to write the samples of --prompts to, one JSON object per line.", shown=False
        ),
    ] = None,
    resume: Annotated[bool, options.resume("Continue an unfinished output file.")] = False,
    force: Annotated[bool, options.force("Start over and replace the output file.")] = False,
    as_json: Annotated[bool, shared("json", OUTPUT)] = False,
    device: Annotated[str | None, shared("device", MACHINE, "auto")] = None,
    precision: Annotated[
        str | None,
        options.precision(
            "fp32, bf16 or auto, which is bf16 on a GPU that supports it; in bf16, a text may "
            "depend on the number of samples",
            *(MACHINE, "auto"),
        ),
    ] = None,
    quantize: Annotated[
        str | None,
        value("Quantization of the weights: none or int8.", "KIND", MACHINE, "none"),
    ] = None,
    draft: Annotated[
        Path | None,
        value(
            "Smaller run with the same tokenizer for speculative decoding; the distribution of "
            "the text does not change.",
            *("RUN", MACHINE, False),
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        quantity("batch_size", "Samples of --prompts to generate at once.", MACHINE, "8"),
    ] = None,
    config: Annotated[Path | None, shared("config", None, False)] = None,
) -> None:
    """Continue a prompt with a trained model, and stream the text.

    The prompt is printed too, and a line of dashes separates samples.

    The last newline of a prompt from stdin is removed. When the text exceeds the model's context,
    the model continues from the last half of it.

    Examples:

        gpt sample runs/350M "Once upon a time" --max-tokens 100

        gpt sample runs/350M --preset gpt3 "The meaning of life is"
    """
    # OpenMP threads spin for about half a millisecond between matrix products. Without spinning a
    # token takes 1.5 times as long; with the default, 30 times as long on a busy machine.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # 2 MB pages for weights and cache, which are read 10 % faster
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if prompt is not None and not run.exists() and Path(prompt).is_dir():
        line = shlex.join(["gpt", "sample", prompt, str(run)])
        raise UsageError("the run comes before the prompt", where=run, hint=line)
    given = {
        "checkpoint": checkpoint,
        "num_samples": num_samples,
        "max_tokens": max_tokens,
        "stop": stop or None,
        "seed": seed,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "greedy": greedy,
        "repetition_penalty": repetition_penalty,
        "beam": beam,
        "best_of": best_of,
        "device": device,
        "precision": precision,
        "quantize": quantize,
        "batch_size": batch_size,
    }
    values = resolve(given, preset, config)
    params = sampling_params(values)
    used = {
        "--beam": "beam" in values,
        "--best-of": "best_of" in values,
        "--draft": draft is not None,
        "--prompts": prompts is not None,
        "-i": interactive,
        "--json": as_json,
    }
    check_conflicts({name for name, is_used in used.items() if is_used}, values["num_samples"])
    _check_output(prompts, output, is_used=output is not None or resume or force)
    parts = PromptParts(prompt, instruction, example or [], title, subtitle, article or [])
    if prompts is not None and output is not None:
        if parts != PromptParts():
            raise UsageError(
                "--prompts cannot be combined with a prompt", hint="leave out one of them"
            )
        _sample_file(run, prompts, output, params, values, resume=resume, force=force)
        return
    waits_for_line = interactive and prompt is None and title is None
    text = None if waits_for_line else parts.text()
    try:
        sampler = _load_sampler(run, draft, params, values)
        if interactive:
            _session(sampler, text, parts, values["seed"])
        else:
            _sample_prompt(run, sampler, text or "", values, as_json=as_json)
    except BrokenPipeError:  # the reader of the pipe has closed it
        # discard what is left in the buffer
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit from None


def resolve(given: dict[str, Any], preset: str | None, config: Path | None) -> dict[str, Any]:
    """Return the values of the options: option over file over preset over default."""
    from gptcli.sampling.params import PRESETS

    readers: dict[str, Any] = {name: NUMBERS[name] for name in given if name in NUMBERS}
    readers |= dict.fromkeys(("preset", "device", "precision", "quantize"), _read_text)
    readers |= {"stop": _read_texts, "greedy": boolean}
    from_file = {} if config is None else read_config(config, readers, "gpt sample")
    preset = preset or from_file.pop("preset", None)
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


def _read_text(value: object) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{value!r} is not a string")
    return value


def _read_texts(value: object) -> list[str]:
    return [_read_text(item) for item in value] if isinstance(value, list) else [_read_text(value)]


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


def sampling_params(values: dict[str, Any]) -> SamplingParams:
    """Return the sampling parameters. Raises UsageError for options that cannot be combined."""
    from gptcli.sampling.params import SamplingParams

    penalty = values.get("repetition_penalty", 1.0)
    if not values["greedy"] and "beam" not in values:
        top_k = values.get("top_k")
        if top_k is None and "top_p" not in values:
            top_k = TOP_K
        return SamplingParams(
            temperature=values.get("temperature", 1.0),
            top_k=top_k,
            top_p=values.get("top_p"),
            repetition_penalty=penalty,
        )
    deterministic = "--greedy" if values["greedy"] else "--beam"
    for name in ("temperature", "top_k", "top_p"):
        if name in values:
            raise UsageError(
                f"{deterministic} cannot be combined with {option(name)}",
                hint=f"leave out {deterministic} to sample, or {option(name)}",
            )
    for name in ("num_samples", "best_of"):
        if values["greedy"] and values.get(name, 1) > 1:
            raise UsageError(
                f"--greedy cannot be combined with {option(name)} {values[name]}",
                hint="all greedy samples have the same text",
            )
    if "beam" in values and (penalty != 1 or values["greedy"] or values["stop"]):
        raise UsageError(
            "--beam uses the model's probabilities unchanged",
            hint="leave out --greedy, --repetition-penalty and --stop",
        )
    return SamplingParams(greedy=True, repetition_penalty=penalty)


@dataclass(frozen=True, slots=True)
class PromptParts:
    """Parts of a prompt as the options give them; `text` assembles them."""

    prompt: str | None = None
    """Prompt as typed; None to read stdin, if it is a pipe."""
    instruction: str | None = None
    """Description of a task."""
    examples: list[str] | tuple[str, ...] = ()
    """Solved examples of the task."""
    title: str | None = None
    """Title of a news article to write."""
    subtitle: str | None = None
    """Subtitle of the article."""
    articles: list[Path] | tuple[Path, ...] = ()
    """Files of example articles."""

    def __post_init__(self) -> None:
        for name in ("examples", "articles"):
            object.__setattr__(self, name, tuple(getattr(self, name)))

    def text(self) -> str:
        """Return the whole prompt. Raises UsageError for parts that cannot be combined."""
        if self.title is None:
            if self.subtitle is not None or self.articles:
                raise UsageError(
                    "--subtitle and --article need --title",
                    hint='name the article to write with --title "..."',
                )
            return self.few_shot_text(_read_prompt(self.prompt))
        if self.prompt is not None or self.instruction or self.examples:
            raise UsageError(
                "--title cannot be combined with a prompt",
                hint="an article is written from its title and subtitle alone",
            )
        from gptcli.sampling.generate import news_prompt

        articles = [read_text(path) for path in self.articles]
        return news_prompt(self.title, self.subtitle or "", articles)

    def few_shot_text(self, prompt: str) -> str:
        """Return `prompt` after the instruction and the examples."""
        from gptcli.sampling.generate import few_shot_prompt

        return few_shot_prompt(self.instruction, self.examples, prompt)


def _read_prompt(prompt: str | None) -> str:
    """Return the prompt, or the text of stdin if it is piped. Raises InputError if not UTF-8."""
    if prompt is not None and prompt != "-":
        # Python passes bytes of the command line that are not UTF-8 as surrogates
        if any("\udc80" <= char <= "\udcff" for char in prompt):
            raise InputError(
                "the prompt is not valid UTF-8",
                hint="type it in a terminal that uses UTF-8, or pipe it to stdin",
            )
        return prompt
    if prompt is None and sys.stdin.isatty():
        return ""
    return decode(sys.stdin.buffer.read(), "stdin").removesuffix("\n")


def _load_sampler(
    run: Path, draft: Path | None, params: SamplingParams, values: dict[str, Any]
) -> Sampler:
    """Load the model and the draft model. Raises InputError if their tokenizers differ."""
    from gptcli.sampling.load import load
    from gptcli.sampling.sampler import Sampler, load_draft

    events = ConsoleEvents()
    loaded = load(run, **_load_options(values), events=events)
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


def _load_options(values: dict[str, Any]) -> dict[str, Any]:
    return {
        "checkpoint": values.get("checkpoint"),
        **{name: values[name] for name in ("device", "precision", "quantize")},
    }


def _sample_prompt(
    run: Path, sampler: Sampler, text: str, values: dict[str, Any], *, as_json: bool
) -> None:
    """Print the samples of one prompt, as text or as one JSON object."""
    from gptcli.sampling.generate import encode_prompt

    loaded = sampler.loaded
    tokens, n_ctx = encode_prompt(loaded.tokenizer, text), loaded.model.config.n_ctx
    if len(tokens) > n_ctx:
        ConsoleEvents().warn(
            f"the prompt has {len(tokens):,} tokens: the model reads the last {n_ctx:,}"
        )
    # after an interrupt, the shell's prompt begins on a new line
    with Cleanup(write, 1, "" if as_json else "\n"):
        completions = sampler.sample(
            text, seed=values["seed"], on_text=None if as_json else _print_text
        )
    if not as_json:
        return
    report = {
        "model": str(run),
        "step": loaded.source.step,
        "prompt": text,
        "prompt_tokens": tokens,
        **asdict(sampler.params),
    }
    for name in ("max_tokens", "stop", "seed", "beam", "best_of", "quantize"):
        report[name] = values.get(name)
    report |= {"device": loaded.device.type, "precision": loaded.precision}
    report["samples"] = [
        asdict(one)
        | {"mean_log_prob": one.mean_log_prob, "tokens_per_second": one.tokens_per_second}
        for one in completions
    ]
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
        batch_size=values["batch_size"],
    )
    sample_file(
        run,
        prompts,
        job,
        out,
        **_load_options(values),
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

    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print(
            "Type a prompt and Enter; Ctrl-C stops a sample, Ctrl-D ends the session.",
            file=sys.stderr,
        )
    number = 0
    with _terminal_restored(), Raise("the token under way") as interrupt:
        while True:
            try:
                if text is None:
                    line = _read_prompt(input("> " if is_terminal else ""))
                    text = parts.few_shot_text(line)
                # a repeated prompt gets another sample
                sampler.sample(text, seed=seed + number, on_text=_print_text)
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


@contextlib.contextmanager
def _terminal_restored() -> Iterator[None]:
    """Restore the terminal's echo and line editing, which readline changes while it waits."""
    if os.name != "posix" or not sys.stdin.isatty():
        yield
        return
    import termios

    with Cleanup(termios.tcsetattr, 0, termios.TCSANOW, termios.tcgetattr(0)):
        yield


def _print_text(piece: str) -> None:
    """Write text to stdout at once, in UTF-8 whatever the locale."""
    if sys.stdout.isatty():
        piece = piece.translate(CONTROLS)
    sys.stdout.buffer.write(piece.encode("utf-8"))
    sys.stdout.buffer.flush()
