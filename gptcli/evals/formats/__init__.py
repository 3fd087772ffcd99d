"""The original file formats of the tasks, each read into rows of plain fields.

A reader takes a file (RACE's and the summaries' also a folder), plain or compressed (.gz, .bz2,
.zst), and raises InputError with file and line where it is broken. Every row has an "id" that does
not change with the folder.
"""

from __future__ import annotations

from gptcli.evals.formats import choice, cloze, files, pairs, reading, superglue
from gptcli.evals.formats.files import Reader as Reader
from gptcli.evals.formats.files import Row as Row

READERS: dict[str, Reader] = {
    "jsonl": files.read_jsonl,
    "csv": files.read_csv,
    "lines": files.read_lines,
    "text": files.read_text,
    "arc": choice.read_arc,
    "hellaswag": choice.read_hellaswag,
    "story_cloze": choice.read_story_cloze,
    "piqa": choice.read_piqa,
    "race": choice.read_race,
    "anli": choice.read_anli,
    "sat": choice.read_sat,
    "lambada": cloze.read_lambada,
    "cbt": cloze.read_cbt,
    "winogrande": cloze.read_winogrande,
    "winograd": cloze.read_winograd,
    "squad": reading.read_squad,
    "quac": reading.read_quac,
    "coqa": reading.read_coqa,
    "drop": reading.read_drop,
    "trivia_qa": reading.read_trivia_qa,
    "natural_questions": reading.read_natural_questions,
    "web_questions": reading.read_web_questions,
    "boolq": superglue.read_boolq,
    "cb": superglue.read_cb,
    "copa": superglue.read_copa,
    "rte": superglue.read_rte,
    "wic": superglue.read_wic,
    "wsc": superglue.read_wsc,
    "multirc": superglue.read_multirc,
    "record": superglue.read_record,
    "parallel": pairs.read_parallel,
    "summaries": pairs.read_summaries,
    "synthetic": pairs.read_synthetic,
    "enwik8": pairs.read_enwik8,
}
