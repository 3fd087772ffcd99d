"""Names are the field's: a name that was replaced by a common term does not come back.

A name is any module, class, function, parameter, attribute or variable of the package. The values are
the terms to use instead, which a reader's search finds.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import gptcli

PACKAGE = Path(gptcli.__file__).parent

EVERYWHERE = {
    "Grove": "SharedPrefixCache", "trunk": "prefix", "branch": "continuation",
    "likeliest": "is_greedy, argmax", "Asked": "RequestSet", "objection": "skip_reason",
    "flaw": "error_kind", "gone_among": "is_duplicate", "keeps": "keep_probability",
    "Divided": "ShardedTensor", "lay_out": "parallelize_model", "dress": "apply_ac_and_compile",
    "leads": "is_main", "tells_loss": "owns_loss", "add_up_partial": "reduce_partial_grads",
    "held_by": "merge_stages", "DEAR": "SAVE_OPS", "Stepper": "TrainStep", "lifted": "loss_scale",
    "told": "stop_requested", "grown": "next_batch_size", "following": "next_batches",
    "hold_threads": "pin_thread_count", "same_arithmetic": "check_numeric_environment",
    "settle_math": "warm_up_vector_math", "keep_freed_memory": "disable_malloc_trim",
    "take_weights": "load_weights_", "canonical_parameters": "plain_named_parameters",
    "SavedModel": "CheckpointStateDict", "widening": "width_mult", "FreshRows": "PrefillView",
    "form_for": "select_backend", "to_stored": "to_hf", "from_stored": "from_hf",
    "self_attend": "attention_packed", "attend": "attention", "runs_here": "available",
    "take_back": "uninstall", "penalised": "apply_repetition_penalty", "FewRows": "SmallBatchLinear",
    "read_in_place": "prepare_for_inference", "permuted": "feistel_permutation",
    "apportioned": "largest_remainder", "said": "options", "said_too": "conflicting",
    "asked": "mode", "sheet": "tables", "REMARKS": "NOTES", "LEAST": "MIN_X", "MOST": "MAX_X",
    "MANY": "MAX_X", "AGAIN_EVERY": "NOISE_RERUN_EVERY", "PATIENCE": "a timeout with its unit",
    "REPAID": "COMPILE_PAYBACK_S", "added_up": "combine",
}  # fmt: skip
BY_ROOM = {
    "evals": {
        "Rows": "PackedRows", "Question": "Request", "ask": "build_requests", "Pool": "FewShotPool",
        "Fit": "FewShotConfig", "Protocol": "FewShotConfig", "Scorer": "LogLikelihoodScorer",
    },
    "cost": {"held": "rank_parameters", "Kept": "ActivationPolicy",
             "Work": "StepConfig", "within": "uncertainty_factor"},
    "distributed": {"Place": "RankContext", "total": "all_reduce_sum", "repeat": "apply_ddp",
                    "shard": "apply_fsdp", "divide": "apply_tp", "Gather": "GatherSequence",
                    "Table": "VocabParallelEmbedding", "cut": "split_stages"},
    "trainer": {"Place": "RankContext", "products": "compute_dtype", "Guard": "SpikeGuard",
                "fill": "materialize_"},
    "model": {"reach": "visible_len", "seen": "attn_mask", "Whole": "VocabReduction",
              "Slices": "VocabShards", "Loops": "ElementwiseOps", "tiles": "block_mask",
              "touched": "block_mask"},
    "kernels": {"serves": "supports", "give": "install", "available_here": "available"},
    "sampling": {"Rules": "SamplingParams", "Row": "Sequence", "Job": "BatchJob"},
    "shards": {"describe": "manifest_for", "Windows": "ShuffledWindows"},
    "cli": {"look": "estimate", "Terms": "OutputOptions",
            "Subject": "Target", "answers": "handlers"},
}  # fmt: skip


def names_of(path: Path) -> Iterator[tuple[str, int]]:
    """Yield every name that a module defines, with its line; the module's own at line 1."""
    yield path.stem, 1
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_names_are_the_terms_of_the_field(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0]
    replaced = EVERYWHERE | BY_ROOM.get(room, {})
    found = {
        f"{path.relative_to(PACKAGE)}:{line}: {name}": f"use {replaced[name.lstrip('_')]}"
        for name, line in names_of(path)
        if name.lstrip("_") in replaced
    }
    assert not found
