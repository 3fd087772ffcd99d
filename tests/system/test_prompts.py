"""Prompts of GPT-3's Appendix G: each of its 51 figures, byte for byte, from its data set's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptcli.evals.find_data import find_data
from gptcli.evals.task import find_task, task_names
from gptcli.evals.task_data import Item, format_example, read_items

TURNS = "Q: One?\n\nA: first\n\nQ: Two _ .\n\nA: second\n\n"
RACE = {
    "id": "high1.txt",
    "article": "An article.\n\nIn two parts.",
    "questions": ["One?", "Two _ .", "The author considers politics and religion _ ."],
    "options": [["first", "b", "c", "d"], ["a", "second", "c", "d"], ["taboo", "x", "y", "z"]],
    "answers": ["A", "B", "A"],
}
SQUAD = {
    "data": [
        {
            "title": "The_Blitz",
            "paragraphs": [
                {
                    "context": "The Luftwaffe flew 4,000 sorties.",
                    "qas": [
                        {"id": "1", "question": "How many?", "answers": [{"text": "4,000"}]},
                        {"id": "2", "question": "When?", "answers": [{"text": "at night"}]},
                        {"id": "3", "question": "Why?", "answers": []},
                    ],
                }
            ],
        }
    ]
}
QUAC = {
    "data": [
        {
            "title": "William Perry (American football)",
            "section_title": "Professional career",
            "paragraphs": [
                {
                    "context": "In 1985, he was selected. CANNOTANSWER",
                    "qas": [
                        {
                            "id": "C_1_q#0",
                            "question": "what team?",
                            "answers": [{"text": "the Bears"}],
                        },
                        {
                            "id": "C_1_q#1",
                            "question": "who won?",
                            "answers": [{"text": "CANNOTANSWER"}],
                        },
                    ],
                }
            ],
        }
    ]
}
MULTIRC = {
    "idx": 1,
    "passage": {
        "text": "A passage.",
        "questions": [
            {
                "idx": 0,
                "question": "Who should visit?",
                "answers": [
                    {"idx": 0, "text": "Bin Laden", "label": 0},
                    {"idx": 1, "text": "Clinton", "label": 1},
                ],
            }
        ],
    },
}
RECORD = {
    "idx": 0,
    "passage": {
        "text": "(CNN) Rabin met Trump.\n@highlight\nThe son wrote\n@highlight\nWarns of it",
        "entities": [{"start": 6, "end": 10}, {"start": 16, "end": 20}],
    },
    "qas": [
        {
            "idx": 0,
            "query": "He condemned @placeholder's rhetoric.",
            "answers": [{"start": 16, "end": 20, "text": "Trump"}],
        }
    ],
}
WSC = {
    "text": "Mr. Moncrieff visited Chester 's apartment . He requires his support.",
    "target": {
        "span1_index": 0,
        "span1_text": "Mr. Moncrieff",
        "span2_index": 9,
        "span2_text": "his",
    },
    "idx": 1,
    "label": True,
}
COQA = {
    "data": [
        {
            "id": "s",
            "story": "Helsinki is the capital.",
            "questions": [{"input_text": "One?"}, {"input_text": "what towns?"}],
            "answers": [{"input_text": "first"}, {"input_text": "Espoo"}],
        }
    ]
}
EXAM = (
    "Final Exam with Answer Key\nInstructions: Please carefully read the following passages. For "
    "each passage, you must identify which noun the pronoun marked in *bold* refers to.\n=====\n"
)
UNSCRAMBLE = "Please unscramble the letters into a word, and write that word:\n"
ANLI = {"uid": "u", "context": "It is so.", "hypothesis": "It is now gone", "label": "c"}
QUESTION = {"stem": "Why?", "choices": [{"label": "A", "text": "so"}, {"label": "B", "text": "no"}]}


def jsonl(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def synthetic(prompt: str, answer: str) -> dict[str, str]:
    return {"context": f"\n\n{prompt}", "completion": f" {answer}"}


# figure: task, file, its text, number of the item, text before the answer, answers or choices
FIGURES: dict[str, tuple[str, str, str, int, str, list[str]]] = {
    "G.1": (
        "race_h",
        "test/high/1.txt",
        json.dumps(RACE),
        2,
        "Article:\n\nAn article.\n\nIn two parts.\n\n"
        f"{TURNS}Q: The author considers politics and religion _ .\n\nA:",
        [" taboo", " x", " y", " z"],
    ),
    "G.3": (
        "race_m",
        "test/middle/1.txt",
        json.dumps({**RACE, "id": "middle1.txt"}),
        2,
        "Article:\n\nAn article.\n\nIn two parts.\n\n"
        f"{TURNS}Q: The author considers politics and religion _ .\n\nA:",
        [" taboo", " x", " y", " z"],
    ),
    **{
        figure: (
            f"anli_r{n}",
            f"R{n}/test.jsonl",
            jsonl(ANLI),
            0,
            f"anli {n}: anli {n}: It is so.\nQuestion: It is now gone True, False, or Neither?",
            [" True", " False", " Neither"],
        )
        for figure, n in (("G.2", 2), ("G.7", 1), ("G.10", 3))
    },
    "G.4": (
        "piqa",
        "valid.jsonl",
        jsonl({"goal": "How to apply sealant to wood.", "sol1": "Brush.", "sol2": "Drip."}),
        0,
        "How to apply sealant to wood.",
        [" Brush.", " Drip."],
    ),
    "G.5": (
        "copa",
        "COPA/val.jsonl",
        jsonl(
            {
                "premise": "My body cast a shadow over the grass.",
                "choice1": "The sun was rising.",
                "choice2": "The grass was cut.",
                "question": "cause",
                "label": 0,
                "idx": 0,
            }
        ),
        0,
        "My body cast a shadow over the grass because",
        [" the sun was rising.", " the grass was cut."],
    ),
    "G.6": (
        "record",
        "ReCoRD/val.jsonl",
        jsonl(RECORD),
        0,
        "(CNN) Rabin met Trump.\n\n- The son wrote\n- Warns of it\n-",
        [" He condemned Rabin's rhetoric.", " He condemned Trump's rhetoric."],
    ),
    "G.8": (
        "openbookqa",
        "test.jsonl",
        jsonl({"id": "1", "question": QUESTION, "answerKey": "A"}),
        0,
        "Why?",
        [" so", " no"],
    ),
    "G.9": (
        "hellaswag",
        "hellaswag_val.jsonl",
        jsonl(
            {
                "activity_label": "Making a cake",
                "ctx_a": "Several cake pops are shown on a display.",
                "ctx_b": "they",
                "endings": ["bake them.", "taste them.", "put it.", "come out."],
                "label": 0,
            }
        ),
        0,
        "Making a cake: Several cake pops are shown on a display. They",
        [" bake them.", " taste them.", " put it.", " come out."],
    ),
    **{
        figure: (
            f"arc_{kind.lower()}",
            f"ARC-{kind}-Test.jsonl",
            jsonl({"id": "1", "question": QUESTION, "answerKey": "B"}),
            0,
            "Question: Why?\nAnswer:",
            [" so", " no"],
        )
        for figure, kind in (("G.11", "Challenge"), ("G.16", "Easy"))
    },
    "G.12": (
        "sat_analogies",
        "SAT.txt",
        "190\nlull trust v:n\nbalk fortitude v:n\nbetray loyalty v:n\ncajole compliance v:n\n"
        "hinder destination v:n\nsoothe passion v:n\nc\n\n",
        0,
        "lull is to trust as",
        [
            " balk is to fortitude",
            " betray is to loyalty",
            " cajole is to compliance",
            " hinder is to destination",
            " soothe is to passion",
        ],
    ),
    "G.15": (
        "multirc",
        "MultiRC/val.jsonl",
        jsonl(MULTIRC),
        0,
        "READING COMPREHENSION ANSWER KEY\nA passage.\n\nWho should visit?\n-",
        [" [True] Bin Laden", " [False] Bin Laden"],
    ),
    "G.17": (
        "story_cloze",
        "cloze_test_test.csv",
        "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,"
        "RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding\n"
        "i,One.,Two.,Three.,Four.,Bob believed.,Bob contemplated.,1\n",
        0,
        "One. Two. Three. Four.",
        [" Bob believed.", " Bob contemplated."],
    ),
    "G.18": (
        "coqa",
        "coqa-dev-v1.0.json",
        json.dumps(COQA),
        1,
        "Helsinki is the capital.\n\nQ: One?\n\nA: first\n\nQ: what towns?\n\nA:",
        ["Espoo"],
    ),
    **{
        figure: (
            name,
            f"{name}.jsonl",
            jsonl(synthetic(f"{scrambled} =", word)),
            0,
            f"{UNSCRAMBLE}{scrambled} =",
            [word],
        )
        for figure, name, scrambled, word in (
            ("G.19", "cycle_letters_in_word", "asinoc", "casino"),
            ("G.22", "mid_word_1_anagrams", "skicts", "sticks"),
            ("G.23", "mid_word_2_anagrams", "volwskagen", "volkswagen"),
            ("G.26", "random_insertion_in_word", "r e!c.i p r o.c a/l", "reciprocal"),
            ("G.27", "reversed_words", "taefed", "defeat"),
        )
    },
    "G.20": (
        "drop",
        "drop_dataset_dev.json",
        json.dumps(
            {
                "a": {
                    "passage": " He travelled. ",
                    "qa_pairs": [
                        {
                            "query_id": "1",
                            "question": "How many years?",
                            "answer": {"number": "4", "spans": [], "date": {}},
                        }
                    ],
                }
            }
        ),
        0,
        "Passage: He travelled.\nQuestion: How many years?\nAnswer:",
        ["4"],
    ),
    "G.21": (
        "lambada_fill",
        "lambada_test.jsonl",
        jsonl({"text": 'She held it.\n\n"What?"\n\nthere\'s more than a step'}),
        0,
        'Fill in blank:\n\nShe held it.\n\n"What?"\n\nthere\'s more than a ____. ->',
        [" step"],
    ),
    "G.24": (
        "natural_questions",
        "NQ-open.dev.jsonl",
        jsonl({"question": "who played tess on touched by an angel", "answer": ["Della Reese"]}),
        0,
        "Q: Who played tess on touched by an angel?\n\nA:",
        ["Della Reese"],
    ),
    "G.25": (
        "quac",
        "val_v0.2.json",
        json.dumps(QUAC),
        1,
        "TITLE: William Perry (American football) - Professional career\n"
        "PARAGRAPH: In 1985, he was selected.\n\nQ: what team?\n\nA: the Bears\n\nQ: who won?\n\nA:",
        ["CANNOTANSWER"],
    ),
    "G.28": (
        "squad_v2",
        "dev-v2.0.json",
        json.dumps(SQUAD),
        1,
        "Title: The_Blitz\n\nBackground: The Luftwaffe flew 4,000 sorties.\n\n"
        "Q: How many?\n\nA: 4,000\n\nQ: When?\n\nA:",
        ["at night"],
    ),
    "G.29": (
        "boolq",
        "BoolQ/val.jsonl",
        jsonl({"passage": "Force -- It is.", "question": "is it equal", "label": True, "idx": 0}),
        0,
        "Force -- It is.\nquestion: is it equal?\nanswer:",
        [" yes", " no"],
    ),
    "G.30": (
        "cb",
        "CB/val.jsonl",
        jsonl(
            {
                "premise": "It comes.",
                "hypothesis": "Manhattan comes cheap",
                "label": "contradiction",
                "idx": 0,
            }
        ),
        0,
        "It comes.\nquestion: Manhattan comes cheap. true, false, or neither?\nanswer:",
        [" true", " false", " neither"],
    ),
    "G.31": (
        "rte",
        "RTE/val.jsonl",
        jsonl({"premise": "A bet.", "hypothesis": "It is.", "label": "not_entailment", "idx": 0}),
        0,
        "A bet.\nquestion: It is. True or False?\nanswer:",
        [" True", " False"],
    ),
    "G.32": (
        "wic",
        "WiC/val.jsonl",
        jsonl(
            {
                "sentence1": "An outfitter.",
                "sentence2": "He went.",
                "word": "outfitter",
                "label": False,
                "idx": 0,
            }
        ),
        0,
        "An outfitter.\nHe went.\nquestion: Is the word 'outfitter' used in the same way in the two "
        "sentences above?\nanswer:",
        [" yes", " no"],
    ),
    "G.33": (
        "wsc",
        "WSC/val.jsonl",
        jsonl(WSC),
        0,
        f"{EXAM}Passage: Mr. Moncrieff visited Chester's apartment. He requires *his* support.\n"
        'Question: In the passage above, what does the pronoun "*his*" refer to?\nAnswer:',
        ["mr. moncrieff"],
    ),
    "G.34": (
        "trivia_qa",
        "wikipedia-dev.json",
        json.dumps(
            {
                "Data": [
                    {
                        "QuestionId": "1",
                        "Question": "By which artist?",
                        "Answer": {"Value": "MARCEL DUCHAMP", "Aliases": ["r mutt", "duchamp"]},
                    }
                ]
            }
        ),
        0,
        "Q: By which artist?\n\nA:",
        ["MARCEL DUCHAMP", "r mutt", "duchamp"],
    ),
    "G.35": (
        "web_questions",
        "webquestions.examples.test.json",
        json.dumps(
            [
                {
                    "utterance": "what school did burne hogarth establish?",
                    "targetValue": '(list (description "School of Visual Arts"))',
                }
            ]
        ),
        0,
        "Q: What school did burne hogarth establish?\n\nA:",
        ["School of Visual Arts"],
    ),
    **{
        figure: (
            name,
            f"newstest{name[3:5]}.{name[-5:-3]}".replace("test1", "test201"),
            "Keinesfalls.\n",
            0,
            "Keinesfalls. =",
            ["In no case."],
        )
        for figure, name in (
            ("G.36", "wmt16_de_en"),
            ("G.37", "wmt16_en_de"),
            ("G.38", "wmt14_en_fr"),
            ("G.39", "wmt14_fr_en"),
            ("G.40", "wmt16_en_ro"),
            ("G.41", "wmt16_ro_en"),
        )
    },
    **{
        figure: (
            name,
            f"{name}.jsonl",
            jsonl(synthetic(f"Q: What is {question}?\n\nA:", answer)),
            0,
            f"Q: What is {question}?\n\nA:",
            [answer],
        )
        for figure, name, question, answer in (
            ("G.42", "single_digit_three_ops", "(2 * 4) * 6", "48"),
            ("G.43", "two_digit_subtraction", "17 minus 14", "3"),
            ("G.44", "two_digit_addition", "98 plus 45", "143"),
            ("G.45", "two_digit_multiplication", "95 times 45", "4275"),
            ("G.46", "three_digit_subtraction", "509 minus 488", "21"),
            ("G.47", "three_digit_addition", "556 plus 497", "1053"),
            ("G.48", "four_digit_subtraction", "6209 minus 3365", "2844"),
            ("G.49", "four_digit_addition", "9923 plus 617", "10540"),
            ("G.50", "five_digit_subtraction", "40649 minus 78746", "-38097"),
            ("G.51", "five_digit_addition", "65360 plus 16204", "81564"),
        )
    },
}
PARTIAL = {  # figure: task, file, row, contexts, target
    "G.13": (
        "winograd",
        "WSCollection.xml",
        "<c><schema><text><txt1>Grace traded her sweater for my jacket. She thinks the</txt1>"
        "<pron>it</pron><txt2>looks dowdy on her.</txt2></text><answers><answer>sweater</answer>"
        "<answer>jacket</answer></answers><correctAnswer>A</correctAnswer></schema></c>",
        [
            "Grace traded her sweater for my jacket. She thinks the sweater",
            "Grace traded her sweater for my jacket. She thinks the jacket",
        ],
        " looks dowdy on her.",
    ),
    "G.14": (
        "winogrande",
        "dev.jsonl",
        jsonl(
            {
                "sentence": "Johnny likes fruits more than vegetables because the _ are saccharine.",
                "option1": "fruits",
                "option2": "vegetables",
                "answer": "1",
            }
        ),
        [
            "Johnny likes fruits more than vegetables because the fruits",
            "Johnny likes fruits more than vegetables because the vegetables",
        ],
        " are saccharine.",
    ),
}


def read(folder: Path, name: str, file: str, text: str) -> list[Item]:
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(text, encoding="utf-8")
    if name == "piqa":
        (folder / "valid-labels.lst").write_text("0\n")
    if name.startswith("wmt"):
        source, target = name[-5:].split("_")
        other = (folder / file).with_suffix(f".{target}")
        other.write_text("In no case.\n")
        assert file.endswith(f".{source}")
    task = find_task(name)
    return read_items(task, find_data(task, folder))


@pytest.mark.parametrize("figure", FIGURES)
def test_prompt_is_that_of_the_figure(tmp_path: Path, figure: str) -> None:
    name, file, text, number, prompt, answers = FIGURES[figure]
    item = read(tmp_path, name, file, text)[number]
    task = find_task(name)
    assert task.instruction + item.prompt == prompt
    assert list(item.choices or item.answers or [item.target]) == answers


@pytest.mark.parametrize("figure", PARTIAL)
def test_partial_evaluation_is_that_of_the_figure(tmp_path: Path, figure: str) -> None:
    name, file, text, contexts, target = PARTIAL[figure]
    [item] = read(tmp_path, name, file, text)
    assert (list(item.contexts), item.target) == (contexts, target)


def test_every_figure_is_there() -> None:
    assert {*FIGURES, *PARTIAL} == {f"G.{number}" for number in range(1, 52)}
    assert {row[0] for row in FIGURES.values()} <= {*task_names()}


def test_a_question_of_multirc_is_one_example_with_all_its_options(tmp_path: Path) -> None:
    items = read(tmp_path, "multirc", "MultiRC/val.jsonl", jsonl(MULTIRC))
    examples = {format_example(find_task("multirc"), item) for item in items}
    assert examples == {"A passage.\n\nWho should visit?\n- [False] Bin Laden\n- [True] Clinton"}
