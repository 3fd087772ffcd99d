"""The log-probabilities of given tokens: sequences of any length together, logits only where a token is scored.

A score depends neither on what shares its batch nor on what shares its stem: see `gptcli.evals.grove`.
Shapes: N scored tokens in all, U places where one or more of them are foretold, C d_model, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gptcli.errors import RunError
from gptcli.evals.grove import Group, Grove, Rows, common_prefix
from gptcli.events import SILENT, Events
from gptcli.model.transformer import GPT

BATCH_TOKENS = {"cpu": 2048, "cuda": 32768}  # of a batch, where no --batch-size is given
LOGITS_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}  # alive at once, in fp32; a CPU gains nothing by more
TRUNK = 64  # tokens: a shorter common beginning of all questions is not worth a cache
APART = 512  # tokens: a stem so long is read by itself under the causal rule, at half the attention that a mask costs


@dataclass(frozen=True, slots=True)
class Score:
    """The scored tokens of one sequence."""

    log_probs: np.ndarray
    """Nats, fp32."""
    likeliest: np.ndarray
    """Whether each token was the likeliest of all (bool)."""
    likeliest_of_kept: np.ndarray
    """The same among the tokens that the scorer does not leave out."""


class Scorer:
    """Scores batches of groups. A batch that does not fit into memory is halved, and so are those after it."""

    def __init__(self, model: GPT, *, trunk: Sequence[int] = (), left_out: Sequence[int] = (), events: Events = SILENT) -> None:
        """`trunk`: tokens that every sequence begins with, `left_out`: tokens that are no predictions (stop words)."""
        self.model, self.events = model, events
        self.left_out = torch.tensor(list(left_out), dtype=torch.int64, device=model.wte.weight.device)
        with torch.inference_mode():
            self.grove = Grove(model, trunk)
        self.most: int | None = None
        """Tokens that fit into memory at once, once that is known."""

    def score(self, groups: Sequence[Group]) -> list[list[Score]]:
        """The scores of each group's sequences.

        Raises RunError where a single group does not fit into memory, or the model's scores are not numbers.
        """
        size = sum(group.size(self.grove.trunk) for group in groups)
        if len(groups) > 1 and self.most is not None and size > self.most:
            return self._halves(groups)
        try:
            return self._score(groups)
        except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
        if len(groups) == 1:
            raise RunError(f"a question of {size:,} tokens does not fit into memory", hint="--precision bf16, or another --device")
        if self.most is None or size // 2 < self.most:
            self.most = size // 2
            self.events.warn(f"{size:,} tokens at once do not fit into memory: going on with {self.most:,}")
        if self.grove.length_B.device.type == "cuda":
            torch.cuda.empty_cache()
        return self._halves(groups)

    def _halves(self, groups: Sequence[Group]) -> list[list[Score]]:
        half = len(groups) // 2
        return self.score(groups[:half]) + self.score(groups[half:])

    @torch.inference_mode()
    def _score(self, groups: Sequence[Group]) -> list[list[Score]]:
        apart = [not self.grove.trunk and len(group.sequences) > 1 and group.before >= APART for group in groups]
        together = iter(self._read(self.grove, [group for group, alone in zip(groups, apart, strict=True) if not alone]))
        return [self._alone(group) if alone else next(together) for group, alone in zip(groups, apart, strict=True)]

    def _alone(self, group: Group) -> list[Score]:
        [scores] = self._read(Grove(self.model, list(group.sequences[0][: group.before])), [group])
        return scores

    def _read(self, grove: Grove, groups: Sequence[Group]) -> list[list[Score]]:
        if not groups:
            return []
        rows = Rows(groups, grove.trunk)
        scored = [
            (place, sequence[-count:])
            for number, group in enumerate(groups)
            for place, sequence, count in zip(rows.places[number], group.sequences, group.counts, strict=True)
        ]
        place_N = np.concatenate([place for place, _ in scored])
        target_N = np.concatenate([np.asarray(target, dtype=np.int64) for _, target in scored])
        place_U, at_N = np.unique(place_N, return_inverse=True)  # choices that follow one context are foretold at one place
        x_UC = grove.hidden_of(rows)[torch.from_numpy(place_U).to(self.left_out.device)]
        columns = self._head(x_UC, at_N, target_N)
        if not np.isfinite(columns[0]).all():
            raise RunError("there are log-probabilities that are no numbers", hint="the model's weights are broken")
        ends = np.cumsum([len(target) for _, target in scored])[:-1]
        parts = zip(*(np.split(column, ends) for column in columns), strict=True)
        return [[Score(*next(parts)) for _ in group.sequences] for group in groups]

    def _head(self, x_UC: torch.Tensor, at_N: np.ndarray, target_N: np.ndarray) -> tuple[np.ndarray, ...]:
        """Log-probability, and whether likeliest of all and of the tokens kept, of each target, which is foretold at x_UC[at_N]."""
        order = np.argsort(at_N, kind="stable")
        step = max(1, LOGITS_BYTES[x_UC.device.type] // (4 * self.model.config.vocab_size))
        columns = np.empty(len(at_N), np.float32), np.empty(len(at_N), bool), np.empty(len(at_N), bool)
        for start in range(0, len(x_UC), step):
            here = order[slice(*np.searchsorted(at_N[order], (start, start + step)))]
            found = self._foretold(x_UC[start : start + step], at_N[here] - start, target_N[here])
            for column, values in zip(columns, found, strict=True):
                column[here] = values.cpu().numpy()
        return columns

    def _foretold(self, x_uC: torch.Tensor, at: np.ndarray, target: np.ndarray) -> tuple[torch.Tensor, ...]:
        """The same for as many places as have logits at once."""
        at_n, target_n = (torch.from_numpy(array).to(x_uC.device) for array in (at, target))
        logits_uV = self.model.lm_head(x_uC).float()
        most_u, likeliest_u = logits_uV.max(dim=-1)
        kept_u = logits_uV.index_fill(1, self.left_out, -torch.inf).max(dim=-1).indices if len(self.left_out) else likeliest_u
        target_logits_n = logits_uV[at_n, target_n] - most_u[at_n]
        sum_u = logits_uV.sub_(most_u[:, None]).exp_().sum(dim=-1)  # in place: logsumexp would take as much memory again
        return target_logits_n - sum_u.log()[at_n], likeliest_u[at_n] == target_n, kept_u[at_n] == target_n


def out_of_memory(error: BaseException) -> bool:
    """torch says it in a class of its own on a GPU, and in a RuntimeError on a CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def score(model: GPT, sequences: Sequence[Sequence[int] | np.ndarray], counts: Sequence[int]) -> list[Score]:
    """Score the last `counts[i]` tokens of each sequence, given those before them (at least one, at most n_ctx)."""
    groups = [Group([sequence], [count]) for sequence, count in zip(sequences, counts, strict=True)]
    return [score for [score] in Scorer(model).score(groups)]


def find_trunk(contexts: Iterable[np.ndarray]) -> list[int]:
    """What all contexts begin with, where it is worth reading once for all; what follows a context is foretold at its last token,
    which is left out."""
    shared: np.ndarray | None = None
    count = 0
    for context in contexts:
        shared = context[:-1] if shared is None else shared[: common_prefix([shared, context[:-1]])]
        count += 1
    return shared.tolist() if shared is not None and count > 1 and len(shared) >= TRUNK else []


def batches(sizes: Sequence[int], batch_size: int | None, tokens: int) -> Iterator[range]:
    """Consecutive runs of questions of these sizes in tokens: `batch_size` each, or as many as make `tokens`; at least one."""
    start = 0
    while start < len(sizes):
        stop, total = start + 1, sizes[start]
        while stop < len(sizes) and (stop - start < batch_size if batch_size else total + sizes[stop] <= tokens):
            total += sizes[stop]
            stop += 1
        yield range(start, stop)
        start = stop
