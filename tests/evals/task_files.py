"""One file of each built-in task in its original format and under its published name.

`FIXTURES` contains the text of the files of each task; `REAL` the path of its real file below the
folder of real data.
"""

from __future__ import annotations

import json
from typing import Any

from gptcli.evals.synthetic import generate_rows
from gptcli.evals.task import find_task, task_names

GENERATED_NAMES = [name for name in task_names() if find_task(name).generated]


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def sgm(language: str, *texts: str) -> str:
    segments = "".join(f'<seg id="{number}">{text}</seg>\n' for number, text in enumerate(texts, 1))
    kind = f'<srcset setid="newstest" srclang="any">\n<doc docid="d" genre="news" origlang="{language}">\n<p>\n'
    return f"{kind}{segments}</p>\n</doc>\n</srcset>\n"


def cbt(answer: str, choices: str) -> str:
    story = "".join(
        f"{number} Once upon a time there was a dog named Rex .\n" for number in range(1, 21)
    )
    return f"{story}21 The XXXXX ran home .\t{answer}\t\t{choices}\n\n"


def direction(year: str, pair: str) -> dict[str, str]:
    source, target = pair[:2], pair[2:]
    return {
        f"newstest{year}-{pair}-src.{source}.sgm": sgm(source, "one &amp; a half.", "two"),
        f"newstest{year}-{pair}-ref.{target}.sgm": sgm(target, "un.", "deux"),
    }


NONE = {"day": "", "month": "", "year": ""}
QUESTION = {
    "stem": "Why?",
    "choices": [{"text": text, "label": label} for text, label in (("so", "A"), ("no", "B"))],
}
ARC = lines({"id": "Mercury_1", "question": QUESTION, "answerKey": "A"})
RACE = json.dumps(
    {
        "article": "A.",
        "questions": ["Q _ ?"],
        "options": [["a", "b", "c", "d"]],
        "answers": ["C"],
        "id": "high1.txt",
    }
)
ANLI = lines(
    {
        "uid": "u",
        "context": "C.",
        "hypothesis": "H.",
        "label": "n",
        "model_label": "e",
        "emturk": False,
        "genre": "wiki",
    }
)
WSC273 = """<?xml version="1.0" encoding="UTF-8"?><collection><schema><text><txt1>The city councilmen refused the demonstrators a permit
because</txt1><pron>they</pron><txt2>feared violence.</txt2></text><quote/><answers><answer>The city councilmen</answer><answer>The
demonstrators</answer></answers><correctAnswer>A</correctAnswer><source>W</source></schema></collection>"""
COQA = {
    "id": "s",
    "story": "Once.",
    "questions": [{"input_text": "Who?", "turn_id": 1}],
    "answers": [{"input_text": "he", "span_text": "he", "turn_id": 1}],
    "additional_answers": {"0": [{"input_text": "He", "turn_id": 1}]},
}
QUAC = {
    "id": "C_1_q#0",
    "question": "one?",
    "answers": [{"text": "yes", "answer_start": 0}],
    "followup": "y",
    "yesno": "x",
}
SQUAD = {
    "id": "1",
    "question": "Where?",
    "answers": [{"text": "here", "answer_start": 0}],
    "is_impossible": False,
}
DROP = {
    "query_id": "a",
    "question": "How many?",
    "answer": {"number": "3", "date": NONE, "spans": []},
    "validated_answers": [],
}
TRIVIA = {
    "QuestionId": "q",
    "Question": "Where?",
    "Answer": {"Value": "Delhi", "Aliases": ["New Delhi"], "Type": "WikipediaEntity"},
}
COPA = {
    "premise": "He slept.",
    "choice1": "I saw.",
    "choice2": "It was.",
    "question": "cause",
    "label": 1,
    "idx": 0,
}
WSC = {"span1_index": 0, "span1_text": "Lee", "span2_index": 3, "span2_text": "his"}
RECORD = {
    "idx": 2,
    "source": "CNN",
    "passage": {
        "text": "Ann met Lee.\n@highlight\nLee stayed",
        "entities": [{"start": 0, "end": 2}, {"start": 8, "end": 10}],
    },
    "qas": [
        {
            "query": "Then @placeholder went.",
            "idx": 5,
            "answers": [{"start": 0, "end": 2, "text": "Ann"}],
        }
    ],
}
MULTIRC = {
    "question": "Who?",
    "idx": 3,
    "answers": [{"text": "he", "idx": 10, "label": 1}, {"text": "she", "idx": 11, "label": 0}],
}
HELLASWAG = {
    "ind": 4,
    "activity_label": "Roof",
    "ctx_a": "A man sits.",
    "ctx_b": "he",
    "endings": ["a", "b", "c", "d"],
    "label": 3,
}
STORY = "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,"
STORY += "RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding\n"
PAIRS = "lull trust v:n\nbalk fortitude v:n\nbetray loyalty v:n\ncajole compliance v:n\nhinder a v:n\nsoothe b v:n"
SAT = f"# SAT\n\n190 FROM REAL SATs\n{PAIRS}\nc\n\n"
WIKI = " \n = Robert <unk> = \n \n Robert <unk> is an English film , television and theatre actor in the 1 @,@ 000s . \n"
FIXTURES: dict[str, dict[str, str]] = {
    "lambada": {"lambada_test.jsonl": lines({"text": "the text has a last word"})},
    "lambada_fill": {"lambada_test_plain_text.txt": "the text has a last word\n"},
    **{
        f"cbt_{kind.lower()}": {f"cbtest_{kind}_valid_2000ex.txt": cbt("dog", "dog|cat|man")}
        for kind in ("CN", "NE", "V", "P")
    },
    "wikitext2": {"wiki.test.tokens": WIKI},
    "wikitext103": {"wiki.test.tokens": WIKI},
    "ptb": {"ptb.test.txt": " no it was n't black monday \n but it 's $ N <unk> % of it \n"},
    "enwik8": {"enwik8": "<mediawiki>[[é]]", "enwik8.zip": "its archive"},
    "text8": {"text8": " anarchism originated as"},
    "one_billion_words": {
        f"news.en.heldout-0000{n}-of-00050": "It was n't so , he said .\nNo .\n" for n in range(2)
    },
    "winograd": {"WSCollection.xml": WSC273},
    "winograd_full": {"WSCollection.xml": WSC273},
    "winogrande": {
        "dev.jsonl": lines(
            {
                "qID": "3QHI",
                "sentence": "A saw B so _ ran.",
                "option1": "A",
                "option2": "B",
                "answer": "2",
            }
        )
    },
    "coqa": {"coqa-dev-v1.0.json": json.dumps({"version": "1.0", "data": [COQA]})},
    "gpt2_coqa": {"coqa-dev-v1.0.json": json.dumps({"version": "1.0", "data": [COQA]})},
    "cnn_dailymail": {
        "stories/0a.story": "(CNN) A man\nsat.\n\n@highlight\n\nMan sits\n\n@highlight\n\nIt rains\n"
    },
    **{
        name: {
            f"newstest2014-fren-{role}.{language}.sgm": sgm(language, "one &amp; a half.", "two")
            for role in ("src", "ref")
            for language in ("en", "fr")
        }
        for name in (
            "gpt2_wmt14_en_fr",
            "gpt2_wmt14_fr_en",
            "wmt14_en_fr",
            "wmt14_fr_en",
            "wmt14_en_fr_zero",
            "wmt14_fr_en_zero",
        )
    },
    **{
        f"wmt16_{pair[:2]}_{pair[2:]}{zero}": {
            **direction("2016", "deen"),
            **direction("2016", "ende"),
            **direction("2016", "roen"),
            **direction("2016", "enro"),
        }
        for pair in ("deen", "ende", "roen", "enro")
        for zero in ("", "_zero")
    },
    **{
        name: {"NQ-open.dev.jsonl": lines({"question": "who wrote it", "answer": ["Ann"]})}
        for name in ("natural_questions", "gpt2_natural_questions")
    },
    "web_questions": {
        "webquestions.examples.test.json": json.dumps(
            [{"utterance": "what?", "targetValue": "(list (description Rod))"}]
        )
    },
    "trivia_qa": {
        f"{kind}-dev.json": json.dumps({"Data": [TRIVIA]})
        for kind in ("wikipedia", "web", "verified-web")
    },
    "hellaswag": {"hellaswag_val.jsonl": lines(HELLASWAG)},
    "arc_easy": {"ARC-Easy-Test.jsonl": ARC, "ARC-Easy-Dev.jsonl": ARC},
    "arc_challenge": {"ARC-Challenge-Test.jsonl": ARC},
    "story_cloze": {
        f"cloze_test_{part}__spring2016 - cloze_test_ALL_{part}.csv": f"{STORY}i,One.,Two.,Three.,Four.,Yes.,No.,2\n"
        for part in ("val", "test")
    },
    "piqa": {
        "dev.jsonl": lines({"goal": "To sit", "sol1": "sit", "sol2": "stand"}),
        "dev-labels.lst": "0\n",
    },
    "openbookqa": {"test.jsonl": lines({"id": "7-980", "question": QUESTION, "answerKey": "B"})},
    "race_h": {"test/high/high1.txt": RACE},
    "race_m": {"test/middle/middle1.txt": RACE},
    "quac": {
        "val_v0.2.json": json.dumps(
            {
                "data": [
                    {
                        "title": "T",
                        "section_title": "S",
                        "paragraphs": [{"context": "Text. CANNOTANSWER", "qas": [QUAC]}],
                    }
                ]
            }
        )
    },
    "squad_v2": {
        "dev-v2.0.json": json.dumps(
            {"data": [{"title": "T", "paragraphs": [{"context": "C", "qas": [SQUAD]}]}]}
        )
    },
    "drop": {
        "drop_dataset_dev.json": json.dumps(
            {"nfl_1": {"passage": "They played.", "qa_pairs": [DROP]}}
        )
    },
    "boolq": {
        "BoolQ/val.jsonl": lines(
            {"question": "is it", "passage": "It is.", "idx": 0, "label": True}
        )
    },
    "cb": {
        "CB/val.jsonl": lines({"premise": "P.", "hypothesis": "h", "label": "neutral", "idx": 0})
    },
    "copa": {"COPA/val.jsonl": lines(COPA)},
    "rte": {
        "RTE/val.jsonl": lines(
            {"premise": "P.", "hypothesis": "H.", "label": "not_entailment", "idx": 0}
        )
    },
    "wic": {
        "WiC/val.jsonl": lines(
            {
                "word": "class",
                "sentence1": "A class.",
                "sentence2": "Real class.",
                "idx": 3,
                "label": False,
            }
        )
    },
    "wsc": {
        "WSC/val.jsonl": lines(
            {"text": "Lee visited Ann, his sister.", "target": WSC, "idx": 0, "label": True}
        )
    },
    "multirc": {
        "MultiRC/val.jsonl": lines(
            {"idx": 1, "version": 1.1, "passage": {"text": "P", "questions": [MULTIRC]}}
        )
    },
    "record": {"ReCoRD/val.jsonl": lines(RECORD)},
    **{f"anli_r{number}": {f"R{n}/test.jsonl": ANLI for n in (1, 2, 3)} for number in (1, 2, 3)},
    "sat_analogies": {"SAT-package-V3.txt": SAT},
    "novel_words": {
        "novel_words.jsonl": lines(
            {"word": "farduddle", "definition": "to jump.", "example": "We farduddled."}
        )
    },
    "grammar_correction": {"grammar.jsonl": lines({"poor": "I eated.", "good": "I ate."})},
    **{
        name: {
            f"{name}.jsonl": lines(
                *(
                    {"context": f"\n\n{row['prompt']}", "completion": f" {row['answer']}"}
                    for row, _ in zip(
                        generate_rows(find_task(name).generated, seed=0), range(2), strict=False
                    )
                )
            )
        }
        for name in GENERATED_NAMES
    },
}

DUMMY = "hf-dummy/{}/dummy_data/"
CBT = "CBTest.tgz/CBTest/data/cbtest_{0}_valid_2000ex.txt"
HELDOUT = "1-billion-word-language-modeling-benchmark-r13output/heldout-monolingual.tokenized.shuffled/news.en.heldout-00016-of-00050"
REAL = {
    "lambada": "lambada/lambada_test.jsonl",
    "lambada_fill": "lambada/lambada_test.jsonl",
    "winograd": "winograd/winograd_wsc.jsonl",
    "winograd_full": DUMMY.format("winograd_wsc-wsc273") + "WSCollection.xml",
    "winogrande": "winogrande/val.jsonl",
    **{
        f"cbt_{kind.lower()}": DUMMY.format(f"cbt-{kind}") + CBT.format(kind)
        for kind in ("CN", "NE", "V", "P")
    },
    "wikitext2": "wikitext-2/test.txt",
    "ptb": DUMMY.format("ptb_text_only-penn_treebank") + "ptb.test.txt",
    "wikitext103": DUMMY.format("wikitext-wikitext-103-v1") + "wikitext-103/wiki.test.tokens",
    "enwik8": DUMMY.format("enwik8-enwik8-raw") + "enwik8.zip/enwik8",
    "one_billion_words": DUMMY.format("lm1b-plain_text") + HELDOUT,
    "coqa": "coqa/coqa_dev_500stories.jsonl",
    "gpt2_coqa": DUMMY.format("coqa-1.0.0") + "coqa-dev-v1.0.json",
    "cnn_dailymail": "cnndm-from-record/cnndm_64.jsonl",
    "natural_questions": "nq_open/NQ-open.dev.jsonl",
    "gpt2_natural_questions": "nq_open/NQ-open.dev.jsonl",
    "web_questions": DUMMY.format("web_questions-1.0.0") + "blobtest",
    "trivia_qa": DUMMY.format("trivia_qa-rc.wikipedia")
    + "triviaqa-rc.tar.gz/qa/wikipedia-dev.json",
    "hellaswag": "hellaswag/hellaswag_val_full.txt.bz2",
    "arc_easy": "arc/easy_test.jsonl",
    "arc_challenge": "arc/challenge_test.jsonl",
    "story_cloze": DUMMY.format("story_cloze-2016")
    + "cloze_test_val__spring2016 - cloze_test_ALL_val.csv",
    "piqa": DUMMY.format("piqa-plain_text")
    + "physicaliqa-train-dev.zip/physicaliqa-train-dev/dev.jsonl",
    "openbookqa": DUMMY.format("openbookqa-main") + "OpenBookQA-V1-Sep2018/Data/Main/test.jsonl",
    "race_h": DUMMY.format("race-all") + "RACE",
    "race_m": DUMMY.format("race-all") + "RACE",
    "quac": DUMMY.format("quac-plain_text") + "val_v0.2.json",
    "squad_v2": DUMMY.format("squad_v2-squad_v2") + "dev-v2.0.json",
    "drop": DUMMY.format("drop-0.1.0") + "drop_dataset/drop_dataset_dev.json",
    "boolq": "boolq/val.jsonl",
    "cb": "superglue/CB/val.jsonl",
    "copa": "superglue/COPA/val.jsonl",
    "rte": "superglue/RTE/val.jsonl",
    **{
        name.lower(): DUMMY.format("super_glue-boolq") + f"{name}/val.jsonl"
        for name in ("WiC", "WSC", "MultiRC", "ReCoRD")
    },
    **{
        f"anli_r{number}": DUMMY.format("anli-plain_text") + f"anli_v0.1/R{number}/test.jsonl"
        for number in (1, 2, 3)
    },
    **{
        name: f"gpt3-synthetic/{name}.jsonl"
        for name in (
            "two_digit_addition",
            "three_digit_addition",
            "two_digit_subtraction",
            "two_digit_multiplication",
            "single_digit_three_ops",
        )
    },
    **{
        name: f"gpt3-synthetic/{name}.jsonl.gz"
        for name in ("reversed_words", "cycle_letters_in_word", "mid_word_1_anagrams")
    },
}
