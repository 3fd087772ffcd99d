"""What users of other tools type, and what it is called here.

The words are those of nanoGPT, nanochat, llm.c, litgpt, transformers' Trainer and generate,
Megatron-LM, torchtitan and lm-evaluation-harness. An alias is not accepted in silence: a batch
there counts sequences, here tokens. The answer is one message with our name and, if every value can
be carried over, the corrected command line. This module is imported only when a command line or a
configuration file has a word that is not ours.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.cli.command import Word, is_option, read_words
from gptcli.errors import GptError, UsageError, close_to
from gptcli.settings import count, quantity

Given = Mapping[str, str | None]
"""The values of a command line by the names of our options, aliases among them."""


@dataclass(frozen=True, slots=True)
class Ours:
    """What a foreign word is called here."""

    words: str
    """An option (--lr), an option with its value (--precision bf16), an argument (RUN), or empty if
    nothing here corresponds.
    """
    note: str = ""
    """What to know about it, in words."""
    convert: Callable[[str, Given], str] | None = None
    """The value as our option counts it, from the value typed and the rest of the command line.
    Raises if the line does not say enough.
    """

    @property
    def option(self) -> str:
        return self.words.split()[0] if self.words.startswith("-") else ""

    @property
    def whole(self) -> bool:
        """Whether `words` hold the value too, so that a value typed is dropped."""
        return " " in self.words


def sequences(value: str, given: Given) -> str:
    return str(count(value) * _context(given))


def steps(value: str, given: Given) -> str:
    return str(count(value) * _batch(given))


def epochs(value: str, given: Given) -> str:
    from gptcli.shards.manifest import read_manifest

    return str(
        round(
            quantity(value) * read_manifest(Path(given.get("--data") or "shards")).tokens("train")
        )
    )


def share_of_tokens(value: str, given: Given) -> str:
    return str(round(quantity(value) * count(given["--tokens"] or "")))


def share_of_rate(value: str, given: Given) -> str:
    return f"{quantity(value) / quantity(given['--lr'] or ''):.6g}"


def days(value: str, given: Given) -> str:
    return f"{24 * quantity(value):g}"


def precision(value: str, given: Given) -> str:
    return {
        "bfloat16": "bf16",
        "float16": "fp16",
        "half": "fp16",
        "float32": "fp32",
        "float": "fp32",
    }.get(value.lower(), value)


def not_comparable(value: str, given: Given) -> str:
    raise UsageError("the two options count different things")


def axis(name: str) -> Callable[[str, Given], str]:
    return lambda value, given: f"{name}={count(value)}"


def _context(given: Given) -> int:
    if text := given.get("--n-ctx"):
        return count(text)
    return _paper(given).n_ctx


def _batch(given: Given) -> int:
    return (
        count(given["--batch-tokens"] or "")
        if "--batch-tokens" in given
        else _paper(given).batch_tokens
    )


def _paper(given: Given) -> Any:
    from gptcli.model.config import find_size

    return find_size(given["--size"] or "")


def _table(
    *rows: tuple[str, str] | tuple[str, str, str] | tuple[str, str, str, Any],
) -> dict[str, Ours]:
    """Rows of (words typed, our words, note, conversion) as a table by the word typed."""
    return {word: Ours(*row[1:]) for row in rows for word in row[0].split()}


SHAPE = _table(
    ("n-layers num-layers num-hidden-layers layers depth", "--n-layer"),
    ("n-heads num-heads num-attention-heads heads", "--n-head"),
    ("n-embd n-embed d-embd embed-dim embedding-dim hidden-size hidden-dim model-dim dim width", "--d-model"),
    ("block-size seq-len seq-length max-seq-len max-seq-length sequence-length context-length context n-positions max-position-embeddings",
     "--n-ctx"),
    ("model model-name model-type model-size model-name-or-path", "--size"),
)  # fmt: skip
SEQUENCES = "a batch is counted in tokens here, not in sequences"
IN_TOKENS = "the length of a run is counted in tokens here"
NO_DEVICE = "the GPUs that are there are used by themselves, and a processor otherwise; CUDA_VISIBLE_DEVICES= hides the GPUs"
LAYOUT = "--layout names every axis: dp=2,shard=4,tp=2,pp=2"
IN_CONFIG = "it is a key of the --config file: {} = VALUE"
TRAIN = SHAPE | _table(
    ("learning-rate max-lr peak-lr base-lr matrix-lr", "--lr"),
    ("batch-size global-batch-size train-batch-size per-step-batch-size", "--batch-tokens", SEQUENCES, sequences),
    ("total-batch-size tokens-per-step", "--batch-tokens"),
    ("per-device-train-batch-size micro-batch-size device-batch-size local-batch-size", "--micro-batch"),
    ("gradient-accumulation-steps grad-accum-steps grad-acc-steps accumulate-grad-batches acc-steps", "",
     "accumulation follows from --batch-tokens and --micro-batch: a step runs as many micro-batches as fill its batch"),
    ("epochs num-epochs num-train-epochs max-epochs", "--tokens", IN_TOKENS + ": epochs times the shards' training tokens", epochs),
    ("max-steps max-iters num-iterations train-iters iterations iters steps num-steps num-train-steps training-steps", "--tokens",
     IN_TOKENS + ": steps times --batch-tokens", steps),
    ("max-tokens train-tokens num-tokens", "--tokens"),
    ("warmup-steps warmup-iters lr-warmup-iters", "--warmup-tokens", "warm-up is counted in tokens: steps times --batch-tokens", steps),
    ("warmup-ratio lr-warmup-fraction", "--warmup-tokens", "warm-up is counted in tokens: its share of --tokens", share_of_tokens),
    ("lr-decay-iters decay-iters", "--decay-tokens", "the decay is counted in tokens: steps times --batch-tokens", steps),
    ("min-lr lr-min", "--min-lr-ratio", "the lowest rate is given as a share of --lr", share_of_rate),
    ("final-lr-frac", "--min-lr-ratio"),
    ("lr-scheduler-type lr-decay-style lr-scheduler scheduler decay-lr", "",
     "the schedule is the papers': linear warm-up, then cosine decay; --warmup-tokens, --decay-tokens and --min-lr-ratio shape it"),
    ("wd", "--weight-decay"),
    ("max-grad-norm grad-clip clip-grad gradient-clip-val clip", "", IN_CONFIG.format("clip")),
    ("adam-beta1 beta1", "", IN_CONFIG.format("beta1")),
    ("adam-beta2 beta2", "", IN_CONFIG.format("beta2")),
    ("adam-epsilon adam-eps eps", "", IN_CONFIG.format("eps")),
    ("optim optimizer-type", "", "the optimizer is AdamW, as in the papers"),
    ("dtype torch-dtype mixed-precision", "--precision", "", precision),
    ("amp", "--precision bf16"),
    ("bf16", "--precision bf16"),
    ("fp16", "--precision fp16"),
    ("fp32", "--precision fp32"),
    ("fp8", "--precision fp8"),
    ("torch-compile", "--compile on"),
    ("no-compile", "--compile off"),
    ("gradient-checkpointing activation-checkpointing recompute-activations", "--recompute full"),
    ("device cuda cpu no-cuda use-cpu accelerator gpu", "", NO_DEVICE),
    ("devices num-gpus n-gpus ngpus gpus nproc-per-node world-size", "--layout", LAYOUT, axis("dp")),
    ("tensor-parallel-size tensor-model-parallel-size tp", "--layout", LAYOUT, axis("tp")),
    ("pipeline-parallel-size pipeline-model-parallel-size pp", "--layout", LAYOUT, axis("pp")),
    ("data-parallel-size dp", "--layout", LAYOUT, axis("dp")),
    ("fsdp zero-stage", "--layout", LAYOUT, not_comparable),
    ("nnodes num-nodes", "", "torchrun -m gptcli train ... runs on several machines; examples/cluster has a job"),
    ("eval-interval val-loss-every eval-steps val-interval val-check-interval", "--eval-every"),
    ("eval-iters eval-batches limit-val-batches max-eval-batches", "--eval-tokens", "validation is counted in tokens", not_comparable),
    ("save-interval save-steps save-every checkpoint-interval ckpt-every", "--checkpoint-every"),
    ("save-total-limit keep-last", "--keep"),
    ("log-interval logging-steps log-every", "", "metrics.jsonl in the run folder has a line for every step"),
    ("wandb wandb-log use-wandb wandb-project report-to mlflow", "",
     "metrics.jsonl and report.html in the run folder hold every figure; --track tensorboard writes them for TensorBoard too"),
    ("tensorboard tensorboard-dir logging-dir log-dir", "--track tensorboard"),
    ("resume-from-checkpoint resume-from ckpt-path continue load", "--resume", "it goes on from the newest checkpoint of --out"),
    ("pretrained from-pretrained initial-checkpoint-dir checkpoint-dir load-weights", "--init-from"),
    ("dataset dataset-dir data-dir data-path train-data train-bin input-bin", "--data", "it names the shards that gpt build-shards made"),
    ("padded-vocab-size vocab-size tokenizer", "", "the vocabulary is that of the shards: gpt build-shards --tokenizer chooses it"),
    ("num-workers workers dataloader-num-workers", "", "shards are read from mapped memory; there is no number of workers to choose"),
    ("eval-tasks tasks", "--eval-task"),
    ("sample-every generate-every", "--samples", "texts are written at every checkpoint; the option is how many", not_comparable),
)  # fmt: skip
MODEL_FOLDER = "the model is the first argument"
SAMPLE = _table(
    ("max-new-tokens max-length n-predict num-tokens max-gen-toks length", "--max-tokens"),
    ("num-return-sequences n-samples nsamples number-of-samples", "--num-samples"),
    ("temp", "--temperature"),
    ("topk", "--top-k"),
    ("topp nucleus", "--top-p"),
    ("do-sample", "", "sampling is the default; --greedy takes the most probable token every time"),
    ("no-sample deterministic", "--greedy"),
    ("num-beams beams beam-size beam-width", "--beam"),
    ("rep-penalty repeat-penalty", "--repetition-penalty"),
    ("stop-sequences stop-sequence stop-strings stop-words eos", "--stop"),
    ("prompt start text input p", "PROMPT", "the prompt is the second argument"),
    (
        "model model-path model-name-or-path pretrained ckpt checkpoint-dir run out-dir init-from",
        "RUN",
        MODEL_FOLDER,
    ),
    (
        "file prompt-file prompts-file input-file",
        "--prompts",
        "a file of prompts has a JSON object a line; - reads one prompt from stdin",
    ),
    ("dtype torch-dtype", "--precision", "", precision),
    ("bf16", "--precision bf16"),
    ("fp32", "--precision fp32"),
    ("int8 load-in-8bit", "--quantize int8"),
    ("quantization", "--quantize"),
    ("cuda gpu", "--device cuda"),
    ("cpu", "--device cpu"),
    ("stream streaming", "", "text streams by itself"),
    ("interactive chat", "-i"),
    ("assistant-model draft-model speculative-model", "--draft"),
    ("logprobs log-probs", "--json", "the report holds the log-probabilities"),
)
EVAL = _table(
    ("tasks", "--task"),
    ("num-fewshot n-shot nshot fewshot k-shot", "--shots"),
    ("fewshot-seed", "--shots-seed"),
    ("eval-batch-size per-device-eval-batch-size device-batch-size", "--batch-size"),
    ("log-samples write-out", "--samples", "it names the file to write"),
    ("model model-args model-path pretrained checkpoint-dir ckpt run", "RUN", MODEL_FOLDER),
    ("data-dir dataset", "--data"),
    ("max-items num-items max-samples eval-iters", "--limit"),
    ("use-cache cache", "--records"),
    ("dtype torch-dtype", "--precision", "", precision),
    ("bf16", "--precision bf16"),
    ("cuda gpu", "--device cuda"),
    ("cpu", "--device cpu"),
    ("gen-kwargs", "", "a task's file says how its answers are generated"),
    ("list-tasks", "--list"),
    ("file", "--text"),
)
COST = SHAPE | _table(
    (
        "params parameters n-params num-params",
        "",
        "name a --size, or a shape: --n-layer, --n-head, --d-model; --optimal FLOPS finds sizes",
    ),
    ("num-gpus n-gpus ngpus devices", "--gpus"),
    ("gpu-type gpu-name device hardware accelerator", "--gpu"),
    ("price-per-hour cost-per-hour hourly-rate rate", "--price"),
    ("utilization hfu efficiency", "--mfu"),
    ("days time", "--hours", "time is given in hours", days),
    ("compute flop", "--flops"),
    ("chinchilla compute-optimal", "--optimal"),
    ("dataset-size training-tokens train-tokens num-tokens", "--tokens"),
    (
        "out output o output-path",
        "",
        "the result goes to stdout: add > FILE; --json makes it one object, --plot FILE.svg draws it",
    ),
    ("dtype", "--precision", "", precision),
    ("bf16", "--precision bf16"),
    ("sizes all compare", "--table"),
)
BUILD_SHARDS = _table(
    (
        "tokenizer-path tokenizer-name tokenizer-model tokenizer-name-or-path vocab-file",
        "--tokenizer",
    ),
    ("num-workers num-proc nproc processes jobs threads", "--workers"),
    ("shard-size tokens-per-shard", "--shard-tokens", "the size is in tokens"),
    ("val-split val-ratio val-size validation-split test-size", "--val-fraction"),
    ("input inputs input-dir data data-dir dataset files text", "INPUT", "the files are arguments"),
    ("output-prefix dest", "--out"),
    ("append-eod", "", "every document is ended by end-of-text"),
    ("shuffle", "", "documents are always shuffled; --seed chooses the order"),
)
TOKENIZE_TRAIN = _table(
    ("vocab vocabulary-size", "--vocab-size"),
    ("model-prefix", "--out"),
    ("algorithm model-type type", "--kind"),
    ("input inputs data files corpus", "INPUT", "the files are arguments"),
)
TOKENIZE_IDS = _table(
    ("tokenizer-file tokenizer-path vocab-file vocab model", "--tokenizer"),
    ("input inputs file files ids text", "INPUT", "the input is a file, or - for stdin"),
)
EVERYWHERE = _table(  # where a command has the option
    ("out-dir output-dir output-path output-file save-dir save-path", "--out"),
    ("overwrite overwrite-output-dir yes", "--force"),
    ("random-seed manual-seed rng-seed", "--seed"),
    ("config-file cfg conf", "--config"),
    ("documents-kind", "--documents"),
    ("help-all usage", "--help"),
    (
        "verbose quiet silent progress log-level",
        "",
        "progress is on stderr: 2> /dev/null hides it; --debug shows an error's traceback",
    ),
    ("profile-dir", "--profile"),
)
OF_COMMAND: dict[str, dict[str, Ours]] = {
    "gpt train": TRAIN, "gpt sample": SAMPLE, "gpt eval": EVAL, "gpt cost": COST, "gpt build-shards": BUILD_SHARDS,
    "gpt tokenize train": TOKENIZE_TRAIN, "gpt tokenize encode": TOKENIZE_IDS, "gpt tokenize decode": TOKENIZE_IDS,
}  # fmt: skip
# a word typed as a command: the command line it stands for, and what to know about it
COMMANDS = _table(
    ("generate gen infer inference complete completion predict run", "sample"),
    (
        "chat repl interactive playground",
        "sample RUN -i",
        "a model here continues text; it is not trained to converse",
    ),
    (
        "finetune fine-tune finetuning sft",
        "train --finetune TASK.toml --init-from RUN",
        "without --finetune it trains RUN further on shards",
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
        "there is no server; gpt sample RUN -i is a session at the prompt, --prompts FILE answers many prompts",
    ),
    (
        "convert export push",
        "",
        "a run folder loads in transformers as it is; llm.c, Megatron and nanoGPT read the shards",
    ),
    (
        "download pull",
        "",
        "no command downloads a model; gpt sample and gpt eval read a transformers folder of GPT-2",
    ),
    (
        "init config configure",
        "",
        "no set-up is needed; --config FILE.toml holds a command's options",
    ),
    (
        "demo",
        "",
        "make demo, in the repository, runs the whole chain; examples/quickstart has its commands",
    ),
)


def table_of(command: str, options: Iterable[str]) -> dict[str, Ours]:
    """The aliases of a command (gpt train) that has these options."""
    options = set(options)
    everywhere = {
        word: ours for word, ours in EVERYWHERE.items() if not ours.option or ours.option in options
    }
    return {
        word: ours
        for word, ours in (everywhere | OF_COMMAND.get(command, {})).items()
        if "--" + word not in options
    }


def find(word: str, table: Mapping[str, Ours]) -> Ours | None:
    """What a word, with or without dashes, underscores and a prefix such as train. or --training.,
    is called here.
    """
    bare = word.lstrip("-").replace("_", "-").lower()
    return table.get(bare) or table.get(bare.rpartition(".")[2])


def is_assignment(command: str, word: str, options: Mapping[str, Any]) -> bool:
    """Whether an argument is an option spelled name=value, and no file."""
    name = "--" + word.partition("=")[0].lstrip("+").replace("_", "-")
    known = name in options or "--" + name.rpartition(".")[2] in options
    return (known or find(name, table_of(command, options)) is not None) and not Path(word).exists()


def answer_word(command: str, args: list[str], takes: Mapping[str, bool], word: Word) -> UsageError:
    """The error for a word of `args` that `command` does not understand; `takes` says of its
    options whether they take a value.
    """
    table = table_of(command, takes)
    line = corrected(command, args, takes)
    lists = f"{command} --help lists all options"
    if not word.name:
        return _stray(command, args, takes, word, line)
    two = "-" + word.name
    if (
        len(word.name) > 2
        and not word.name.startswith("--")
        and (two in takes or find(word.name, table))
    ):
        name = two if two in takes else (find(word.name, table) or Ours("")).words or two
        return UsageError(
            "an option's name begins with two dashes",
            where=word.name,
            hint=line or f"{name}; {lists}",
        )
    if (ours := find(word.name, table)) is not None:
        if not ours.words:
            return UsageError(
                f"{command} has no such option", where=word.name, hint=f"{ours.note}\n{lists}"
            )
        what = (
            f"{command} calls this {ours.words}"
            if ours.option
            else f"{command} takes it as {ours.words}"
        )
        return UsageError(
            f"{what}; {ours.note}" if ours.note else what, where=word.name, hint=line or lists
        )
    short = "--" + word.name.rpartition(".")[2].lstrip("-")
    if short in takes:
        return UsageError(f"{command} calls this {short}", where=word.name, hint=line or lists)
    for prefix in ("--no-", "--disable-"):
        flag = "--" + word.name.removeprefix(prefix)
        if word.name.startswith(prefix) and takes.get(flag) is False:
            return UsageError(
                "a flag is off unless given",
                where=word.name,
                hint=f"leave out {word.name}; {flag} switches it on",
            )
    close = _close(word.name, takes, table)
    return UsageError(
        f"{command} has no such option",
        where=word.name,
        hint=f"did you mean {close}? {lists}" if close else lists,
    )


def _close(name: str, takes: Mapping[str, bool], table: Mapping[str, Ours]) -> str:
    """Our option nearest to a misspelt one, directly or through an alias."""
    choices = {option: option for option in takes} | {
        "--" + word: ours.option for word, ours in table.items() if ours.option
    }
    close = close_to(name, choices)
    return choices[close[0]] if close else ""


def _stray(
    command: str, args: list[str], takes: Mapping[str, bool], word: Word, line: str
) -> UsageError:
    """An argument too many, or an option without dashes."""
    value = str(word.value)
    if is_assignment(command, value, takes):
        return UsageError(
            "an option begins with two dashes",
            where=value,
            hint=line or f"--{value}; {command} --help lists all options",
        )
    if command == "gpt sample":
        arguments = [str(one.value) for one in read_words(args, takes.get) if not one.name]
        options = [
            part
            for one in read_words(args, takes.get)
            if one.name
            for part in (one.name, one.value)
            if part is not None
        ]
        prompt = shlex.join(["gpt", "sample", arguments[0], " ".join(arguments[1:]), *options])
        return UsageError(
            "the prompt is several words",
            where=arguments[2] or "PROMPT",
            hint=f"quote it:\n{prompt}",
        )
    return UsageError(
        "unexpected argument", where=value, hint=f"{command} --help shows usage and examples"
    )


def corrected(command: str, args: list[str], takes: Mapping[str, bool]) -> str:
    """The command line in our words, quoted for a shell; empty if some of it cannot be carried
    over.
    """
    table = table_of(command, takes)

    def takes_value(name: str) -> bool | None:
        if name in takes:
            return takes[name]
        known = _option_for(name, takes)
        if known:
            return takes[known]
        ours = find(name, table)
        if ours is None:
            return None
        return None if ours.whole or not ours.words else not ours.option or takes[ours.option]

    words = list(read_words([_dashed(word, command, takes) for word in args], takes_value))
    given = {
        (
            _option_for(word.name, takes) or (find(word.name, table) or Ours(word.name)).words
        ): word.value
        for word in words
        if word.name
    }
    options: list[str] = []
    first: list[str] = []
    last: list[str] = []
    dropped: str | None = None
    for word in words:
        if not word.name:
            if str(word.value).lower() not in ("true", "false", "1", "0") or dropped is None:
                first.append(str(word.value))
            dropped = None
            continue
        ours = find(word.name, table)
        if known := _option_for(word.name, takes):
            options += [known] if word.value is None or not takes[known] else [known, word.value]
        elif (
            ours is None
            or not ours.words
            or (word.value is None and not ours.whole and takes.get(ours.option, True))
        ):
            return ""
        elif ours.whole or takes.get(ours.option) is False:
            options += ours.words.split()
            dropped = word.name
        else:
            try:
                value = (
                    str(word.value)
                    if ours.convert is None
                    else ours.convert(str(word.value), given)
                )
            except (GptError, KeyError, OSError):
                return ""
            if ours.words == "RUN":
                first.insert(0, value)
            elif not ours.option:
                last.append(value)
            elif ours.option == "--layout" and "--layout" in options:
                options[options.index("--layout") + 1] += f",{value}"
            else:
                options += [ours.option, value]
    return shlex.join([*command.split(), *first, *last, *options])


def _option_for(name: str, takes: Mapping[str, bool]) -> str | None:
    """The option meant by --name, -name or --group.name."""
    for candidate in (name, "-" + name, "--" + name.rpartition(".")[2].lstrip("-")):
        if candidate in takes:
            return candidate
    return None


def _dashed(word: str, command: str, takes: Mapping[str, bool]) -> str:
    """name=value as --name=value."""
    return (
        "--" + word.lstrip("+")
        if not is_option(word) and "=" in word and is_assignment(command, word, takes)
        else word
    )


def answer_command(program: str, args: list[str], commands: list[str]) -> UsageError:
    """The error for a word that is not a command of `program`."""
    typed, rest = args[0], args[1:]
    what = f"{program} has no such command"
    if program != "gpt":
        close = close_to(typed, commands)
        lead = f"did you mean {close[0]}?" if close else f"its commands are {', '.join(commands)}:"
        return UsageError(
            what,
            where=typed,
            hint=f"{lead}\n{shlex.join([*program.split(), (close or commands)[0], *(rest if close else args)])}",
        )
    if (ours := COMMANDS.get(typed.replace("_", "-").lower())) is not None:
        if not ours.words:
            return UsageError(what, where=typed, hint=f"{ours.note}\ngpt --help lists the commands")
        called = f"gpt calls this {ours.words.split()[0]}"
        line = (
            f"gpt {ours.words}"
            if "RUN" in ours.words
            else shlex.join(["gpt", *ours.words.split(), *rest])
        )
        return UsageError(f"{called}; {ours.note}" if ours.note else called, where=typed, hint=line)
    choices = {name: name for name in commands} | {
        word: ours.words.split()[0] for word, ours in COMMANDS.items() if ours.words
    }
    if close := close_to(typed, choices):
        meant = choices[close[0]]
        return UsageError(
            what, where=typed, hint=f"did you mean {meant}?\n{shlex.join(['gpt', meant, *rest])}"
        )
    if named := next((word for word in rest if word in commands), None):
        others = [word for word in args if word != named]
        return UsageError(
            "the command comes first", where=typed, hint=shlex.join(["gpt", named, *others])
        )
    return UsageError(
        what,
        where=typed,
        hint=f"its commands are {', '.join(commands)}; gpt --help says what they do",
    )


def answer_early_option(
    program: str, args: list[str], commands: list[str], option: str
) -> UsageError:
    """The error for an option before the command that it belongs to."""
    if named := next((word for word in args if word in commands), None):
        at = args.index(named)
        line = shlex.join([*program.split(), named, *args[:at], *args[at + 1 :]])
        return UsageError(
            "options come after the command", where=option.partition("=")[0], hint=line
        )
    return UsageError(
        f"{program} has no such option",
        where=option.partition("=")[0],
        hint=f"{program} --help lists commands and options",
    )


def answer_key(command: str, key: str, names: Iterable[str]) -> str:
    """What to write for a key that a configuration file of `command` does not have: the hint of an
    error.
    """
    names = list(names)
    takes = {"--" + name.replace("_", "-"): True for name in names}
    table = table_of(command, takes)
    name = key.replace("_", "-")
    if (ours := find(name, table)) is not None and ours.option in takes:
        written = ours.words.removeprefix("--").replace("-", "_").partition(" ")
        said = f'{written[0]} = "{written[2]}"' if written[2] else written[0]
        return f"here it is called {said}" + (f": {ours.note}" if ours.note else "")
    if ours is not None and ours.note:
        return ours.note
    close = _close("--" + name, takes, table)
    return (
        f"did you mean {close.replace('--', '').replace('-', '_')}?"
        if close
        else f"one of: {', '.join(names)}"
    )
