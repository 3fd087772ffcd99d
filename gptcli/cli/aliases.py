"""Options and commands of other tools, and their names here.

The words are those of nanoGPT, nanochat, llm.c, litgpt, transformers' Trainer and generate,
Megatron-LM, torchtitan and lm-evaluation-harness. An alias is not accepted silently, because it can
mean something else: a batch there counts sequences, here tokens. The error names our option and, if
every value can be converted, the corrected command line. This module is imported only for a command
line or configuration file with an unknown word.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.cli.command import Word, is_option, read_words
from gptcli.cli.config import count, quantity
from gptcli.errors import GptError, UsageError, close_to

Given = Mapping[str, str | None]
"""Values of a command line by the names of our options; aliases are already translated."""


@dataclass(frozen=True, slots=True)
class Alias:
    """Word of another tool."""

    target: str
    """Our option (--lr), option with value (--precision bf16) or argument (RUN); empty if none."""
    note: str = ""
    """Difference to our option, or the reason why there is none."""
    convert: Callable[[str, Given], str] | None = None
    """Conversion of the value, from the value typed and the rest of the command line.

    Raises GptError or KeyError if the command line does not determine the value.
    """

    @property
    def option(self) -> str:
        """Name of our option; empty if the target is an argument or nothing."""
        return self.target.split()[0] if self.target.startswith("-") else ""

    @property
    def has_value(self) -> bool:
        """True if the target includes the value, so that a value typed is dropped."""
        return " " in self.target


def _batch_tokens(value: str, given: Given) -> str:
    text = given.get("--n-ctx")
    return str(count(value) * (count(text) if text else _paper(given).n_ctx))


def _tokens_of_steps(value: str, given: Given) -> str:
    if "--batch-tokens" in given:
        return str(count(value) * count(given["--batch-tokens"] or ""))
    return str(count(value) * _paper(given).batch_tokens)


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
    return {
        "bfloat16": "bf16",
        "float16": "fp16",
        "half": "fp16",
        "float32": "fp32",
        "float": "fp32",
    }.get(value.lower(), value)


def _no_conversion(value: str, given: Given) -> str:
    raise UsageError("the two options count different things")


def _axis(name: str) -> Callable[[str, Given], str]:
    return lambda value, given: f"{name}={count(value)}"


def _paper(given: Given) -> Any:
    from gptcli.model.config import find_size

    return find_size(given["--size"] or "")


def _table(*rows: tuple[Any, ...]) -> dict[str, Alias]:
    """Return rows of (words, target, note, conversion) as a table by word."""
    return {word: Alias(*row[1:]) for row in rows for word in row[0].split()}


SHAPE = _table(
    ("n-layers num-layers num-hidden-layers layers depth", "--n-layer"),
    ("n-heads num-heads num-attention-heads heads", "--n-head"),
    (
        "n-embd n-embed d-embd embed-dim embedding-dim hidden-size hidden-dim model-dim dim width",
        "--d-model",
    ),
    (
        "block-size seq-len seq-length max-seq-len max-seq-length sequence-length context-length "
        "context n-positions max-position-embeddings",
        "--n-ctx",
    ),
    ("model model-name model-type model-size model-name-or-path", "--size"),
)
LAYOUT_NOTE = "--layout names every axis: dp=2,shard=4,tp=2,pp=2"
CONFIG_KEY = "set it in the --config file: {} = VALUE"
TRAIN = SHAPE | _table(
    ("learning-rate max-lr peak-lr base-lr matrix-lr", "--lr"),
    (
        "batch-size global-batch-size train-batch-size per-step-batch-size",
        "--batch-tokens",
        "a batch is counted in tokens here, not in sequences",
        _batch_tokens,
    ),
    ("total-batch-size tokens-per-step", "--batch-tokens"),
    (
        "per-device-train-batch-size micro-batch-size device-batch-size local-batch-size",
        "--micro-batch",
    ),
    (
        "gradient-accumulation-steps grad-accum-steps grad-acc-steps accumulate-grad-batches "
        "acc-steps",
        "",
        "gradient accumulation follows from --batch-tokens and --micro-batch",
    ),
    (
        "epochs num-epochs num-train-epochs max-epochs",
        "--tokens",
        "the length of a run is counted in tokens here: epochs times the training tokens",
        _tokens_of_epochs,
    ),
    (
        "max-steps max-iters num-iterations train-iters iterations iters steps num-steps "
        "num-train-steps training-steps",
        "--tokens",
        "the length of a run is counted in tokens here: steps times --batch-tokens",
        _tokens_of_steps,
    ),
    ("max-tokens train-tokens num-tokens", "--tokens"),
    (
        "warmup-steps warmup-iters lr-warmup-iters",
        "--warmup-tokens",
        "the warm-up is counted in tokens here: steps times --batch-tokens",
        _tokens_of_steps,
    ),
    (
        "warmup-ratio lr-warmup-fraction",
        "--warmup-tokens",
        "the warm-up is counted in tokens here: the ratio times --tokens",
        _share_of_tokens,
    ),
    (
        "lr-decay-iters decay-iters",
        "--decay-tokens",
        "the decay is counted in tokens here: steps times --batch-tokens",
        _tokens_of_steps,
    ),
    (
        "min-lr lr-min",
        "--min-lr-ratio",
        "the minimum learning rate is a ratio to --lr here",
        _share_of_lr,
    ),
    ("final-lr-frac", "--min-lr-ratio"),
    (
        "lr-scheduler-type lr-decay-style lr-scheduler scheduler decay-lr",
        "",
        "the schedule is the papers' linear warm-up and cosine decay; --warmup-tokens, "
        "--decay-tokens and --min-lr-ratio change it",
    ),
    ("wd", "--weight-decay"),
    (
        "max-grad-norm grad-clip clip-grad gradient-clip-val clip",
        "",
        CONFIG_KEY.format("clip"),
    ),
    ("adam-beta1 beta1", "", CONFIG_KEY.format("beta1")),
    ("adam-beta2 beta2", "", CONFIG_KEY.format("beta2")),
    ("adam-epsilon adam-eps eps", "", CONFIG_KEY.format("eps")),
    ("optim optimizer-type", "", "the optimizer is AdamW, as in the papers"),
    ("dtype torch-dtype mixed-precision", "--precision", "", _precision),
    ("amp", "--precision bf16"),
    ("bf16", "--precision bf16"),
    ("fp16", "--precision fp16"),
    ("fp32", "--precision fp32"),
    ("fp8", "--precision fp8"),
    ("torch-compile", "--compile on"),
    ("no-compile", "--compile off"),
    (
        "gradient-checkpointing activation-checkpointing recompute-activations",
        "--recompute full",
    ),
    (
        "device cuda cpu no-cuda use-cpu accelerator gpu",
        "",
        "training uses the GPUs of the machine, or its CPU if there are none; "
        "CUDA_VISIBLE_DEVICES= hides the GPUs",
    ),
    (
        "devices num-gpus n-gpus ngpus gpus nproc-per-node world-size",
        "--layout",
        LAYOUT_NOTE,
        _axis("dp"),
    ),
    (
        "tensor-parallel-size tensor-model-parallel-size tp",
        "--layout",
        LAYOUT_NOTE,
        _axis("tp"),
    ),
    (
        "pipeline-parallel-size pipeline-model-parallel-size pp",
        "--layout",
        LAYOUT_NOTE,
        _axis("pp"),
    ),
    ("data-parallel-size dp", "--layout", LAYOUT_NOTE, _axis("dp")),
    ("fsdp zero-stage", "--layout", LAYOUT_NOTE, _no_conversion),
    (
        "nnodes num-nodes",
        "",
        "start it with torchrun -m gptcli train ... on every node; examples/cluster has a job",
    ),
    (
        "eval-interval val-loss-every eval-steps val-interval val-check-interval",
        "--eval-every",
    ),
    (
        "eval-iters eval-batches limit-val-batches max-eval-batches",
        "--eval-tokens",
        "validation is counted in tokens here",
        _no_conversion,
    ),
    (
        "save-interval save-steps save-every checkpoint-interval ckpt-every",
        "--checkpoint-every",
    ),
    ("save-total-limit keep-last", "--keep"),
    (
        "log-interval logging-steps log-every",
        "",
        "metrics.jsonl in the run folder has a line for every step",
    ),
    (
        "wandb wandb-log use-wandb wandb-project report-to mlflow",
        "",
        "metrics.jsonl and report.html in the run folder contain all metrics; "
        "--track tensorboard writes them for TensorBoard too",
    ),
    ("tensorboard tensorboard-dir logging-dir log-dir", "--track tensorboard"),
    (
        "resume-from-checkpoint resume-from ckpt-path continue load",
        "--resume",
        "it continues from the newest checkpoint in --out",
    ),
    (
        "pretrained from-pretrained initial-checkpoint-dir checkpoint-dir load-weights",
        "--init-from",
    ),
    (
        "dataset dataset-dir data-dir data-path train-data train-bin input-bin",
        "--data",
        "it names a folder of shards from gpt build-shards",
    ),
    (
        "padded-vocab-size vocab-size tokenizer",
        "",
        "the shards determine the vocabulary; choose it with gpt build-shards --tokenizer",
    ),
    (
        "num-workers workers dataloader-num-workers",
        "",
        "shards are memory-mapped and need no workers",
    ),
    ("eval-tasks tasks", "--eval-task"),
    (
        "sample-every generate-every",
        "--samples",
        "texts are generated at every checkpoint; the option sets their number",
        _no_conversion,
    ),
)
MODEL_ARGUMENT = "the model is the first argument"
SAMPLE = _table(
    ("max-new-tokens max-length n-predict num-tokens max-gen-toks length", "--max-tokens"),
    ("num-return-sequences n-samples nsamples number-of-samples", "--num-samples"),
    ("temp", "--temperature"),
    ("topk", "--top-k"),
    ("topp nucleus", "--top-p"),
    ("do-sample", "", "sampling is the default; --greedy takes the most probable token instead"),
    ("no-sample deterministic", "--greedy"),
    ("num-beams beams beam-size beam-width", "--beam"),
    ("rep-penalty repeat-penalty", "--repetition-penalty"),
    ("stop-sequences stop-sequence stop-strings stop-words eos", "--stop"),
    ("prompt start text input p", "PROMPT", "the prompt is the second argument"),
    (
        "model model-path model-name-or-path pretrained ckpt checkpoint-dir run out-dir init-from",
        "RUN",
        MODEL_ARGUMENT,
    ),
    (
        "file prompt-file prompts-file input-file",
        "--prompts",
        "a file of prompts has one JSON object per line; - reads one prompt from stdin",
    ),
    ("dtype torch-dtype", "--precision", "", _precision),
    ("bf16", "--precision bf16"),
    ("fp32", "--precision fp32"),
    ("int8 load-in-8bit", "--quantize int8"),
    ("quantization", "--quantize"),
    ("cuda gpu", "--device cuda"),
    ("cpu", "--device cpu"),
    ("stream streaming", "", "text is always streamed"),
    ("interactive chat", "-i"),
    ("assistant-model draft-model speculative-model", "--draft"),
    ("logprobs log-probs", "--json", "the report contains the log-probabilities"),
)
EVAL = _table(
    ("tasks", "--task"),
    ("num-fewshot n-shot nshot fewshot k-shot", "--shots"),
    ("fewshot-seed", "--shots-seed"),
    ("eval-batch-size per-device-eval-batch-size device-batch-size", "--batch-size"),
    ("log-samples write-out", "--samples", "it names the file to write"),
    ("model model-args model-path pretrained checkpoint-dir ckpt run", "RUN", MODEL_ARGUMENT),
    ("data-dir dataset", "--data"),
    ("max-items num-items max-samples eval-iters", "--limit"),
    ("use-cache cache", "--records"),
    ("dtype torch-dtype", "--precision", "", _precision),
    ("bf16", "--precision bf16"),
    ("cuda gpu", "--device cuda"),
    ("cpu", "--device cpu"),
    ("gen-kwargs", "", "the task file sets how answers are generated"),
    ("list-tasks", "--list"),
    ("file", "--text"),
)
COST = SHAPE | _table(
    (
        "params parameters n-params num-params",
        "",
        "name a --size, or a shape with --n-layer, --n-head and --d-model; "
        "--optimal FLOPS lists sizes",
    ),
    ("num-gpus n-gpus ngpus devices", "--gpus"),
    ("gpu-type gpu-name device hardware accelerator", "--gpu"),
    ("price-per-hour cost-per-hour hourly-rate rate", "--price"),
    ("utilization hfu efficiency", "--mfu"),
    ("days time", "--hours", "the time is given in hours", _hours_of_days),
    ("compute flop", "--flops"),
    ("chinchilla compute-optimal", "--optimal"),
    ("dataset-size training-tokens train-tokens num-tokens", "--tokens"),
    (
        "out output o output-path",
        "",
        "the report goes to stdout: redirect it with > FILE; --json prints one JSON object, and "
        "--plot FILE.svg draws it",
    ),
    ("dtype", "--precision", "", _precision),
    ("bf16", "--precision bf16"),
    ("sizes all compare", "--table"),
)
BUILD_SHARDS = _table(
    (
        "tokenizer-path tokenizer-name tokenizer-model tokenizer-name-or-path vocab-file",
        "--tokenizer",
    ),
    ("num-workers num-proc nproc processes jobs threads", "--workers"),
    ("shard-size tokens-per-shard", "--shard-tokens", "the size is given in tokens"),
    ("val-split val-ratio val-size validation-split test-size", "--val-fraction"),
    ("input inputs input-dir data data-dir dataset files text", "INPUT", "files are arguments"),
    ("output-prefix dest", "--out"),
    ("append-eod", "", "end-of-text is always written between documents"),
    ("shuffle", "", "documents are always shuffled; --seed sets the order"),
)
TOKENIZE_TRAIN = _table(
    ("vocab vocabulary-size", "--vocab-size"),
    ("model-prefix", "--out"),
    ("algorithm model-type type", "--kind"),
    ("input inputs data files corpus", "INPUT", "files are arguments"),
)
TOKENIZE_IDS = _table(
    ("tokenizer-file tokenizer-path vocab-file vocab model", "--tokenizer"),
    ("input inputs file files ids text", "INPUT", "files are arguments; - is stdin"),
)
EVERYWHERE = _table(  # for every command that has the option
    ("out-dir output-dir output-path output-file save-dir save-path", "--out"),
    ("overwrite overwrite-output-dir yes", "--force"),
    ("random-seed manual-seed rng-seed", "--seed"),
    ("config-file cfg conf", "--config"),
    ("documents-kind", "--documents"),
    ("help-all usage", "--help"),
    (
        "verbose quiet silent progress log-level",
        "",
        "progress is printed on stderr: 2> /dev/null hides it; --debug shows tracebacks",
    ),
    ("profile-dir", "--profile"),
)
OF_COMMAND: dict[str, dict[str, Alias]] = {
    "gpt train": TRAIN,
    "gpt sample": SAMPLE,
    "gpt eval": EVAL,
    "gpt cost": COST,
    "gpt build-shards": BUILD_SHARDS,
    "gpt tokenize train": TOKENIZE_TRAIN,
    "gpt tokenize encode": TOKENIZE_IDS,
    "gpt tokenize decode": TOKENIZE_IDS,
}
COMMANDS = _table(  # commands of other tools, and our command lines
    ("generate gen infer inference complete completion predict run", "sample"),
    (
        "chat repl interactive playground",
        "sample RUN -i",
        "the model continues text; it is not trained for dialogue",
    ),
    (
        "finetune fine-tune finetuning sft",
        "train --finetune TASK.toml --init-from RUN",
        "without --finetune, the run is trained further on shards",
    ),
    ("pretrain fit", "train"),
    ("resume continue", "train --resume --out RUN"),
    ("evaluate evaluation benchmark score perplexity ppl lm-eval", "eval"),
    ("tokenise tokenizer bpe", "tokenize"),
    ("encode", "tokenize encode"),
    ("decode", "tokenize decode"),
    (
        "prepare prepare-data preprocess preprocess-data build shard shards data dataset pack",
        "build-shards",
    ),
    ("estimate price pricing budget flops memory params plan", "cost"),
    ("report plot compare", "train --report RUN"),
    ("dry-run", "train --dry-run"),
    (
        "models sizes list ls",
        "cost --table",
        "it lists the papers' sizes; gpt eval --list lists the tasks",
    ),
    ("tasks", "eval --list"),
    (
        "serve server api",
        "",
        "there is no server; gpt sample RUN -i is an interactive session, and --prompts FILE "
        "answers a file of prompts",
    ),
    (
        "convert export push",
        "",
        "no conversion is needed: transformers loads a run folder, and llm.c, Megatron and "
        "nanoGPT read the shards",
    ),
    (
        "download pull",
        "",
        "models are not downloaded; gpt sample and gpt eval read a GPT-2 folder of transformers",
    ),
    (
        "init config configure",
        "",
        "no setup is needed; --config FILE.toml sets the options of a command",
    ),
    (
        "demo",
        "",
        "make demo in the repository runs all commands; examples/quickstart lists them",
    ),
)


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


def is_assignment(command: str, word: str, options: Mapping[str, Any]) -> bool:
    """Tell whether an argument is an option spelled name=value, and not a file."""
    name = "--" + word.partition("=")[0].lstrip("+").replace("_", "-")
    is_known = (
        name in options
        or "--" + name.rpartition(".")[2] in options
        or find_alias(name, table_of(command, options)) is not None
    )
    return is_known and not Path(word).exists()


def unknown_word(
    command: str, args: list[str], takes: Mapping[str, bool], word: Word
) -> UsageError:
    """Return the error for a word of `args` that `command` does not understand.

    `takes` tells for each of its options whether it takes a value.
    """
    table = table_of(command, takes)
    line = corrected(command, args, takes)
    help_hint = f"{command} --help lists all options"
    if not word.name:
        return _extra_argument(command, args, takes, word, line)
    alias = find_alias(word.name, table)
    two_dashes = "-" + word.name
    if len(word.name) > 2 and not word.name.startswith("--") and (two_dashes in takes or alias):
        name = two_dashes
        if alias is not None and two_dashes not in takes:
            name = alias.target or two_dashes
        return UsageError(
            "the name of an option begins with two dashes",
            where=word.name,
            hint=line or f"{name}; {help_hint}",
        )
    if alias is not None:
        if not alias.target:
            return UsageError(
                f"{command} has no such option", where=word.name, hint=f"{alias.note}\n{help_hint}"
            )
        verb = "calls this" if alias.option else "takes it as"
        what = f"{command} {verb} {alias.target}"
        return UsageError(
            f"{what}; {alias.note}" if alias.note else what,
            where=word.name,
            hint=line or help_hint,
        )
    short = "--" + word.name.rpartition(".")[2].lstrip("-")
    if short in takes:
        return UsageError(f"{command} calls this {short}", where=word.name, hint=line or help_hint)
    for prefix in ("--no-", "--disable-"):
        flag = "--" + word.name.removeprefix(prefix)
        if word.name.startswith(prefix) and takes.get(flag) is False:
            return UsageError(
                "flags are off by default",
                where=word.name,
                hint=f"leave out {word.name}; {flag} turns it on",
            )
    close = _nearest_option(word.name, takes, table)
    return UsageError(
        f"{command} has no such option",
        where=word.name,
        hint=f"did you mean {close}? {help_hint}" if close else help_hint,
    )


def _nearest_option(name: str, takes: Mapping[str, bool], table: Mapping[str, Alias]) -> str:
    """Return our option nearest to a misspelled option or alias; empty if none is near."""
    choices = {option: option for option in takes} | {
        "--" + word: alias.option for word, alias in table.items() if alias.option
    }
    close = close_to(name, choices)
    return choices[close[0]] if close else ""


def _extra_argument(
    command: str, args: list[str], takes: Mapping[str, bool], word: Word, line: str
) -> UsageError:
    """Return the error for one argument too many, or an option without dashes."""
    value = str(word.value)
    if is_assignment(command, value, takes):
        return UsageError(
            "the name of an option begins with two dashes",
            where=value,
            hint=line or f"--{value}; {command} --help lists all options",
        )
    if command == "gpt sample":
        words = list(read_words(args, takes.get))
        run, *prompt = [str(one.value) for one in words if not one.name]
        options = [
            part for one in words if one.name for part in (one.name, one.value) if part is not None
        ]
        quoted = shlex.join(["gpt", "sample", run, " ".join(prompt), *options])
        return UsageError(
            "the prompt must be one argument",
            where=prompt[1] or "PROMPT",
            hint=f"quote it:\n{quoted}",
        )
    return UsageError(
        "unexpected argument", where=value, hint=f"{command} --help shows usage and examples"
    )


def corrected(command: str, args: list[str], takes: Mapping[str, bool]) -> str:
    """Return the command line with our options, quoted for a shell.

    It is empty if an option has no counterpart or its value cannot be converted.
    """
    table = table_of(command, takes)

    def takes_value(name: str) -> bool | None:
        if known := _option_for(name, takes):
            return takes[known]
        alias = find_alias(name, table)
        if alias is None or alias.has_value or not alias.target:
            return None
        return not alias.option or takes[alias.option]

    words = list(read_words([_dashed(word, command, takes) for word in args], takes_value))
    given: dict[str, str | None] = {}
    for word in words:
        if word.name:
            alias = find_alias(word.name, table) or Alias(word.name)
            given[_option_for(word.name, takes) or alias.target] = word.value
    options: list[str] = []
    first: list[str] = []
    last: list[str] = []
    after_flag = False  # a value such as True after the alias of a flag is dropped
    for word in words:
        if not word.name:
            if not after_flag or str(word.value).lower() not in ("true", "false", "1", "0"):
                first.append(str(word.value))
            after_flag = False
            continue
        found = find_alias(word.name, table)
        if known := _option_for(word.name, takes):
            options += [known] if word.value is None or not takes[known] else [known, word.value]
        elif (
            found is None
            or not found.target
            or (word.value is None and not found.has_value and takes.get(found.option, True))
        ):
            return ""
        elif found.has_value or takes.get(found.option) is False:
            options += found.target.split()
            after_flag = True
        else:
            value = str(word.value)
            try:
                value = value if found.convert is None else found.convert(value, given)
            except (GptError, KeyError, OSError):
                return ""
            if found.target == "RUN":
                first.insert(0, value)
            elif not found.option:
                last.append(value)
            elif found.option == "--layout" and "--layout" in options:
                options[options.index("--layout") + 1] += f",{value}"
            else:
                options += [found.option, value]
    return shlex.join([*command.split(), *first, *last, *options])


def _option_for(name: str, takes: Mapping[str, bool]) -> str | None:
    """Return the option that is meant by --name, -name or --group.name; None if there is none."""
    for candidate in (name, "-" + name, "--" + name.rpartition(".")[2].lstrip("-")):
        if candidate in takes:
            return candidate
    return None


def _dashed(word: str, command: str, takes: Mapping[str, bool]) -> str:
    """Return name=value as --name=value, and any other word unchanged."""
    if not is_option(word) and "=" in word and is_assignment(command, word, takes):
        return "--" + word.lstrip("+")
    return word


def unknown_command(program: str, args: list[str], commands: list[str]) -> UsageError:
    """Return the error for a word that is not a command of `program`."""
    typed, rest = args[0], args[1:]
    what = f"{program} has no such command"
    if program != "gpt":
        close = close_to(typed, commands)
        lead = f"did you mean {close[0]}?" if close else f"its commands are {', '.join(commands)}:"
        words = [close[0], *rest] if close else [commands[0], *args]
        line = shlex.join([*program.split(), *words])
        return UsageError(what, where=typed, hint=f"{lead}\n{line}")
    if (alias := COMMANDS.get(typed.replace("_", "-").lower())) is not None:
        if not alias.target:
            hint = f"{alias.note}\ngpt --help lists the commands"
            return UsageError(what, where=typed, hint=hint)
        what = f"gpt calls this {alias.target.split()[0]}"
        line = f"gpt {alias.target}"
        if "RUN" not in alias.target:
            line = shlex.join(["gpt", *alias.target.split(), *rest])
        return UsageError(f"{what}; {alias.note}" if alias.note else what, where=typed, hint=line)
    choices = {name: name for name in commands} | {
        word: alias.target.split()[0] for word, alias in COMMANDS.items() if alias.target
    }
    if close := close_to(typed, choices):
        meant = choices[close[0]]
        hint = f"did you mean {meant}?\n{shlex.join(['gpt', meant, *rest])}"
        return UsageError(what, where=typed, hint=hint)
    if named := next((word for word in rest if word in commands), None):
        others = [word for word in args if word != named]
        return UsageError(
            "the command comes first", where=typed, hint=shlex.join(["gpt", named, *others])
        )
    return UsageError(
        what,
        where=typed,
        hint=f"its commands are {', '.join(commands)}; gpt --help describes them",
    )


def early_option(program: str, args: list[str], commands: list[str], option: str) -> UsageError:
    """Return the error for an option in front of the command."""
    where = option.partition("=")[0]
    if named := next((word for word in args if word in commands), None):
        at = args.index(named)
        line = shlex.join([*program.split(), named, *args[:at], *args[at + 1 :]])
        return UsageError("options come after the command", where=where, hint=line)
    return UsageError(
        f"{program} has no such option",
        where=where,
        hint=f"{program} --help lists commands and options",
    )


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
        return f"it is called {target} here" + (f": {alias.note}" if alias.note else "")
    if alias is not None and alias.note:
        return alias.note
    if close := _nearest_option("--" + name, takes, table):
        return f"did you mean {close.replace('--', '').replace('-', '_')}?"
    return f"one of: {', '.join(names)}"
