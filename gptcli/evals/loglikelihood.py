"""Log-likelihoods of given tokens, with logits computed only at positions where one is scored.

A score depends neither on the other sequences of its batch nor on a shared prefix: see
`gptcli.evals.shared_prefix`.

Shapes: N scored tokens in all, U positions at which one or more of them are predicted, C d_model,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gptcli.devices import empty_cache, is_out_of_memory
from gptcli.errors import RunError
from gptcli.evals.shared_prefix import Group, PackedRows, SharedPrefixCache, common_prefix_len
from gptcli.events import SILENT, Events
from gptcli.model.transformer import GPT
from gptcli.numbers import counted
from gptcli.tokenizer.tokenizer import Tokenizer

BATCH_TOKENS = {
    "cpu": 2048,
    "mps": 2048,
    "cuda": 32768,
}  # tokens in a batch, if no --batch-size is given
# Bytes of fp32 logits at a time; a CPU gains nothing from more.
MAX_LOGITS_BYTES = {"cpu": 64 << 20, "mps": 64 << 20, "cuda": 512 << 20}
MIN_SHARED_PREFIX = 64  # tokens; a shorter prefix of all requests is not worth a cache
# Tokens. A group prefix this long is computed separately with the causal mask, which costs half the
# attention of an explicit mask.
LONG_GROUP_PREFIX = 512

# Function words of English; GPT-2's own list is not published.
_STOP_WORDS = """
    a an the this that these those
    i me my mine myself we us our ours ourselves you your yours yourself yourselves
    he him his himself she her hers herself it its itself they them their theirs themselves one
    who whom whose which what where when why how
    and or but nor so yet if because as until while although though since unless than whether
    of at by for with about against between into through during before after above below to from
    up down in out on off over under again further then once here there
    am is are was were be been being have has had having do does did doing
    can could will would shall should may might must
    not no only own same too very just now all any both each few more most other some such
    s t d ll m re ve don doesn didn isn aren wasn weren won wouldn couldn shouldn hasn haven hadn
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())


@dataclass(frozen=True, slots=True)
class Score:
    """The scored tokens of one sequence."""

    log_probs: np.ndarray
    """Log-probability of each token in nats, fp32."""
    is_greedy: np.ndarray
    """For each token, True if it has the highest probability of the vocabulary (bool)."""
    is_greedy_filtered: np.ndarray
    """The same over the vocabulary without the scorer's excluded tokens."""


class LogLikelihoodScorer:
    """Scores batches of groups; a batch that does not fit into memory is halved, as are later ones.

    `prefix` is a token sequence that all scored sequences begin with; it is computed once.
    """

    def __init__(
        self,
        model: GPT,
        *,
        prefix: Sequence[int] = (),
        excluded: Sequence[int] = (),
        events: Events = SILENT,
    ) -> None:
        """Compute the shared prefix.

        `excluded` are tokens that do not count as predictions in `is_greedy_filtered`, such as
        those of stop words.
        """
        self.model, self.events = model, events
        self.excluded = torch.tensor(
            list(excluded), dtype=torch.int64, device=model.wte.weight.device
        )
        with torch.inference_mode():
            self.cache = SharedPrefixCache(model, prefix)
        self.max_tokens: int | None = None
        """Maximum number of tokens in a batch; None until a batch did not fit into memory."""

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        """Return the scores of each group's sequences.

        Raises RunError if a single group does not fit into memory, or if the model's scores are not
        finite.
        """
        size = sum(group.size(self.cache.prefix_len) for group in groups)
        if len(groups) > 1 and self.max_tokens is not None and size > self.max_tokens:
            return self._score_halves(groups)
        try:
            return self._score(groups)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        if len(groups) == 1:
            raise RunError(
                f"a request of {counted(size, 'token')} does not fit into memory",
                hint="try {option:precision} bf16, or another {option:device}",
            )
        if self.max_tokens is None or size // 2 < self.max_tokens:
            self.max_tokens = size // 2
            self.events.warn(
                f"a batch of {counted(size, 'token')} does not fit into memory: "
                f"continuing with {self.max_tokens:,}"
            )
        empty_cache(self.cache.device)
        return self._score_halves(groups)

    def _score_halves(self, groups: Sequence[Group]) -> list[list[Score]]:
        half = len(groups) // 2
        return self.score(groups[:half]) + self.score(groups[half:])

    @torch.inference_mode()
    def _score(self, groups: Sequence[Group]) -> list[list[Score]]:
        is_separate = [
            not self.cache.prefix_len
            and len(group.sequences) > 1
            and group.unscored_prefix_len >= LONG_GROUP_PREFIX
            for group in groups
        ]
        packed = [
            group for group, separate in zip(groups, is_separate, strict=True) if not separate
        ]
        scores = iter(self._score_packed(self.cache, packed))
        return [
            self._score_separately(group) if separate else next(scores)
            for group, separate in zip(groups, is_separate, strict=True)
        ]

    def _score_separately(self, group: Group) -> list[Score]:
        prefix = list(group.sequences[0][: group.unscored_prefix_len])
        [scores] = self._score_packed(SharedPrefixCache(self.model, prefix), [group])
        return scores

    def _score_packed(self, cache: SharedPrefixCache, groups: Sequence[Group]) -> list[list[Score]]:
        if not groups:
            return []
        rows = PackedRows(groups, cache.prefix_len)
        scored = [
            (positions, sequence[-count:])
            for number, group in enumerate(groups)
            for positions, sequence, count in zip(
                rows.scored_positions[number], group.sequences, group.counts, strict=True
            )
        ]
        position_N = np.concatenate([positions for positions, _ in scored])
        target_N = np.concatenate([np.asarray(target, dtype=np.int64) for _, target in scored])
        # The first tokens of all choices are predicted at one position: compute its logits once.
        position_U, index_N = np.unique(position_N, return_inverse=True)
        x_UC = cache.hidden_states(rows)[torch.from_numpy(position_U).to(self.excluded.device)]
        columns = self._apply_head(x_UC, index_N, target_N)
        if not np.isfinite(columns[0]).all():
            raise RunError(
                "the model's log-probabilities are not finite",
                hint="the model's weights are broken",
            )
        ends = np.cumsum([len(target) for _, target in scored])[:-1]
        parts = zip(*(np.split(column, ends) for column in columns), strict=True)
        return [[Score(*next(parts)) for _ in group.sequences] for group in groups]

    def _apply_head(
        self, x_UC: torch.Tensor, index_N: np.ndarray, target_N: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """Return log-probability, is_greedy and is_greedy_filtered of each target, (N,) each.

        Target i is predicted at x_UC[index_N[i]].
        """
        order = np.argsort(index_N, kind="stable")
        step = max(1, MAX_LOGITS_BYTES[x_UC.device.type] // (4 * self.model.config.vocab_size))
        columns = (
            np.empty(len(index_N), np.float32),
            np.empty(len(index_N), bool),
            np.empty(len(index_N), bool),
        )
        for start in range(0, len(x_UC), step):
            here = order[slice(*np.searchsorted(index_N[order], (start, start + step)))]
            found = self._gather_log_probs(
                x_UC[start : start + step], index_N[here] - start, target_N[here]
            )
            for column, values in zip(columns, found, strict=True):
                column[here] = values.cpu().numpy()
        return columns

    def _gather_log_probs(
        self, x_uC: torch.Tensor, index: np.ndarray, target: np.ndarray
    ) -> tuple[torch.Tensor, ...]:
        """Return the same for the n targets of u positions whose logits fit into memory at once."""
        index_n, target_n = (torch.from_numpy(array).to(x_uC.device) for array in (index, target))
        logits_uV = self.model.lm_head(x_uC).float()
        max_u, argmax_u = logits_uV.max(dim=-1)
        filtered_u = argmax_u
        if len(self.excluded):
            filtered_u = logits_uV.index_fill(1, self.excluded, -torch.inf).max(dim=-1).indices
        target_logits_n = logits_uV[index_n, target_n] - max_u[index_n]
        # In place, because logsumexp would need the memory a second time.
        sum_u = logits_uV.sub_(max_u[:, None]).exp_().sum(dim=-1)
        log_probs_n = target_logits_n - sum_u.log()[index_n]
        return log_probs_n, argmax_u[index_n] == target_n, filtered_u[index_n] == target_n


def score(
    model: GPT, sequences: Sequence[Sequence[int] | np.ndarray], counts: Sequence[int]
) -> list[Score]:
    """Score the last `counts[i]` tokens of sequence i, each given the 1 to n_ctx tokens before."""
    groups = [Group([sequence], [count]) for sequence, count in zip(sequences, counts, strict=True)]
    return [score for [score] in LogLikelihoodScorer(model).score(groups)]


def find_shared_prefix(contexts: Iterable[np.ndarray]) -> list[int]:
    """Return the tokens that all contexts begin with, or none if fewer than MIN_SHARED_PREFIX.

    The last token of a context is left out, because the continuation is predicted there.
    """
    shared: np.ndarray | None = None
    count = 0
    for context in contexts:
        length = len(context) - 1 if shared is None else common_prefix_len([shared, context[:-1]])
        shared = context[:length] if shared is None else shared[:length]
        count += 1
    return (
        shared.tolist()
        if shared is not None and count > 1 and len(shared) >= MIN_SHARED_PREFIX
        else []
    )


def batches(sizes: Sequence[int], batch_size: int | None, tokens: int) -> Iterator[range]:
    """Yield batches as consecutive ranges over requests of these sizes in tokens.

    A batch has `batch_size` requests or, if that is None, as many as fit into `tokens`, but at
    least one.
    """
    start = 0
    while start < len(sizes):
        stop, total = start + 1, sizes[start]
        while stop < len(sizes) and (
            stop - start < batch_size if batch_size else total + sizes[stop] <= tokens
        ):
            total += sizes[stop]
            stop += 1
        yield range(start, stop)
        start = stop


def stop_word_tokens(tokenizer: Tokenizer) -> list[int]:
    """Return the tokens that spell a stop word, with or without a leading space.

    GPT-2's stop-word filter for LAMBADA (section 3.3) does not count a stop word as a prediction.
    Here the rule applies to tokens, so a target that begins with such a token counts as wrong.
    """
    return [
        token
        for token in range(tokenizer.vocab_size)
        if tokenizer.decode([token]).strip().lower() in STOP_WORDS
    ]
