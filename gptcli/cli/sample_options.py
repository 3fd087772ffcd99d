"""What the options of `gpt sample` ask for together: settings laid over each other, rules, and the
prompt in its shape.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.cli.config import read_config
from gptcli.encodings import decode
from gptcli.errors import InputError, UsageError, nearest
from gptcli.files import read_text
from gptcli.settings import NUMBERS, Resolved

if TYPE_CHECKING:
    from gptcli.sampling.params import SamplingParams

TOP_K = 40  # GPT-2's release
DEFAULTS: dict[str, Any] = {
    "num_samples": 1, "max_tokens": 200, "seed": 0, "device": "auto", "precision": "auto", "quantize": "none", "batch_size": 8, "stop": [],
    "greedy": False,
}  # fmt: skip


def settings(options: dict[str, Any], preset: str | None, config: Path | None) -> dict[str, Any]:
    """Option over file over preset over default."""
    from gptcli.sampling.params import PRESETS

    names: dict[str, Any] = dict.fromkeys(("preset", "device", "precision", "quantize"), _text)
    names |= {"stop": _texts, "greedy": _flag}
    numbers = (
        "checkpoint", "num_samples", "max_tokens", "seed", "temperature", "top_k", "top_p", "repetition_penalty", "beam", "best_of",
        "batch_size",
    )  # fmt: skip
    names |= {name: NUMBERS[name] for name in numbers}
    given = {} if config is None else read_config(config, names, "gpt sample")
    preset = preset or given.pop("preset", None)
    if preset is not None and preset not in PRESETS:
        raise UsageError(
            f"unknown preset {preset!r}", where="--preset", hint=nearest(preset, PRESETS)
        )
    resolved = Resolved()
    resolved.put(DEFAULTS, "default")
    resolved.put(PRESETS[preset] if preset else {}, "preset")
    resolved.put(given, str(config))
    resolved.put(options, "option")
    if "" in resolved.values["stop"]:
        raise UsageError(
            "--stop is empty: every text begins with it", hint=r"for a line's end: --stop $'\n'"
        )
    return resolved.values


def refuse_contradictions(values: dict[str, Any], **given: Any) -> None:
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
            raise UsageError(
                f"{first} and {second} contradict each other", hint="leave out one of them"
            )
    for option in ("--beam", "--best-of") if several else ():
        if asked[option]:
            raise UsageError(
                f"--num-samples {values['num_samples']} and {option} contradict each other",
                hint="leave out one of them",
            )
    if asked["--prompts"] and given["output"] is None:
        raise UsageError("--prompts needs a file for the answers", hint="-o answers.jsonl")
    if not asked["--prompts"] and (
        given["output"] is not None or given["resume"] or given["force"]
    ):
        raise UsageError(
            "-o, --resume and --force belong to --prompts", hint="redirect stdout to keep a sample"
        )


def rules_of(values: dict[str, Any]) -> SamplingParams:
    """The rules these options ask for. Raises UsageError where they contradict each other."""
    from gptcli.sampling.params import SamplingParams

    penalty = values.get("repetition_penalty", 1.0)
    if values["greedy"] or "beam" in values:
        option = "--greedy" if values["greedy"] else "--beam"
        for name in ("temperature", "top_k", "top_p"):
            if name in values:
                other = f"--{name.replace('_', '-')}"
                raise UsageError(
                    f"{option} and {other} contradict each other",
                    hint=f"leave out {option} to sample, or {other}",
                )
        for name in ("num_samples", "best_of"):
            if values["greedy"] and values.get(name, 1) > 1:
                raise UsageError(
                    f"--{name.replace('_', '-')} {values[name]} and --greedy contradict each other",
                    hint="greedy samples are all the same text",
                )
        if "beam" in values and (penalty != 1 or values["greedy"] or values["stop"]):
            raise UsageError(
                "--beam goes by the model's own probabilities alone",
                hint="leave out --greedy, --repetition-penalty and --stop",
            )
        return SamplingParams(greedy=True, repetition_penalty=penalty)
    top_k = values.get("top_k")
    if top_k is None and "top_p" not in values:
        top_k = TOP_K
    return SamplingParams(
        temperature=values.get("temperature", 1.0),
        top_k=top_k,
        top_p=values.get("top_p"),
        repetition_penalty=penalty,
    )


def framed(
    prompt: str | None,
    instruction: str | None,
    examples: list[str] | None,
    title: str | None,
    subtitle: str | None,
    articles: list[Path] | None,
) -> str:
    """The prompt in the shape that the options ask for. Raises UsageError where they contradict
    each other.
    """
    from gptcli.sampling.generate import few_shot_prompt, news_prompt

    if title is not None:
        if prompt is not None or instruction or examples:
            raise UsageError(
                "--title and a prompt contradict each other",
                hint="an article starts from its title and subtitle alone",
            )
        return news_prompt(title, subtitle or "", [read_text(path) for path in articles or []])
    if subtitle is not None or articles:
        raise UsageError(
            "--subtitle and --article need --title", hint='--title "..." names the article to write'
        )
    return few_shot_prompt(instruction, examples or [], _prompt(prompt))


def _prompt(prompt: str | None) -> str:
    """The prompt given, or stdin's text where it is piped. Raises InputError where that is not
    UTF-8.
    """
    if prompt is not None and prompt != "-":
        # how Python passes on bytes of the command line that are not UTF-8
        if any("\udc80" <= char <= "\udcff" for char in prompt):
            raise InputError(
                "the prompt is not valid UTF-8",
                hint="type it in a terminal that is set to UTF-8, or pipe it in",
            )
        return prompt
    if prompt is None and sys.stdin.isatty():
        return ""
    return decode(sys.stdin.buffer.read(), "stdin").removesuffix("\n")


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
