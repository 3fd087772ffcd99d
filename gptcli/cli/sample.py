"""`gpt sample`: text from a model, as it comes."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli.cli.command import Command
from gptcli.cli.config import number
from gptcli.cli.console import ConsoleEvents, print_json
from gptcli.cli.ownership import hold, releasing
from gptcli.cli.sample_options import TOP_K, framed, refuse_contradictions, rules_of, settings
from gptcli.errors import InputError, UsageError
from gptcli.interrupts import Cleanup, Raise, write

if TYPE_CHECKING:
    from gptcli.sampling.load import Loaded
    from gptcli.sampling.params import SamplingParams
    from gptcli.sampling.streaming import Completion

SEPARATOR = "-" * 15
TOGETHER = 16  # samples of one prompt made at once
CHOOSING, PROMPTS, MACHINE, OUTPUT = "Choosing tokens", "Prompts", "Machine", "Output"
# What a model may spell but a terminal would obey, shown as Unicode's pictures of them; tab and
# newline stay.
CONTROLS = (
    {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"}
    | {0x7F: 0x2421}
    | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
)


def register(app: typer.Typer) -> None:
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
            help="Text to continue; - or a pipe is stdin. Empty or none starts from end-of-text, as GPT-2 does.",
            show_default=False,
        ),
    ] = None,
    checkpoint: Annotated[
        int | None,
        typer.Option(
            parser=number("checkpoint"),
            metavar="N",
            help="Read the run's checkpoint of this step.",
            show_default="the finished model, or the newest checkpoint",
        ),
    ] = None,
    num_samples: Annotated[
        int | None,
        typer.Option(
            parser=number("num_samples"),
            metavar="N",
            help="Number of samples; each is the same however many are drawn.",
            show_default="1",
        ),
    ] = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            parser=number("max_tokens"),
            help="Longest sample, in tokens; end-of-text ends it sooner.",
            metavar="N",
            show_default="200",
        ),
    ] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="Text that ends a sample and is left out of it; repeat the option for several.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            parser=number("seed"),
            metavar="N",
            help="Random seed; the same seed gives the same text.",
            show_default="0",
        ),
    ] = None,
    interactive: Annotated[
        bool, typer.Option("-i", help="Start a session: prompt after prompt, with history.")
    ] = False,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Sampling settings of a paper: gpt2, gpt3 (their released samples) or news (GPT-3's articles).",
            show_default=False,
            rich_help_panel=CHOOSING,
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(
            parser=number("temperature"),
            metavar="X",
            help="Sampling temperature: below 1 text is more predictable, above 1 more varied.",
            show_default="1",
            rich_help_panel=CHOOSING,
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            parser=number("top_k"),
            metavar="N",
            help="Sample from the k most probable tokens.",
            show_default=f"{TOP_K}, or all with --top-p",
            rich_help_panel=CHOOSING,
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            parser=number("top_p"),
            metavar="P",
            help="Sample from the fewest tokens whose probabilities add up to P.",
            show_default=False,
            rich_help_panel=CHOOSING,
        ),
    ] = None,
    greedy: Annotated[
        bool | None,
        typer.Option(
            "--greedy",
            help="Take the most probable token every time.",
            show_default=False,
            rich_help_panel=CHOOSING,
        ),
    ] = None,
    repetition_penalty: Annotated[
        float | None,
        typer.Option(
            parser=number("repetition_penalty"),
            metavar="X",
            help="Penalty on tokens that the text already holds; above 1 discourages them.",
            show_default=False,
            rich_help_panel=CHOOSING,
        ),
    ] = None,
    beam: Annotated[
        int | None,
        typer.Option(
            parser=number("beam"),
            metavar="N",
            help="Beam search of this width, with GPT-3's length penalty; GPT-3 uses 4.",
            show_default=False,
            rich_help_panel=CHOOSING,
        ),
    ] = None,
    best_of: Annotated[
        int | None,
        typer.Option(
            parser=number("best_of"),
            metavar="N",
            help="Draw N samples and show the one with the highest mean log-probability.",
            show_default=False,
            rich_help_panel=CHOOSING,
        ),
    ] = None,
    instruction: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Description of the task, put before the examples.",
            show_default=False,
            rich_help_panel=PROMPTS,
        ),
    ] = None,
    example: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="Solved example of the task; repeat the option for several.",
            show_default=False,
            rich_help_panel=PROMPTS,
        ),
    ] = None,
    title: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Title of the news article to write.",
            show_default=False,
            rich_help_panel=PROMPTS,
        ),
    ] = None,
    subtitle: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Subtitle of the news article to write.",
            show_default=False,
            rich_help_panel=PROMPTS,
        ),
    ] = None,
    article: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="File with an earlier article, its title first; several with commas. GPT-3 uses three.",
            show_default=False,
            rich_help_panel=PROMPTS,
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help='File of prompts, one JSON object a line: {"prompt": "..."}; needs -o.',
            show_default=False,
            rich_help_panel=PROMPTS,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "--output",
            "-o",
            metavar="FILE",
            help="File for the answers to --prompts, one JSON object a line.",
            show_default=False,
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue an unfinished file of answers.", rich_help_panel=OUTPUT
        ),
    ] = False,
    force: Annotated[
        bool,
        typer.Option("--force", help="Start over and replace the output.", rich_help_panel=OUTPUT),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="Print a report as one JSON object on stdout.", rich_help_panel=OUTPUT
        ),
    ] = False,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Device to run on: auto, cpu, cuda or cuda:1.",
            show_default="auto",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="Precision: auto, fp32 or bf16. auto is bf16 on a GPU that has it, where a text may depend on how many are made at once.",
            show_default="auto",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="Weights to quantize: none, or int8 for 8 bits.",
            show_default="none",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    draft: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="Smaller run with the same tokenizer that drafts tokens; the distribution of the text stays the same.",
            show_default=False,
            rich_help_panel=MACHINE,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            parser=number("batch_size"),
            metavar="N",
            help="Samples of --prompts made at once.",
            show_default="8",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="TOML file with any of these options.", show_default=False
        ),
    ] = None,
) -> None:
    """Continue a prompt with a trained model, streaming the text.

    The prompt is printed too, and a line of dashes stands between samples.

    A prompt from stdin loses its last newline. When the text outgrows the model's context, the
    model goes on from the last half of it.

    Examples:

        gpt sample runs/350M "Once upon a time" --max-tokens 100

        gpt sample runs/350M --preset gpt3 "The meaning of life is"
    """
    # Set before torch loads: threads wait for the next product awake for about half a millisecond,
    # then sleep. Asleep at once, each token takes half as long again; awake for as long as is the
    # default, on a busy machine, 30 times as long.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # weights and cache in pages of 2 MB: read a tenth faster
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if prompt is not None and not run.exists() and Path(prompt).is_dir():
        line = shlex.join(["gpt", "sample", prompt, str(run)])
        raise UsageError("the run comes first, then the prompt", where=run, hint=line)
    options = {
        "checkpoint": checkpoint,
        "num_samples": num_samples, "max_tokens": max_tokens, "stop": stop or None, "seed": seed,
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "greedy": greedy, "repetition_penalty": repetition_penalty,
        "beam": beam, "best_of": best_of, "device": device, "precision": precision, "quantize": quantize, "batch_size": batch_size,
    }  # fmt: skip
    values = settings(options, preset, config)
    rules = rules_of(values)
    refuse_contradictions(
        values,
        prompts=prompts,
        output=output,
        interactive=interactive,
        as_json=as_json,
        draft=draft,
        resume=resume,
        force=force,
    )
    if prompts is not None and output is not None:  # neither comes without the other
        if prompt is not None or instruction or example or title or subtitle or article:
            raise UsageError(
                "--prompts and a prompt contradict each other", hint="leave out one of them"
            )
        _answer(run, prompts, output, rules, values, resume=resume, force=force)
        return
    waits = interactive and prompt is None and title is None  # for the first line of the session
    text = None if waits else framed(prompt, instruction, example, title, subtitle, article)
    try:
        loaded, drafting = _load(run, draft, values)
        if interactive:
            _session(
                loaded,
                drafting,
                rules,
                values,
                text,
                lambda line: framed(line, instruction, example, None, None, None),
            )
        else:
            _sample(run, loaded, drafting, text or "", rules, values, as_json=as_json)
    except BrokenPipeError:  # whoever read this has seen enough
        # what is left in the buffer has nowhere to go
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit from None


def _load(run: Path, draft: Path | None, values: dict[str, Any]) -> tuple[Loaded, Loaded | None]:
    """The model, and the one that drafts for it. Raises InputError where their tokenizers
    differ.
    """
    from gptcli.sampling.load import load

    loaded = load(run, **_reading(values), events=ConsoleEvents())
    drafting = (
        None
        if draft is None
        else load(
            draft, device=values["device"], precision=values["precision"], events=ConsoleEvents()
        )
    )
    if drafting is not None and drafting.tokenizer.sha256 != loaded.tokenizer.sha256:
        raise InputError(
            "the draft run has another tokenizer",
            where=draft,
            hint="a draft must have been trained with the same tokenizer",
        )
    return loaded, drafting


def _reading(values: dict[str, Any]) -> dict[str, Any]:
    """How the model is to be read."""
    return {
        "checkpoint": values.get("checkpoint"),
        **{name: values[name] for name in ("device", "precision", "quantize")},
    }


def _sample(
    run: Path,
    loaded: Loaded,
    drafting: Loaded | None,
    text: str,
    rules: SamplingParams,
    values: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    """The samples of one prompt, as text or as one JSON object."""
    from gptcli.sampling.generate import encode_prompt

    tokens = encode_prompt(loaded.tokenizer, text)
    if len(tokens) > loaded.model.config.n_ctx:
        ConsoleEvents().warn(
            f"the prompt is {len(tokens):,} tokens long: the model reads the last {loaded.model.config.n_ctx:,}"
        )
    # so that the shell's prompt starts a line of its own
    with Cleanup(write, 1, "" if as_json else "\n"):
        made = _write(loaded, tokens, text, rules, values, drafting, quiet=as_json)
    if as_json:
        report = {
            "model": str(run),
            "step": loaded.source.step,
            "prompt": text,
            "prompt_tokens": tokens,
            **asdict(rules),
        }
        report |= {
            name: values.get(name)
            for name in ("max_tokens", "stop", "seed", "beam", "best_of", "quantize")
        }
        report |= {"device": loaded.device.type, "precision": loaded.precision}
        report["samples"] = [
            asdict(one)
            | {"mean_log_prob": one.mean_log_prob, "tokens_per_second": one.tokens_per_second}
            for one in made
        ]
        print_json("sample", report)


def _write(
    loaded: Loaded,
    tokens: list[int],
    text: str,
    rules: SamplingParams,
    values: dict[str, Any],
    drafting: Loaded | None,
    *,
    quiet: bool,
) -> list[Completion]:
    """Make the samples of one prompt and show them, the first as it comes."""
    from gptcli.sampling.beam import generate_by_beam_search
    from gptcli.sampling.generate import TextSequence, generate_sequences, sample_generator
    from gptcli.sampling.speculative import generate_speculatively

    model, longest, best_of = loaded.model, values["max_tokens"], values.get("best_of")
    show = _hide if quiet else _show
    show(text)
    try:
        if "beam" in values:
            found = generate_by_beam_search(
                model, loaded.tokenizer, tokens, max_tokens=longest, width=values["beam"]
            )
            show(found.text)
            return [found]
        live = _hide if best_of else show
        rows = [
            TextSequence(
                loaded.tokenizer,
                tokens,
                max_tokens=longest,
                generator=sample_generator(values["seed"], number),
                stops=values["stop"],
                on_text=_hide if number else live,
            )
            for number in range(best_of or values["num_samples"])
        ]
        log_probs = quiet or best_of is not None
        finished: Iterable[object]
        if drafting is not None:
            finished = (
                generate_speculatively(model, drafting.model, row, rules, log_probs=log_probs)
                for row in rows
            )
        else:
            room = len(tokens) + longest
            finished = generate_sequences(
                model,
                rows,
                rules,
                batch_size=min(len(rows), TOGETHER),
                log_probs=log_probs,
                max_len=room,
            )
        shown = 1  # the first shows itself
        for _ in finished:
            while (
                not best_of
                and shown < len(rows)
                and all(row.finish_reason for row in rows[: shown + 1])
            ):
                show(f"\n{SEPARATOR}\n{text}{rows[shown].completion().text}")
                shown += 1
        made = [row.completion() for row in rows]
        if best_of:
            made = [max(made, key=lambda one: one.mean_log_prob)]
            show(made[0].text)
        return made
    finally:  # on Ctrl-C too, so that the shell's prompt starts a line of its own
        show("\n")


def _answer(
    run: Path,
    prompts: Path,
    out: Path,
    rules: SamplingParams,
    values: dict[str, Any],
    *,
    resume: bool,
    force: bool,
) -> None:
    """Answer a file of prompts."""
    from gptcli.files import claim_file, sha256, written_through
    from gptcli.locks import own_file
    from gptcli.model.source import WEIGHTS
    from gptcli.sampling.batch import BatchJob, generate_file, read_prompts, unfinished_path
    from gptcli.sampling.load import load

    events = ConsoleEvents()
    if resume and force:
        raise UsageError("--resume and --force contradict each other", hint="choose one")
    if written_through(out):
        raise UsageError(
            "is a device or a pipe: what is done of a batch is kept beside its file",
            where=out,
            hint="name a file",
        )
    hold(own_file(out, events=events))
    if out.is_symlink():
        out = Path(os.path.realpath(out))  # what is done of it is kept beside the file itself
    if resume and out.exists():
        events.info(f"{out} is whole: nothing to do")
        return
    claim_file(out, force=force)
    if unfinished_path(out).exists() and not resume:
        if not force:
            raise UsageError(
                "was begun before", where=out, hint="--resume goes on with it, --force starts over"
            )
        unfinished_path(out).unlink()
    texts = read_prompts(prompts)
    loaded = load(run, **_reading(values), events=events)
    job = BatchJob(
        params=rules, max_tokens=values["max_tokens"], num_samples=values["num_samples"], stops=tuple(values["stop"]), seed=values["seed"],
        batch_size=values["batch_size"],
    )  # fmt: skip
    about = {
        "prompts_sha256": sha256(prompts),
        "precision": loaded.precision,
        "quantize": values["quantize"],
        "device": loaded.device.type,
    }
    weights = loaded.source.folder / WEIGHTS
    if loaded.source.digest is not None:
        about |= {"step": loaded.source.step, "weights_sha256": loaded.source.digest}
    else:
        about["weights_sha256"] = sha256(weights) if weights.exists() else str(run)
    generate_file(loaded.model, loaded.tokenizer, texts, job, out, fingerprint=about, events=events)


def _session(
    loaded: Loaded,
    drafting: Loaded | None,
    rules: SamplingParams,
    values: dict[str, Any],
    text: str | None,
    shape: Callable[[str], str],
) -> None:
    """Prompt after prompt, each on its own in the `shape` asked for, `text` first; Ctrl-C stops a
    sample, and at the prompt the session.
    """
    from gptcli.sampling.generate import encode_prompt

    with contextlib.suppress(ImportError):  # not on Windows: then lines have no history
        import readline  # noqa: F401  # importing it gives input() its history and editing

    typing = sys.stdin.isatty()
    if typing:
        print(
            "A prompt and Enter; Ctrl-C stops a sample, Ctrl-D ends the session.", file=sys.stderr
        )
    number = 0
    with _terminal_restored(), Raise("the token under way") as interrupt:
        while True:
            try:
                if text is None:
                    text = shape(input("> " if typing else ""))
                # asked twice, a prompt gets two answers
                chance = values | {"seed": values["seed"] + number}
                _write(
                    loaded,
                    encode_prompt(loaded.tokenizer, text),
                    text,
                    rules,
                    chance,
                    drafting,
                    quiet=False,
                )
                number += 1
            except EOFError:
                return
            except UnicodeDecodeError:
                print("not valid UTF-8: type it again", file=sys.stderr)
            except KeyboardInterrupt:
                interrupt.late = False
                if text is None:
                    if typing:
                        print(file=sys.stderr)
                    raise
            text = None


@contextlib.contextmanager
def _terminal_restored() -> Iterator[None]:
    """readline takes the terminal's echo and line editing while it waits; if the program ends
    there, they come back.
    """
    if os.name != "posix" or not sys.stdin.isatty():
        yield
        return
    import termios

    with Cleanup(termios.tcsetattr, 0, termios.TCSANOW, termios.tcgetattr(0)):
        yield


def _show(piece: str) -> None:
    """Write text to stdout at once, in UTF-8 whatever the locale."""
    if sys.stdout.isatty():
        piece = piece.translate(CONTROLS)
    sys.stdout.buffer.write(piece.encode("utf-8"))
    sys.stdout.buffer.flush()


def _hide(piece: str) -> None:
    """The sample is shown later, whole."""
