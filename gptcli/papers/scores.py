"""The scores that the papers publish, to stand beside ours."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreTable:
    source: str
    columns: tuple[str, ...]
    rows: dict[str, tuple[float, ...]]
    """By the model's name in `models`: one score a column, percentages as printed."""


# Perplexities are per unit of the original text (WikiText, PTB, 1BW: words). LAMBADA's accuracy leaves out predictions that are stop
# words; without that filter 1542M has 52.66 (section 3.3).
# fmt: off
GPT2_TABLE_3 = ScoreTable(
    source="GPT-2, Table 3, zero-shot",
    columns=(
        "lambada_ppl", "lambada_acc", "cbt_cn", "cbt_ne", "wikitext2", "ptb", "enwik8_bpb", "text8_bpc", "wikitext103", "1bw",
    ),
    rows={
        "gpt2":        (35.13, 45.99, 87.65, 83.40, 29.41, 65.85, 1.16, 1.17, 37.50, 75.20),
        "gpt2-medium": (15.60, 55.48, 92.35, 87.10, 22.76, 47.33, 1.01, 1.06, 26.37, 55.72),
        "gpt2-large":  (10.87, 60.12, 93.45, 88.00, 19.93, 40.31, 0.97, 1.02, 22.05, 44.575),
        "gpt2-xl":     (8.63,  63.24, 93.30, 89.05, 18.34, 35.76, 0.93, 0.98, 17.48, 42.16),
    },
)
# fmt: on
TABLES = {"gpt2_table_3": GPT2_TABLE_3}
