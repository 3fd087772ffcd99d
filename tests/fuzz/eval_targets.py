"""The evaluations' readers: task files, the original formats of the tasks' data, and the records
that a killed evaluation left.

What is read becomes items, solved examples and tokens, as it would for a model; nothing is asked of
one.
"""

from __future__ import annotations

import bz2
import contextlib
import json
from pathlib import Path
from typing import Any

from gptcli.errors import GptError
from gptcli.evals.fewshot import FewShotConfig
from gptcli.evals.find_data import find_data
from gptcli.evals.records import Records, completion_record
from gptcli.evals.requests import build_task_requests, item_text
from gptcli.evals.results import item_score
from gptcli.evals.task import Task, find_task, read_task
from gptcli.evals.task_data import format_example
from gptcli.sampling.generate import Completion
from gptcli.tokenizer.tokenizer import END_OF_TEXT, Tokenizer, byte_alphabet
from tests.fuzz.engine import Files, Target

N_CTX = 256
TOML = b"""title = "t"
source = "s"
files = {items = "items*", shots = "train*"}
reader = "jsonl"
kind = "choice"
instruction = "Say."
prompt = "{query}: {{}}"
choices = "choices"
choice = " {choice}"
gold = "gold"
group = "id"
normalise = "unconditional"
unconditional = "A:"
metric = ["accuracy"]
where = {kind = "x"}
[paper]
accuracy = "gpt3_table_h1.hellaswag"
"""
FREE = b"""title = "t"
source = "s"
files = {items = "items*"}
reader = "jsonl"
kind = "freeform"
prompt = "Q: {query}"
answers = "answers"
answer = " It is {answer}."
metric = ["exact_match", "f1"]
sentences = 1
stop = ["."]
beam = 2
max_tokens = 3
"""
TEXT = b"""title = "t"
source = "s"
files = {items = "items*"}
reader = "text"
kind = "text"
target = "{text}"
detokenize = "wikitext"
metric = ["bits_per_byte"]
"""
PARTS = b"""title = "t"
source = "s"
files = {items = "items*"}
reader = "jsonl"
kind = "partial"
contexts = "choices"
target = " {query}"
gold = "gold"
shot = "{query}!"
delimiter = "\\n"
[where]
kind = "x"
"""
ROWS = b"""{"kind": "x", "query": "one", "choices": ["a", "b"], "gold": 0, "answers": ["a"]}
{"kind": "x", "query": "two", "choices": ["a", "c"], "gold": [1], "answers": "b"}
"""
XML = """<collection><schema><text><txt1>Ann saw Joan.</txt1><pron>She</pron><txt2>waved.</txt2></text>
<answers><answer>Ann</answer><answer>the Joan</answer></answers><correctAnswer>B.</correctAnswer></schema></collection>"""
STORY = "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2"
SAT = "1 FROM REAL SATs\nlull trust v:n\nbalk fortitude v:n\nbetray loyalty v:n\ncajole compliance v:n\nhinder aim v:n\nsoothe it v:n\nc\n"
DATE = {"day": "", "month": "May", "year": "1983"}
# by the module of their reader: files of tasks, as "task/file"
FORMATS: dict[str, dict[str, Any]] = {
    "choice": {
        "arc_easy/a.jsonl": {
            "id": "M",
            "question": {"stem": "Why?", "choices": [{"text": "so", "label": "1"}, {"text": "thus", "label": "2"}]},
            "answerKey": "2",
        },
        "hellaswag/a.jsonl": {"activity_label": "Roof", "ctx_a": "A man.", "ctx_b": "he", "label": 3, "endings": ["a [title]", "b", "c"]},
        "hellaswag/a.txt.bz2": bz2.compress(b"Roof: A man. he\n3\na\nb\nc\nd\n"),
        "story_cloze/a.csv": f'{STORY},AnswerRightEnding\ns-1,One.,"Two, too.",Three.,Four.,Five.,Six.,2\n',
        "piqa/dev.jsonl": {"id": "x", "goal": "how", "sol1": "so", "sol2": "thus"},
        "piqa/dev-labels.lst": "1\n",
        "race_h/7.txt": {"article": "It is.", "questions": ["Is _ ?"], "options": [["a", "b", "c", "d"]], "answers": ["D"]},
        "anli_r1/a.jsonl": {"uid": "1", "context": "p", "hypothesis": "h", "label": "n"},
        "sat_analogies/SAT.txt": SAT,
    },
    "cloze": {
        "lambada/a.jsonl": {"text": "He said\n\nto Shane"},
        "cbt_cn/a.txt": "1 It was n't so , ` he said ' .\n2 Yes .\n3 He saw the XXXXX , and ran .\tdog\t\tcat|dog|ogre\n\n",
        "winogrande/a.jsonl": {"qID": "q-1", "sentence": "Ann beat Jo as _ was fast.", "option1": "Ann", "option2": "Joan", "answer": "1"},
        "winograd/a.xml": XML,
        "winograd_full/a.jsonl": {"context_options": ["Ann", "Joan"], "continuation": "ran.", "gold": 0},
    },
    "reading": {
        "squad_v2/a.json": {
            "data": [
                {
                    "title": "T",
                    "paragraphs": [{"context": "C", "qas": [{"id": "1", "question": "Where?", "answers": [{"text": "here"}]}]}],
                }
            ]
        },
        "quac/a.json": {
            "data": [
                {
                    "title": "T",
                    "section_title": "S",
                    "paragraphs": [{"context": "C", "qas": [{"id": "1_q#0", "question": "Who?", "answers": [{"text": "he"}]}]}],
                }
            ]
        },
        "coqa/a.json": {
            "data": [
                {
                    "id": "s",
                    "story": "Once.",
                    "questions": [{"input_text": "Who?"}],
                    "answers": [{"input_text": "he"}],
                    "additional_answers": {"0": [{"input_text": "him"}]},
                }
            ]
        },
        "coqa/b.jsonl": {"id": "s", "story": "Once.", "turns": [{"question": "Who?", "answers": ["he"]}]},
        "drop/a.json": {
            "nfl": {
                "passage": "P",
                "qa_pairs": [
                    {
                        "query_id": "a",
                        "question": "When?",
                        "answer": {"number": "", "date": DATE, "spans": []},
                        "validated_answers": [{"number": "3", "date": DATE, "spans": []}, {"number": "", "date": DATE, "spans": ["x"]}],
                    }
                ],
            }
        },
        "trivia_qa/a.json": {"Data": [{"QuestionId": "q", "Question": "Where?", "Answer": {"Value": "Delhi", "Aliases": ["New Delhi"]}}]},
        "natural_questions/a.jsonl": {"question": "who wrote it", "answer": ["Ann", "A. Lee"]},
        "web_questions/a.json": [{"utterance": "what?", "targetValue": '(list (description "Lightning rod") (description Bifocals))'}],
    },
    "superglue": {
        "boolq/a.jsonl": {"idx": 7, "passage": "Fuel", "question": "is it so", "label": False},
        "boolq/b.jsonl": {"idx": 7, "query": "Fuel\nQuestion: is it so?\nAnswer:", "choices": ["yes", "no"], "gold": 1},
        "cb/a.jsonl": {"premise": "p", "hypothesis": "h", "idx": 0, "label": "neutral"},
        "copa/a.jsonl": {"premise": "He slept.", "choice1": "I saw.", "choice2": "It rose.", "question": "cause", "label": 1, "idx": 0},
        "wic/a.jsonl": {"word": "class", "sentence1": "A class.", "sentence2": "Real class.", "idx": 3, "label": False},
        "wsc/a.jsonl": {
            "text": "Mr. Lee visited Ann , his sister .",
            "target": {"span1_text": "Mr. Lee", "span2_index": 5, "span2_text": "his"},
            "idx": 0,
            "label": True,
        },
        "multirc/a.jsonl": {
            "idx": 1,
            "passage": {"text": "P", "questions": [{"question": "Who?", "idx": 3, "answers": [{"text": "he", "idx": 1, "label": 1}]}]},
        },
        "record/a.jsonl": {
            "idx": 2,
            "passage": {"text": "Ann met Lee.\n@highlight\nIt rained", "entities": [{"start": 0, "end": 2}, {"start": 8, "end": 10}]},
            "qas": [{"query": "Then @placeholder went.", "idx": 5, "answers": [{"text": "Ann"}]}],
        },
    },
    "pairs": {
        "wmt14_en_fr/newstest2014-fren-src.en.sgm": '<seg id="1">Q &amp; A</seg>\n<seg id="2">two</seg>',
        "wmt14_en_fr/newstest2014-fren-ref.fr.sgm": '<seg id="1">Q et R</seg>\n<seg id="2">deux</seg>',
        "cnn_dailymail/a.story": "An article.\n\n@highlight\n\nOne thing\n\n@highlight\n\nAnother\n",
        "enwik8/enwik8": "<page>One — two</page>\n" * 9,
        "wikitext2/wiki.test.tokens": " = Title = \n The 9 @.@ 5 dogs , and ( it ) 's @-@ fine . \n",
        "ptb/ptb.test.txt": " mr. <unk> is n't N years old \n",
        "one_billion_words/news.txt": "He said , \" no . \" It is n't .\n",
        "two_digit_addition/a.jsonl": {"context": "\n\nQ: 1?\n\nA:", "completion": " 2"},
    },
}  # fmt: skip


def eval_targets() -> list[Target]:
    tasks = {"choice": TOML, "free form": FREE, "text": TEXT, "partial": PARTS}
    return [
        *(task_file(f"task: {kind}", toml) for kind, toml in tasks.items()),
        *map(formats, FORMATS),
        records(),
    ]


def asked(
    task: Task, tokenizer: Tokenizer, path: Path | None, data: Path | None, shots: int
) -> None:
    """All that is done with data before a model is asked; with free form, also what is done with
    its answer.
    """
    found = build_task_requests(task, tokenizer, N_CTX, path, data, FewShotConfig(shots=shots))
    for request in found.requests[:20]:
        item_text(request.item)
        format_example(task, request.item)
        if task.kind == "freeform":
            item_score(
                task,
                completion_record(
                    task, request, Completion("It is a. It is b.", [1], [-1.0], "stop", 0.0)
                ),
            )


def task_file(name: str, toml: bytes) -> Target:
    tokenizer = Tokenizer([*byte_alphabet(), END_OF_TEXT], [])

    def read(folder: Path) -> None:
        task = read_task(folder / "task.toml")
        asked(task, tokenizer, find_data(task, folder), folder, shots=int(task.kind != "text"))

    return Target(name, {"task.toml": toml, "items.jsonl": ROWS}, read)


def formats(module: str) -> Target:
    """Files of several formats, each read by the task that it belongs to; at first all of them,
    then those of the task that was changed.
    """
    tokenizer = Tokenizer([*byte_alphabet(), END_OF_TEXT], [])
    files = {name: _spelt(value) for name, value in FORMATS[module].items()}
    tasks = {
        name: find_task(name.partition("/")[0])
        for name in files
        if not name.endswith((".lst", "ref.fr.sgm"))
    }  # which stand beside others

    def read(folder: Path) -> None:
        changed = [name for name in files if (folder / name).read_bytes() != files[name]]
        for name, task in tasks.items():
            if not changed or any(
                one.partition("/")[0] == name.partition("/")[0] for one in changed
            ):
                with contextlib.suppress(GptError, OSError):
                    asked(task, tokenizer, folder / name, None, shots=0)

    return Target(f"eval data: {module}", files, read)


def _spelt(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    return (
        value if isinstance(value, str) else json.dumps(value, separators=(",", ":")) + "\n"
    ).encode()


def records() -> Target:
    work = {"data_sha256": "0"}

    def read(folder: Path) -> None:
        kept = Records(folder, "t", work)
        kept.contains_all(range(2))
        kept.finish()

    header = json.dumps({"format": 1, "task": "t", **work})
    files: Files = {
        "t.jsonl": f'{header}\n{{"index": 0, "id": "a"}}\n'.encode(),
        "t.jsonl.1": f'{header}\n{{"index": 1}}\n'.encode(),
    }
    return Target("eval records", files, read)
