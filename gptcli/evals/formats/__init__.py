"""File formats of the tasks, the original ones and the hub's exports, read as rows of plain fields.

A reader takes a file (for RACE and summaries also a folder), plain or compressed (.gz, .bz2, .zst),
recognises its form by its content, and raises InputError with file and line if it is broken. Every
row has an "id" that does not depend on the folder.
"""

from __future__ import annotations

from gptcli.evals.formats import choice, cloze, files, freeform, superglue, tables
from gptcli.evals.formats.files import Reader as Reader
from gptcli.evals.formats.files import Row as Row

READERS: dict[str, Reader] = {  # by the name in a task's `reader`
    "table": tables.read_table,
    "jsonl": tables.read_table,
    "csv": tables.read_table,
    "lines": tables.read_lines,
    "text": tables.read_text,
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
    "squad": freeform.read_squad,
    "quac": freeform.read_quac,
    "coqa": freeform.read_coqa,
    "drop": freeform.read_drop,
    "trivia_qa": freeform.read_trivia_qa,
    "natural_questions": freeform.read_natural_questions,
    "web_questions": freeform.read_web_questions,
    "boolq": superglue.read_boolq,
    "cb": superglue.read_cb,
    "copa": superglue.read_copa,
    "rte": superglue.read_rte,
    "wic": superglue.read_wic,
    "wsc": superglue.read_wsc,
    "multirc": superglue.read_multirc,
    "record": superglue.read_record,
    "parallel": freeform.read_parallel,
    "summaries": freeform.read_summaries,
    "synthetic": freeform.read_synthetic,
    "enwik8": files.read_enwik8,
}
