"""Options and commands of other tools, and their names here.

The words are in aliases.toml. An alias is not accepted silently, because it can mean something
else: a batch there counts sequences, here tokens. The error (`gptcli.cli.unknown_words`) names our option
and the translated command line (`gptcli.cli.translation`). These modules are imported only for a
command line or configuration file with an unknown word.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.errors import SAME_WORDS, UsageError, close_to
from gptcli.settings import count, quantity
from gptcli.units import read_quantity

Given = Mapping[str, str | None]
"""Values of a command line by the names of our options; aliases are already translated."""
Conversion = Callable[[str, Given], str]
"""Conversion of the value typed, given the rest of the command line.

It returns our value, an option with its value if that depends on the value typed ("--list"), or ""
if that is the default. Raises GptError or KeyError if the command line does not determine the value.
"""


@dataclass(frozen=True, slots=True)
class Alias:
    """Word of another tool."""

    target: str
    """Our option (--lr), option with value (--precision bf16) or argument (RUN); empty if none."""
    note: str = ""
    """Difference to our option, or the reason why there is none."""
    convert: Conversion | None = None
    """Conversion of the value; None if it is the same here."""

    @property
    def option(self) -> str:
        """Name of our option; empty if the target is an argument or nothing."""
        return self.target.split()[0] if self.target.startswith("-") else ""

    @property
    def is_opposite(self) -> bool:
        """True if the target is meant by the word's value False."""
        return self.convert in (CONVERSIONS["greedy if false"], CONVERSIONS["constant if false"])

    @property
    def has_value(self) -> bool:
        """True if the target includes the value, so that a value typed is dropped."""
        return " " in self.target


def _batch_tokens(value: str, given: Given) -> str:
    return str(count(value) * _context(given))


def _accumulated_batch_tokens(value: str, given: Given) -> str:
    """Return the tokens of a step of nanoGPT, whose batch_size counts those of one micro-batch."""
    return str(count(value) * _accumulation(given) * _context(given))


def _batch_tokens_of_accumulation(value: str, given: Given) -> str:
    if "--batch-tokens" in given:  # typed, or the accumulation is in it already
        return str(count(given["--batch-tokens"] or ""))
    return str(count(value) * count(given["--micro-batch"] or "") * _context(given))


def _eval_tokens_of_batches(value: str, given: Given) -> str:
    return str(count(value) * (count(given["--batch-tokens"] or "") // _accumulation(given)))


def _tokens_of_steps(value: str, given: Given) -> str:
    if "--batch-tokens" in given:
        return str(count(value) * count(given["--batch-tokens"] or ""))
    return str(count(value) * int(batch_of_size(given)))


def _tokens_of_epochs(value: str, given: Given) -> str:
    from gptcli.shards.manifest import read_manifest

    tokens = read_manifest(Path(given.get("--data") or "shards")).tokens("train")
    return str(round(quantity(value) * tokens))


def _share_of_tokens(value: str, given: Given) -> str:
    return str(round(quantity(value) * count(given["--tokens"] or "")))


def _share_of_lr(value: str, given: Given) -> str:
    return f"{quantity(value) / quantity(given['--lr'] or ''):.6g}"


def _hours_of_days(value: str, given: Given) -> str:
    return f"{24 * quantity(value):g}"


def _precision(value: str, given: Given) -> str:
    known = {"float": "fp32", "no": "fp32"}
    return known.get(value.lower(), SAME_WORDS.get(value.lower(), value))


def _unless_auto(value: str, given: Given) -> str:
    return "" if value.lower().partition(":")[0] in ("auto", "none") else value


def _unless_none(value: str, given: Given) -> str:
    return "" if value.lower() in ("none", "false", "no", "csv") else value


def _switch(value: str, given: Given) -> str:
    """Return "on" or "off" for Python's True and False."""
    return {"true": "on", "false": "off"}.get(value.lower(), value)


def _if_false(option: str) -> Conversion:
    """Return the conversion of a flag that is on by default, to the option that switches it off."""
    return lambda value, given: option if value.lower() in ("false", "0") else ""


TASKS_ELSEWHERE = {"lambada_openai": "lambada", "openai_lambada": "lambada"}
"""Names of other tools for tasks."""


def _task(value: str, given: Given) -> str:
    if value in ("list", "list_tasks"):
        return "--list"
    return ",".join(TASKS_ELSEWHERE.get(name, name) for name in value.split(","))


def _data(value: str, given: Given) -> str:
    if read_quantity(value) is not None:
        raise UsageError("weights of several sources are those of --mixture")
    return value


def _start(value: str, given: Given) -> str:
    """Return the weights of nanoGPT's init_from, which may be a word for a new or continued run."""
    return {"scratch": "", "resume": "--resume"}.get(value, value)


def _checkpointing(value: str, given: Given) -> str:
    known = {"true": "full", "false": "none", "uniform": "full", "block": "full"}
    return known.get(value.lower(), value)


def _optimizer(value: str, given: Given) -> str:
    return "adamw" if value.lower().startswith("adam") else value


def _size(value: str, given: Given) -> str:
    from gptcli.model.config import find_size

    find_size(value)
    return value


def _schedule(value: str, given: Given) -> str:
    known = {"warmup-stable-decay": "wsd", "constant-with-warmup": "constant"}
    return known.get(value.lower().replace("_", "-"), value.lower())


def _kind(value: str, given: Given) -> str:
    return "gpt2" if "bpe" in value.lower() or "byte" in value.lower() else value


def _model_of_arguments(value: str, given: Given) -> str:
    """Return the model of lm-evaluation-harness's --model_args: pretrained=MODEL,dtype=..."""
    pairs = dict(part.partition("=")[::2] for part in value.split(","))
    return pairs.get("pretrained") or pairs.get("path") or value


def _model_unless_kind(value: str, given: Given) -> str:
    """Return a model, or "" for a kind of lm-evaluation-harness, or nanoGPT's word for a run."""
    return (
        ""
        if value in ("resume", "hf", "hf-auto", "hf-causal", "huggingface", "vllm", "nemo_lm")
        else value
    )


def _no_conversion(value: str, given: Given) -> str:
    raise UsageError("the two options count different things")


def _axis(name: str) -> Conversion:
    return lambda value, given: f"{name}={count(value)}"


def _context(given: Given) -> int:
    text = given.get("--n-ctx")
    return count(text) if text else int(_paper(given, "--n-ctx").n_ctx)


def _accumulation(given: Given) -> int:
    """Return the micro-batches of a step by the option of another tool; 1 if there is none."""
    return next((count(given[word] or "") for word in ACCUMULATION if word in given), 1)


def _paper(given: Given, instead: str) -> Any:
    """Return the paper's model of --size. Raises KeyError, with the option `instead` of it."""
    from gptcli.model.config import find_size

    if "--size" not in given:
        raise KeyError(f"{instead} or --size")
    return find_size(given["--size"] or "")


CONVERSIONS: dict[str, Conversion] = {
    **{
        convert.__name__.removeprefix("_"): convert
        for convert in (
            _batch_tokens, _accumulated_batch_tokens, _batch_tokens_of_accumulation,
            _eval_tokens_of_batches, _tokens_of_steps, _tokens_of_epochs, _share_of_tokens, _share_of_lr,
            _hours_of_days, _precision, _optimizer, _schedule, _kind, _model_of_arguments,
            _model_unless_kind, _no_conversion, _unless_auto, _unless_none, _switch, _task, _data,
            _start, _checkpointing, _size,
        )
    },
    "greedy if false": _if_false("--greedy"),
    "constant if false": _if_false("--lr-schedule constant"),
    **{f"axis {name}": _axis(name) for name in ("dp", "shard", "tp", "pp")},
}  # fmt: skip


def _table(*names: str) -> dict[str, Alias]:
    """Return the aliases of these tables of aliases.toml, by word."""
    found = {}
    for words, target, *rest in (row for name in names for row in TABLES[name]):
        note, conversion = (*rest, "", "")[:2]
        alias = Alias(target, note, CONVERSIONS[conversion] if conversion else None)
        found.update(dict.fromkeys(words.split(), alias))
    return found


REPLACED = ("--lr", "--batch-tokens", "--tokens")
"""Options whose value is replaced if an alias says it again, in the order in which values are
converted: a length in steps needs the tokens of a batch, a warm-up in shares those of the run.
"""
TABLES = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
ACCUMULATION = tuple(TABLES["accumulation"][0][0].split())
EVERYWHERE = _table("everywhere")
OF_COMMAND: dict[str, dict[str, Alias]] = {
    "gpt train": _table("shape", "train", "accumulation"),
    "gpt sample": _table("sample"),
    "gpt eval": _table("eval"),
    "gpt cost": _table("shape", "cost"),
    "gpt build-shards": _table("build-shards"),
    "gpt tokenize train": _table("tokenize-train"),
    "gpt tokenize encode": _table("tokenize-ids"),
    "gpt tokenize decode": _table("tokenize-ids"),
}
OWN_VALUES: dict[str, dict[str, Conversion]] = {
    command: {option: CONVERSIONS[conversion] for option, conversion in rows.items()}
    for command, rows in TABLES["own-values"].items()
}
"""Conversions of values of our options that other tools spell in another way, by command."""
IMPLIED: dict[str, dict[str, tuple[int, int]]] = TABLES["implied"]
"""Factor and divisor with which our options follow from the value of a word of another tool."""
PROGRAMS = frozenset(TABLES["programs"]["names"].split())
"""Other tools whose name may stand before a command."""
COMMANDS = _table("commands")
"""Commands of other tools, and our command lines."""


def order_of_conversion(alias: Alias | None) -> tuple[int, bool]:
    """Return the key by which the values of a command line are sorted to be converted."""
    if alias is None or alias.option not in REPLACED:
        return len(REPLACED), False
    return REPLACED.index(alias.option), alias.convert is _batch_tokens_of_accumulation


def counts_steps(alias: Alias | None) -> bool:
    """Return whether an alias gives the length of a run in steps."""
    return alias is not None and alias.option == "--tokens" and alias.convert is _tokens_of_steps


def batch_of_size(given: Given) -> str:
    """Return the tokens of a batch of the paper's model of --size.

    Raises KeyError without one, UsageError if it is unknown.
    """
    return str(_paper(given, "--batch-tokens").batch_tokens)


def is_model_size(name: str) -> bool:
    """Tell whether a name is that of a model size, such as 350M."""
    from gptcli.model.config import size_names

    return name.lower() in map(str.lower, size_names())


def table_of(command: str, options: Iterable[str]) -> dict[str, Alias]:
    """Return the aliases of a command, such as "gpt train", that has these options."""
    options = set(options)
    everywhere = {
        word: alias
        for word, alias in EVERYWHERE.items()
        if not alias.option or alias.option in options
    }
    return {
        word: alias
        for word, alias in (everywhere | OF_COMMAND.get(command, {})).items()
        if "--" + word not in options
    }


def find_alias(word: str, table: Mapping[str, Alias]) -> Alias | None:
    """Return the alias of a word, or None.

    Dashes, underscores and a prefix such as train. or --training. do not matter.
    """
    bare = word.lstrip("-").replace("_", "-").lower()
    return table.get(bare) or table.get(bare.rpartition(".")[2])


def is_command(word: str) -> bool:
    """Tell whether a word is a command of another tool, and no file."""
    return word.lower().replace("_", "-") in COMMANDS and not Path(word).exists()


def is_assignment(command: str, word: str, options: Mapping[str, Any]) -> bool:
    """Tell whether an argument is an option spelled name=value, and not a file."""
    name = "--" + word.partition("=")[0].lstrip("+").replace("_", "-")
    is_known = (
        name in options
        or "--" + name.rpartition(".")[2] in options
        or find_alias(name, table_of(command, options)) is not None
    )
    return is_known and not Path(word).exists()


def nearest_option(name: str, takes: Mapping[str, bool], table: Mapping[str, Alias]) -> str:
    """Return our option nearest to a misspelled option or alias; empty if none is near."""
    choices = {option: option for option in takes} | {
        "--" + word: alias.option for word, alias in table.items() if alias.option
    }
    close = close_to(name, choices)
    return choices[close[0]] if close else ""


@functools.cache
def options_of(command: str) -> Mapping[str, bool]:
    """Return the options of a command such as "gpt train", and whether each takes a value."""
    import typer.main

    from gptcli.cli import build_app  # which is built on this module
    from gptcli.cli.command import option_table

    program, *path = command.split()
    found: Any = typer.main.get_command(build_app(path))
    ctx: Any = found.context_class(found, info_name=program, **found.context_settings)
    for name in path:
        found = found.commands[name]
        ctx = found.context_class(found, info_name=name, parent=ctx)
    return {name: not param.is_flag for name, param in option_table(found, ctx).items()}


def key_hint(command: str, key: str, names: Iterable[str]) -> str:
    """Return the hint for an unknown key of a configuration file of `command`.

    `names` are the keys that the file may have.
    """
    names = list(names)
    takes = {"--" + name.replace("_", "-"): True for name in names}
    table = table_of(command, takes)
    name = key.replace("_", "-")
    if (alias := find_alias(name, table)) is not None and alias.option in takes:
        key, _, value = alias.target.removeprefix("--").replace("-", "_").partition(" ")
        target = f'{key} = "{value}"' if value else key
        here = "" if " here" in alias.note else " here"
        return f"it is called {target}{here}" + (f": {alias.note}" if alias.note else "")
    if alias is not None and alias.note:
        return alias.note
    if command.startswith("gpt ") and "--" + name in options_of(command):
        return f"it is an option of the command line alone: --{name}"
    if (close := nearest_option("--" + name, takes, table)) in takes:
        return f"did you mean {close.replace('--', '').replace('-', '_')}?"
    return f"one of: {', '.join(names)}"
