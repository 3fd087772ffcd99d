"""Data of tasks: finding files, building items of every kind, refusing broken rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gptcli.errors import InputError, UsageError
from gptcli.evals.find_data import find_data, find_examples
from gptcli.evals.task import Task, find_task, read_task
from gptcli.evals.task_data import Item, correct_choice, format_example, read_items
from gptcli.tokenizer.load import load_tokenizer

HEAD = 'title = "t"\nsource = "s"\nfiles = {items = "*.jsonl"}\nreader = "jsonl"\n'
WORD = HEAD + 'kind = "last_word"\nprompt = "{text}"\n'
CHOICE = HEAD + 'kind = "choice"\nprompt = "Q: {q}\\nA:"\nchoices = "c"\ngold = "g"\n'


def written(folder: Path, toml: str, *rows: object) -> tuple[Task, Path]:
    """Return a task with this TOML text and a data file with these rows."""
    (folder / "mine.toml").write_text(toml)
    (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_task(folder / "mine.toml"), folder / "a.jsonl"


def test_data_is_found_in_the_folder_or_its_subfolder_or_by_path(tmp_path: Path) -> None:
    task = find_task("lambada")
    below = tmp_path / "lambada" / "lambada_test.jsonl"
    below.parent.mkdir()
    below.touch()
    assert (
        find_data(task, tmp_path)
        == find_data(task, below.parent)
        == find_data(task, below)
        == below
    )
    (tmp_path / "lambada.jsonl").touch()
    assert find_data(task, tmp_path) == tmp_path / "lambada.jsonl"
    (tmp_path / "lambada_2.jsonl").touch()
    with pytest.raises(InputError, match=r"2 files match.*\n.*lambada\.jsonl, lambada_2\.jsonl"):
        find_data(task, tmp_path)


def test_missing_data_is_refused(tmp_path: Path) -> None:
    task = find_task("lambada")
    with pytest.raises(UsageError, match="name a folder that contains"):
        find_data(task, None)
    with pytest.raises(InputError, match="no file matches"):
        find_data(task, tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
        find_data(task, tmp_path / "gone")


def test_examples_come_from_their_own_file_or_the_items(tmp_path: Path) -> None:
    task, items = written(
        tmp_path, WORD.replace("}\n", ', shots = "train*"}\n', 1), {"text": "a b"}
    )
    assert find_examples(task, items, tmp_path) == items
    (tmp_path / "train.jsonl").touch()
    assert find_examples(task, items, tmp_path) == tmp_path / "train.jsonl"


def test_a_choice_item_is_built_from_its_row(tmp_path: Path) -> None:
    row = {"id": 7, "q": "{x}?", "c": ["yes", "no"], "g": 1}
    task, path = written(
        tmp_path,
        CHOICE + 'unconditional = "A:"\nwhere = {split = "dev"}\n',
        {**row, "split": "dev"},
        {**row, "split": "test"},
    )
    [item] = read_items(task, path)
    assert item == Item(
        id="7",
        prompt="Q: {x}?\nA:",
        choices=(" yes", " no"),
        answers=("yes", "no"),
        gold=(1,),
        unconditional="A:",
    )
    assert format_example(task, item) == "Q: {x}?\nA: no"


def test_choices_listed_by_the_task_are_used(tmp_path: Path) -> None:
    task, path = written(
        tmp_path,
        CHOICE.replace('choices = "c"', 'choices = ["True", "False", "Both"]\nchoice = "{choice}"'),
        {"q": "?", "g": [0, 2]},
    )
    [item] = read_items(task, path)
    assert (item.choices, item.gold, item.id) == (("True", "False", "Both"), (0, 2), "a.jsonl:1")


@pytest.mark.parametrize(
    ("choices", "gold", "message"),
    [
        (["a", "b", "c", "d"], [0, 0, 1, 0], "marks a choice as correct twice"),
        (["yes", "no"], [True, False], "no choice is wrong: there are 2"),
        (["a", "b"], [0, 1], "no choice is wrong: there are 2"),
        (["a"], 0, "there is only one choice: 'a'"),
        ("a|b", 0, r"there is only one choice: 'a\|b'"),
        ("['a', 'b']", "A", "there is only one choice"),
    ],
)
def test_an_item_that_every_model_gets_right_is_refused(
    tmp_path: Path, choices: object, gold: object, message: str
) -> None:
    task, path = written(tmp_path, CHOICE, {"q": "?", "c": choices, "g": gold})
    with pytest.raises(InputError, match=rf"a\.jsonl:1: .*{message}"):
        read_items(task, path)


def test_a_partial_item_is_built_from_its_row(tmp_path: Path) -> None:
    task, path = written(
        tmp_path,
        HEAD + 'kind = "partial"\ncontexts = "c"\ntarget = " {t}"\ngold = "g"',
        {"c": ["It", "He"], "t": "ran.", "g": 0},
    )
    [item] = read_items(task, path)
    assert (item.contexts, item.target, item.gold) == (("It", "He"), " ran.", (0,))
    assert format_example(task, item) == "It ran."


def test_a_freeform_item_is_built_from_its_row(tmp_path: Path) -> None:
    toml = (
        HEAD
        + 'kind = "freeform"\nprompt = "{q}\\n"\nanswers = "a"\nanswer = "A: {answer}"\nmetric = ["exact_match"]'
    )
    task, path = written(tmp_path, toml, {"q": "?", "a": ["one", "1"]}, {"q": "!", "a": "two"})
    first, second = read_items(task, path)
    assert (first.answers, second.answers) == (("one", "1"), ("two",))
    assert format_example(task, first) == "?\nA: one"


def test_the_target_is_the_last_word_or_a_template(tmp_path: Path) -> None:
    task, path = written(tmp_path, WORD, {"text": "the cat\non the mat"}, {"text": "two  words"})
    assert [(item.prompt, item.target) for item in read_items(task, path)] == [
        ("the cat\non the", " mat"),
        ("two ", " words"),
    ]
    named, path = written(
        tmp_path,
        WORD + 'target = " {word}"\nshot = "{text} ____. -> {word}"',
        {"text": "the", "word": "mat"},
    )
    [item] = read_items(named, path, limit=1)
    assert (item.prompt, item.target, format_example(named, item)) == (
        "the",
        " mat",
        "the ____. -> mat",
    )


@pytest.mark.parametrize(
    ("toml", "row", "message"),
    [
        (WORD, {"txt": "a b"}, "has no field 'text'"),
        (WORD, {"text": None}, "has no field 'text'"),
        (WORD, {"text": ["a b"]}, "the field 'text' is not text"),
        (WORD, {"text": "word"}, "no last word"),
        (WORD, {"text": "a b "}, "no last word"),
        (WORD, {"text": " b"}, "no last word"),
        (CHOICE, {"q": "?", "c": [], "g": 0}, "is not a non-empty list of texts"),
        (CHOICE, {"q": "?", "c": [1, 2], "g": 0}, "not a non-empty list of texts"),
        (
            CHOICE,
            {"q": "?", "c": ["a", "b"], "g": 2},
            "the correct choice is 2, but there are 2 choices",
        ),
        (CHOICE, {"q": "?", "c": ["a", "b"], "g": -1}, "the correct choice is -1"),
        (CHOICE, {"q": "?", "c": ["a", "b"], "g": "C"}, "the correct choice is 'C'"),
        (CHOICE, {"q": "?", "c": ["a", "b"], "g": []}, "no choice is marked as correct"),
    ],
)
def test_a_broken_item_is_refused_with_its_id(
    tmp_path: Path, toml: str, row: object, message: str
) -> None:
    task, path = written(tmp_path, toml, {"text": "a b", "q": "?", "c": ["a", "b"], "g": 0}, row)
    with pytest.raises(InputError) as caught:
        read_items(task, path)
    assert message in str(caught.value)
    assert "a.jsonl:2" in str(caught.value)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    task, path = written(tmp_path, WORD)
    with pytest.raises(InputError, match="no items"):
        read_items(task, path)


@pytest.mark.real_data
def test_lambada_items_with_gpt2s_vocabulary(real_data: Path) -> None:
    task, gpt2 = find_task("lambada"), load_tokenizer(real_data / "gpt2-vocab")
    items = read_items(task, find_data(task, real_data))
    targets = gpt2.encode_batch([item.target for item in items])
    assert len(items) == 5153
    assert round(100 * sum(len(target) == 1 for target in targets) / len(items), 1) == 77.8
    file = find_data(task, real_data)
    assert file is not None
    lines = [json.loads(line)["text"] for line in file.read_text(encoding="utf-8").splitlines()]
    contexts = gpt2.encode_batch([item.prompt for item in items])
    assert [
        context + target for context, target in zip(contexts, targets, strict=True)
    ] == gpt2.encode_batch(lines)


@pytest.mark.parametrize(
    ("value", "choices", "index"),
    [
        (1, ["a", "b"], 1),
        (1.0, ["a", "b"], 1),
        ("1", ["a", "b"], 1),
        ("1.0", ["a", "b"], 1),
        ("B", ["x", "y"], 1),
        ("b", ["x", "y"], 1),
        ("y", ["x", "y"], 1),
        (" y", ["x", "y "], 1),
        (True, ["yes", "no"], 0),
        (False, ["yes", "no"], 1),
        (True, ["No", "Yes"], 1),
        (False, ["true", "false"], 1),
        ("True", ["no", "yes"], 1),
        ("yes", ["no", "yes"], 1),
        ("A", ["A", "B"], 0),
        ("0", ["0", "1"], 0),
    ],
)
def test_a_gold_label_names_a_choice(value: object, choices: list[str], index: int) -> None:
    assert correct_choice(value, choices, None, "a:1") == index


@pytest.mark.parametrize(
    ("value", "choices", "what"),
    [
        (True, ["a", "b"], "but there are 2 choices"),
        (True, ["yes", "no", "maybe"], "but there are 3 choices"),
        (2, ["a", "b"], "but there are 2 choices"),
        (-1, ["a", "b"], "but there are 2 choices"),
        (0.5, ["a", "b"], "but there are 2 choices"),
        ("C", ["a", "b"], "but there are 2 choices"),
        ("", ["a", "b"], "but there are 2 choices"),
        ("2", ["1", "2", "3"], "ambiguous: choice 1 by its text, choice 2 by its index from 0"),
        ("B", ["B", "A"], "ambiguous"),
        ("x", ["x", "x"], "but there are 2 choices"),
        (None, ["a", "b"], "but there are 2 choices"),
    ],
)
def test_an_ambiguous_or_impossible_gold_label_is_refused(
    value: object, choices: list[str], what: str
) -> None:
    with pytest.raises(InputError, match=what):
        correct_choice(value, choices, None, "a:1")


def test_labels_say_what_a_gold_label_is() -> None:
    assert correct_choice("2", ["1", "2", "3"], ["1", "2", "3"], "a:1") == 1
    assert correct_choice(4, list("abcd"), ["1", "2", "3", "4"], "a:1") == 3
    with pytest.raises(InputError, match="the correct choice is '5', not one of 1, 2"):
        correct_choice("5", ["a", "b"], ["1", "2"], "a:1")


def test_choices_from_columns_of_a_table_and_labels_of_a_field(tmp_path: Path) -> None:
    table = HEAD.replace("*.jsonl", "*.csv").replace('"jsonl"', '"table"')
    (tmp_path / "mine.toml").write_text(
        f'{table}kind = "choice"\nprompt = "{{q}}"\nchoices = ["{{A}}", "{{B}}"]\ngold = "key"\n'
    )
    (tmp_path / "a.csv").write_text("id,q,A,B,key\n7,why?,so,no,B\n7,how?,1,2,B\n")
    task = read_task(tmp_path / "mine.toml")
    items = read_items(task, tmp_path / "a.csv")
    assert [(item.choices, item.gold, item.key) for item in items] == [
        ((" so", " no"), (1,), "7"),
        ((" 1", " 2"), (1,), "7#2"),
    ]
    task, path = written(
        tmp_path,
        HEAD + 'kind = "choice"\nprompt = "{q.text}"\nchoices = "c.text"\nlabels = "c.label"\n'
        'gold = "key"\n',
        {"q": {"text": "why?"}, "c": {"text": ["so", "no"], "label": ["1", "2"]}, "key": "2"},
    )
    [item] = read_items(task, path)
    assert (item.prompt, item.choices, item.gold) == ("why?", (" so", " no"), (1,))


def test_the_line_of_a_broken_row_is_named_even_if_it_has_an_id(tmp_path: Path) -> None:
    rows = ({"id": "x", "q": "", "c": ["a", "b"], "g": 0}, {"id": "x", "q": "", "c": ["a"], "g": 3})
    task, path = written(tmp_path, CHOICE, *rows)
    with pytest.raises(InputError, match=r"a\.jsonl:2"):
        read_items(task, path)


def test_a_limit_reads_no_row_more(tmp_path: Path) -> None:
    task, path = written(tmp_path, WORD, {"text": "a b"}, {"text": "c d"})
    with open(path, "a") as file:
        file.write("{broken\n")
    assert len(read_items(task, path, 2)) == 2
    with pytest.raises(InputError, match=r"a\.jsonl:3"):
        read_items(task, path, 3)
