"""`gpt sample`: text from a model, as it comes."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli.cli.config import Resolved, count, quantity, read_config
from gptcli.cli.console import ConsoleEvents, print_json
from gptcli.errors import InputError, UsageError, nearest

if TYPE_CHECKING:
    from gptcli.sampling.filters import Rules
    from gptcli.sampling.loading import Loaded
    from gptcli.sampling.text import Completion

SEPARATOR = "-" * 15
TOP_K = 40  # GPT-2's release
TOGETHER = 16  # samples of one prompt made at once
CHOOSING, PROMPTS, MACHINE, OUTPUT = "Choosing tokens", "Prompts", "Machine", "Output"
DEFAULTS: dict[str, Any] = {
    "num_samples": 1, "max_tokens": 200, "seed": 0, "device": "auto", "precision": "auto", "quantize": "none", "batch_size": 8, "stop": [],
    "greedy": False,
}  # fmt: skip
# What a model may spell but a terminal would obey, shown as Unicode's pictures of them; tab and newline stay.
CONTROLS = (
    {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"} | {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
)


def register(app: typer.Typer) -> None:
    app.command(name="sample")(sample)


def sample(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, or a transformers GPT-2 folder with its tokenizer.json.")],
    prompt: Annotated[
        str | None,
        typer.Argument(
            help="What to continue; - or a pipe is stdin. Empty or none: from end-of-text, as GPT-2 starts.", show_default=False
        ),
    ] = None,
    num_samples: Annotated[
        int | None, typer.Option(help="Samples; number i is the same text however many are drawn.", show_default="1")
    ] = None,
    max_tokens: Annotated[
        str | None, typer.Option(help="Longest sample, in tokens; end-of-text ends it sooner.", metavar="N", show_default="200")
    ] = None,
    stop: Annotated[
        list[str] | None, typer.Option(help="Text that ends a sample, and is left out; may be given again.", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Chance: the same seed, the same text.", show_default="0")] = None,
    interactive: Annotated[bool, typer.Option("-i", help="A session: prompt after prompt, with history.")] = False,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Settings of a paper: gpt2, gpt3 (their released samples), news (GPT-3's articles).",
            show_default=False,
            rich_help_panel=CHOOSING,
        ),
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option(help="Divides the logits: below 1 surer, above 1 more varied.", show_default="1", rich_help_panel=CHOOSING),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(help="Draw among the k likeliest tokens.", show_default=f"{TOP_K}, or all with --top-p", rich_help_panel=CHOOSING),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Draw among the fewest tokens that hold this probability together.", show_default=False, rich_help_panel=CHOOSING
        ),
    ] = None,
    greedy: Annotated[
        bool | None, typer.Option("--greedy", help="Always the likeliest token.", show_default=False, rich_help_panel=CHOOSING)
    ] = None,
    repetition_penalty: Annotated[
        float | None,
        typer.Option(help="Above 1: discourage tokens that the text holds already.", show_default=False, rich_help_panel=CHOOSING),
    ] = None,
    beam: Annotated[
        int | None,
        typer.Option(
            help="Beam search of this width, with GPT-3's length penalty; GPT-3 takes 4.", show_default=False, rich_help_panel=CHOOSING
        ),
    ] = None,
    best_of: Annotated[
        int | None,
        typer.Option(help="Of this many samples, show the likeliest per token.", show_default=False, rich_help_panel=CHOOSING),
    ] = None,
    instruction: Annotated[
        str | None, typer.Option(help="A line before the examples: what the task is.", show_default=False, rich_help_panel=PROMPTS)
    ] = None,
    example: Annotated[
        list[str] | None,
        typer.Option(help="A line that shows the task solved; may be given again.", show_default=False, rich_help_panel=PROMPTS),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Of the article to write.", show_default=False, rich_help_panel=PROMPTS)] = None,
    subtitle: Annotated[str | None, typer.Option(help="Of the article to write.", show_default=False, rich_help_panel=PROMPTS)] = None,
    article: Annotated[
        list[Path] | None,
        typer.Option(
            help="A file with an earlier article, its title first; GPT-3 takes three.", show_default=False, rich_help_panel=PROMPTS
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.jsonl",
            help='Many prompts, a line each: {"prompt": "..."}; needs -o.',
            show_default=False,
            rich_help_panel=PROMPTS,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Where the answers to --prompts go, a line each.", show_default=False, rich_help_panel=OUTPUT),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what is not whole yet.", rich_help_panel=OUTPUT)] = False,
    force: Annotated[bool, typer.Option("--force", help="Start over, and replace the output.", rich_help_panel=OUTPUT)] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on stdout instead of the stream.", rich_help_panel=OUTPUT)
    ] = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1.", show_default="auto", rich_help_panel=MACHINE)] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="auto, fp32 or bf16; auto is bf16 on a GPU that has it.", show_default="auto", rich_help_panel=MACHINE),
    ] = None,
    quantize: Annotated[
        str | None, typer.Option(help="none, or int8: weights in 8 bits.", show_default="none", rich_help_panel=MACHINE)
    ] = None,
    draft: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN",
            help="A smaller run with the same tokenizer, which drafts; the text's distribution stays.",
            show_default=False,
            rich_help_panel=MACHINE,
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Samples of --prompts in work at once.", show_default="8", rich_help_panel=MACHINE)
    ] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE.toml", help="The same names as these options.", show_default=False)] = None,
) -> None:
    """Continue a prompt with a trained model, streaming the text.

    The prompt is printed too, and a line of dashes stands between samples. A prompt from stdin loses its last newline. When the text
    outgrows the model's context, the model goes on from the last half of it.

    Examples:

        gpt sample runs/350M "Once upon a time" --max-tokens 100

        gpt sample runs/350M --instruction "Translate English to French:" --example "sea otter => loutre de mer" "cheese =>" --stop $'\\n'
    """
    # Set before torch loads. Threads that spin between many small products cost 30 times the time of ones that sleep on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    options = {
        "num_samples": num_samples, "max_tokens": None if max_tokens is None else count(max_tokens), "stop": stop or None, "seed": seed,
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "greedy": greedy, "repetition_penalty": repetition_penalty,
        "beam": beam, "best_of": best_of, "device": device, "precision": precision, "quantize": quantize, "batch_size": batch_size,
    }  # fmt: skip
    values = _settings(options, preset, config)
    rules = _rules(values)
    _check(values, prompts=prompts, output=output, interactive=interactive, as_json=as_json, draft=draft, resume=resume, force=force)
    if prompts is not None:
        if prompt is not None or instruction or example or title:
            raise UsageError("--prompts and a prompt contradict each other", hint="leave out one of them")
        _answer(run, prompts, output or Path("-"), rules, values, resume=resume, force=force)
        return
    text = "" if interactive and prompt is None else _framed(prompt, instruction, example, title, subtitle, article)
    try:
        _sample(run, text, rules, values, draft=draft, as_json=as_json, interactive=interactive)
    except BrokenPipeError:  # whoever read this has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left in the buffer has nowhere to go
        raise typer.Exit from None


def _settings(options: dict[str, Any], preset: str | None, config: Path | None) -> dict[str, Any]:
    """Option over file over preset over default."""
    from gptcli.sampling.presets import PRESETS

    whole, number, text = count, quantity, _text
    names = {
        "preset": text, "num_samples": whole, "max_tokens": whole, "stop": _texts, "seed": whole, "temperature": number, "top_k": whole,
        "top_p": number, "greedy": _flag, "repetition_penalty": number, "beam": whole, "best_of": whole, "device": text, "precision": text,
        "quantize": text, "batch_size": whole,
    }  # fmt: skip
    given = {} if config is None else read_config(config, names)
    preset = preset or given.pop("preset", None)
    if preset is not None and preset not in PRESETS:
        raise UsageError(f"unknown preset {preset!r}", where="--preset", hint=nearest(preset, PRESETS))
    resolved = Resolved()
    resolved.put(DEFAULTS, "default")
    resolved.put(PRESETS[preset] if preset else {}, "preset")
    resolved.put(given, str(config))
    resolved.put(options, "option")
    for name in ("num_samples", "max_tokens", "beam", "best_of", "batch_size"):
        if resolved.values.get(name, 1) < 1:
            raise UsageError(f"{name.replace('_', '-')} is {resolved.values[name]}", hint="at least 1")
    return resolved.values


def _check(values: dict[str, Any], **given: Any) -> None:
    """Raise UsageError where options contradict each other."""
    asked = {
        "--beam": values.get("beam"), "--best-of": values.get("best_of"), "--draft": given["draft"], "--prompts": given["prompts"],
        "-i": given["interactive"], "--json": given["as_json"],
    }  # fmt: skip
    several = values["num_samples"] > 1
    for first, second in (
        ("--beam", "--best-of"), ("--beam", "--draft"), ("--beam", "--prompts"), ("--best-of", "--draft"), ("--best-of", "--prompts"),
        ("--draft", "--prompts"), ("-i", "--prompts"), ("-i", "--json"), ("--prompts", "--json"),
    ):  # fmt: skip
        if asked[first] and asked[second]:
            raise UsageError(f"{first} and {second} contradict each other", hint="leave out one of them")
    for option in ("--beam", "--best-of") if several else ():
        if asked[option]:
            raise UsageError(f"--num-samples {values['num_samples']} and {option} contradict each other", hint="leave out one of them")
    if asked["--prompts"] and given["output"] is None:
        raise UsageError("--prompts needs a file for the answers", hint="-o answers.jsonl")
    if not asked["--prompts"] and (given["output"] is not None or given["resume"] or given["force"]):
        raise UsageError("-o, --resume and --force belong to --prompts", hint="redirect stdout to keep a sample")


def _rules(values: dict[str, Any]) -> Rules:
    """The rules these options ask for. Raises UsageError where they contradict each other."""
    from gptcli.sampling.filters import Rules

    penalty = values.get("repetition_penalty", 1.0)
    if values["greedy"] or "beam" in values:
        option = "--greedy" if values["greedy"] else "--beam"
        for name in ("temperature", "top_k", "top_p"):
            if name in values:
                other = f"--{name.replace('_', '-')}"
                raise UsageError(f"{option} and {other} contradict each other", hint=f"leave out {option} to sample, or {other}")
        for name in ("num_samples", "best_of"):
            if values["greedy"] and values.get(name, 1) > 1:
                raise UsageError(
                    f"--{name.replace('_', '-')} {values[name]} and --greedy contradict each other",
                    hint="greedy samples are all the same text",
                )
        if "beam" in values and (penalty != 1 or values["greedy"] or values["stop"]):
            raise UsageError(
                "--beam goes by the model's own probabilities alone", hint="leave out --greedy, --repetition-penalty and --stop"
            )
        return Rules(greedy=True, repetition_penalty=penalty)
    top_k = values.get("top_k")
    if top_k is None and "top_p" not in values:
        top_k = TOP_K
    return Rules(temperature=values.get("temperature", 1.0), top_k=top_k, top_p=values.get("top_p"), repetition_penalty=penalty)


def _framed(
    prompt: str | None,
    instruction: str | None,
    examples: list[str] | None,
    title: str | None,
    subtitle: str | None,
    articles: list[Path] | None,
) -> str:
    """The prompt in the shape that the options ask for. Raises UsageError where they contradict each other."""
    from gptcli.sampling.presets import in_context, news_prompt

    if title is not None:
        if prompt is not None or instruction or examples:
            raise UsageError("--title and a prompt contradict each other", hint="an article starts from its title and subtitle alone")
        return news_prompt(title, subtitle or "", [_read(path) for path in articles or []])
    if subtitle is not None or articles:
        raise UsageError("--subtitle and --article need --title")
    return in_context(instruction, examples or [], _prompt(prompt))


def _sample(run: Path, text: str, rules: Rules, values: dict[str, Any], *, draft: Path | None, as_json: bool, interactive: bool) -> None:
    from gptcli.sampling.loading import load
    from gptcli.sampling.prompts import prompt_tokens

    how = {name: values[name] for name in ("device", "precision", "quantize")}
    loaded = load(run, **how)
    drafting = None if draft is None else load(draft, device=how["device"], precision=how["precision"])
    if drafting is not None and drafting.tokenizer.sha256 != loaded.tokenizer.sha256:
        raise InputError("the draft run has another tokenizer", where=draft, hint="a draft must have been trained with the same tokenizer")
    if interactive:
        _session(loaded, rules, values, drafting, text)
        return
    tokens = prompt_tokens(loaded.tokenizer, text)
    if len(tokens) > loaded.model.config.n_ctx:
        ConsoleEvents().warn(f"the prompt is {len(tokens):,} tokens long: the model reads the last {loaded.model.config.n_ctx:,}")
    made = _write(loaded, tokens, text, rules, values, drafting, quiet=as_json)
    if as_json:
        report = {"model": str(run), "prompt": text, "prompt_tokens": tokens, **asdict(rules)}
        report |= {name: values.get(name) for name in ("max_tokens", "stop", "seed", "beam", "best_of", "quantize")}
        report |= {"device": loaded.device.type, "precision": loaded.precision}
        report["samples"] = [asdict(one) | {"mean_log_prob": one.mean_log_prob, "tokens_per_second": one.tokens_per_second} for one in made]
        print_json("sample", report)


def _write(
    loaded: Loaded, tokens: list[int], text: str, rules: Rules, values: dict[str, Any], drafting: Loaded | None, *, quiet: bool
) -> list[Completion]:
    """Make the samples of one prompt and show them, the first as it comes."""
    from gptcli.sampling.decode import decode, sample_generator
    from gptcli.sampling.speculative import speculate
    from gptcli.sampling.text import TextRow, search

    model, longest, best_of = loaded.model, values["max_tokens"], values.get("best_of")
    show = _hide if quiet else _show
    show(text)
    try:
        if "beam" in values:
            made = search(model, loaded.tokenizer, tokens, max_tokens=longest, width=values["beam"])
            show(made.text)
            return [made]
        live = _hide if best_of else show
        rows = [
            TextRow(
                loaded.tokenizer,
                tokens,
                max_tokens=longest,
                generator=sample_generator(values["seed"], number),
                stops=values["stop"],
                show=_hide if number else live,
            )
            for number in range(best_of or values["num_samples"])
        ]
        log_probs = quiet or best_of is not None
        if drafting is not None:
            finished = (speculate(model, drafting.model, row, rules, log_probs=log_probs) for row in rows)
        else:
            room = len(tokens) + longest
            finished = decode(model, rows, rules, batch=min(len(rows), TOGETHER), log_probs=log_probs, room=room)
        shown = 1  # the first shows itself
        for _ in finished:
            while not best_of and shown < len(rows) and all(row.finish_reason for row in rows[: shown + 1]):
                show(f"\n{SEPARATOR}\n{text}{rows[shown].completion().text}")
                shown += 1
        made = [row.completion() for row in rows]
        if best_of:
            made = [max(made, key=lambda one: one.mean_log_prob)]
            show(made[0].text)
        return made
    finally:  # on Ctrl-C too, so that the shell's prompt starts a line of its own
        show("\n")


def _answer(run: Path, prompts: Path, out: Path, rules: Rules, values: dict[str, Any], *, resume: bool, force: bool) -> None:
    """Answer a file of prompts."""
    from gptcli.files import claim_file, sha256
    from gptcli.model.weights import WEIGHTS
    from gptcli.sampling.loading import load
    from gptcli.sampling.prompts import Job, answer, read_prompts, unfinished_of

    events = ConsoleEvents()
    if resume and force:
        raise UsageError("--resume and --force contradict each other", hint="choose one")
    if resume and out.exists():
        events.info(f"{out} is whole: nothing to do")
        return
    claim_file(out, force=force)
    if unfinished_of(out).exists() and not resume:
        if not force:
            raise UsageError("was begun before", where=out, hint="--resume goes on with it, --force starts over")
        unfinished_of(out).unlink()
    texts = read_prompts(prompts)
    loaded = load(run, **{name: values[name] for name in ("device", "precision", "quantize")})
    job = Job(
        rules=rules, max_tokens=values["max_tokens"], num_samples=values["num_samples"], stops=tuple(values["stop"]), seed=values["seed"],
        batch=values["batch_size"],
    )  # fmt: skip
    about = {"prompts_sha256": sha256(prompts), "precision": loaded.precision, "quantize": values["quantize"], "device": loaded.device.type}
    weights = run / WEIGHTS
    about["weights_sha256"] = sha256(weights) if weights.exists() else str(run)
    answer(loaded.model, loaded.tokenizer, texts, job, out, about=about, events=events)


def _session(loaded: Loaded, rules: Rules, values: dict[str, Any], drafting: Loaded | None, text: str) -> None:
    """Prompt after prompt, each on its own, until the input ends; Ctrl-C stops a sample, and at the prompt the session."""
    from gptcli.sampling.prompts import prompt_tokens

    with contextlib.suppress(ImportError):  # not on Windows: then lines have no history
        import readline  # noqa: F401  # importing it gives input() its history and editing

    typing = sys.stdin.isatty()
    if typing:
        print("A prompt and Enter; Ctrl-C stops a sample, Ctrl-D ends the session.", file=sys.stderr)
    number = 0
    while True:
        try:
            if not text:
                text = input("> " if typing else "")
            chance = values | {"seed": values["seed"] + number}  # asked twice, a prompt gets two answers
            _write(loaded, prompt_tokens(loaded.tokenizer, text), text, rules, chance, drafting, quiet=False)
            number += 1
        except EOFError:
            return
        except UnicodeDecodeError:
            print("not valid UTF-8: type it again", file=sys.stderr)
        except KeyboardInterrupt:
            if not text:
                raise
        text = ""


def _prompt(prompt: str | None) -> str:
    """The prompt given, or stdin's text where it is piped. Raises InputError where that is not UTF-8."""
    if prompt is not None and prompt != "-":
        return prompt
    if prompt is None and sys.stdin.isatty():
        return ""
    try:
        return sys.stdin.buffer.read().decode("utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"not valid UTF-8 at byte {error.start}", where="stdin") from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError("no such file", where=path) from None
    except UnicodeDecodeError as error:
        raise InputError(f"not valid UTF-8 at byte {error.start}", where=path) from None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{value!r} is not a text")
    return value


def _texts(value: object) -> list[str]:
    return [_text(item) for item in value] if isinstance(value, list) else [_text(value)]


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{value!r} is neither true nor false")
    return value


def _show(piece: str) -> None:
    """Write text to stdout at once, in UTF-8 whatever the locale."""
    if sys.stdout.isatty():
        piece = piece.translate(CONTROLS)
    sys.stdout.buffer.write(piece.encode("utf-8"))
    sys.stdout.buffer.flush()


def _hide(piece: str) -> None:
    """The sample is shown later, whole."""
