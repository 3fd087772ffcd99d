"""`gpt sample`: text from a model, as it comes."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptcli.cli.config import count
from gptcli.cli.console import ConsoleEvents, print_json
from gptcli.errors import InputError, UsageError

if TYPE_CHECKING:
    from gptcli.sampling.filters import Rules

SEPARATOR = "-" * 15
TOP_K = 40  # GPT-2's release
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
    num_samples: Annotated[int, typer.Option(min=1, help="Samples; number i is the same text however many are drawn.")] = 1,
    max_tokens: Annotated[str, typer.Option(help="Longest sample, in tokens; end-of-text ends it sooner.", metavar="N")] = "200",
    seed: Annotated[int, typer.Option(help="Chance: the same seed, the same text.")] = 0,
    temperature: Annotated[
        float | None,
        typer.Option(help="Divides the logits: below 1 surer, above 1 more varied.", show_default="1", rich_help_panel="Choosing tokens"),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            help="Draw among the k likeliest tokens.", show_default=f"{TOP_K}, or all with --top-p", rich_help_panel="Choosing tokens"
        ),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option(
            help="Draw among the fewest tokens that hold this probability together.", show_default=False, rich_help_panel="Choosing tokens"
        ),
    ] = None,
    greedy: Annotated[bool, typer.Option("--greedy", help="Always the likeliest token.", rich_help_panel="Choosing tokens")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.", rich_help_panel="Machine")] = "auto",
    precision: Annotated[
        str, typer.Option(help="auto, fp32 or bf16; auto is bf16 on a GPU that has it.", rich_help_panel="Machine")
    ] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout instead of the stream.")] = False,
) -> None:
    """Continue a prompt with a trained model, streaming the text.

    The prompt is printed too, and a line of dashes stands between samples. A prompt from stdin loses its last newline. When the text
    outgrows the model's context, the model goes on from the last half of it.

    Examples:

        gpt sample runs/350M "Once upon a time" --max-tokens 100

        echo "def main():" | gpt sample runs/350M --num-samples 3 --top-p 0.9 --seed 7
    """
    # Set before torch loads. Threads that spin between many small products cost 30 times the time of ones that sleep on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    rules = _rules(temperature, top_k, top_p, greedy)
    if num_samples > 1 and greedy:
        raise UsageError(f"--num-samples {num_samples} and --greedy contradict each other", hint="greedy samples are all the same text")
    longest = count(max_tokens)
    text = _prompt(prompt)

    from gptcli.sampling.loading import load
    from gptcli.sampling.text import complete

    loaded = load(run, device=device, precision=precision)
    model, tokenizer = loaded.model, loaded.tokenizer
    tokens = tokenizer.encode(text)
    if not tokens:
        if tokenizer.eot_id is None:
            raise UsageError("this tokenizer has no end-of-text to start from", where=run, hint="give a prompt")
        tokens = [tokenizer.eot_id]
    elif len(tokens) > model.config.n_ctx:
        ConsoleEvents().warn(f"the prompt is {len(tokens):,} tokens long: the model reads the last {model.config.n_ctx:,}")

    show = _hide if as_json else _show
    samples = []
    for number in range(num_samples):
        show((f"{SEPARATOR}\n" if number else "") + text)
        try:
            samples.append(complete(model, tokenizer, tokens, rules, max_tokens=longest, seed=seed, number=number, show=show))
        finally:  # on Ctrl-C too, so that the shell's prompt starts a line of its own
            show("\n")
    if as_json:
        report = {"model": str(run), "prompt": text, "prompt_tokens": tokens, **asdict(rules), "max_tokens": longest, "seed": seed}
        report |= {"device": loaded.device.type, "precision": loaded.precision}
        report["samples"] = [asdict(sample) | {"tokens_per_second": sample.tokens_per_second} for sample in samples]
        print_json("sample", report)


def _rules(temperature: float | None, top_k: int | None, top_p: float | None, greedy: bool) -> Rules:
    """The rules these options ask for. Raises UsageError where they contradict each other."""
    from gptcli.sampling.filters import Rules

    if greedy:
        for option, value in {"--temperature": temperature, "--top-k": top_k, "--top-p": top_p}.items():
            if value is not None:
                raise UsageError(f"--greedy and {option} contradict each other", hint=f"leave out --greedy to sample, or {option}")
        return Rules(greedy=True)
    if top_k is None and top_p is None:
        top_k = TOP_K
    return Rules(temperature=1.0 if temperature is None else temperature, top_k=top_k, top_p=top_p)


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


def _show(piece: str) -> None:
    """Write text to stdout at once, in UTF-8 whatever the locale."""
    if sys.stdout.isatty():
        piece = piece.translate(CONTROLS)
    sys.stdout.buffer.write(piece.encode("utf-8"))
    sys.stdout.buffer.flush()


def _hide(piece: str) -> None:
    """The sample is shown later, whole."""
