"""Access to `gptcli.kernels` for the rest of the package, which also works without that folder.

Without it, `install` and `uninstall` do nothing and no kernel is available: the model runs in plain
PyTorch.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from types import ModuleType
from typing import TYPE_CHECKING

from gptcli.runtime import separate_compiler_cache

if TYPE_CHECKING:
    import torch
    from torch import nn

    from gptcli.kernels import Kernel
    from gptcli.kernels.bpe_kernel import Classes, MergeLearner
    from gptcli.kernels.decode_kernel import DecodeStep
    from gptcli.kernels.spell_kernel import Speller
    from gptcli.model.transformer import GPT

KERNELS = "gptcli.kernels"


def kernels() -> ModuleType | None:
    """Return the package `gptcli.kernels`, or None if it has been removed."""
    try:
        return importlib.import_module(KERNELS)
    except ModuleNotFoundError as error:
        if error.name != KERNELS:
            raise
        return None


def install(module: nn.Module, *, fuse_blocks: bool = False, fuse_sums: bool = False) -> None:
    """Install the kernels in a model, if there are any (see `gptcli.kernels.install`)."""
    if (package := kernels()) is not None:
        package.install(module, fuse_blocks=fuse_blocks, fuse_sums=fuse_sums)


def before_compilation() -> None:
    """Prepare torch.compile: its cache for this CPU, and the kernels, if there are any (see
    `gptcli.kernels.before_compilation`).
    """
    import torch

    separate_compiler_cache(torch.backends.cpu.get_cpu_capability())
    if (package := kernels()) is not None:
        package.before_compilation()


def uninstall(module: nn.Module) -> None:
    """Restore plain PyTorch in a model (see `gptcli.kernels.uninstall`)."""
    if (package := kernels()) is not None:
        package.uninstall(module)


def fuses_layers(module: nn.Module) -> bool:
    """Return whether kernels alone train the layers, in bf16 (see `gptcli.kernels.fuses_layers`)."""
    package = kernels()
    return package is not None and bool(package.fuses_layers(module))


def available(kernel: Kernel) -> bool:
    """Return whether a kernel can run on this machine (see `gptcli.kernels.available`)."""
    package = kernels()
    return package is not None and bool(package.available(kernel))


def instruction_set() -> str | None:
    """Return what the kernels are built for, such as "avx2"; None if none can run here."""
    package = kernels()
    found: str | None = None if package is None else package.instruction_set()
    return found


def can_be_built() -> bool:
    """Return whether this machine has a processor and a compiler for kernels in C; builds none."""
    package = kernels()
    return package is not None and bool(package.can_be_built())


def lack_compiler() -> bool:
    """Return whether this processor could run kernels that only a missing compiler prevents."""
    package = kernels()
    return package is not None and bool(package.lack_compiler())


def compiler_failure() -> str | None:
    """Return which compiler builds no kernels here, and why; None if it does, or there is none."""
    package = kernels()
    found: str | None = None if package is None else package.compiler_failure()
    return found


def decode_step(model: GPT) -> DecodeStep | None:
    """Return the kernel that decodes one token per row, or None if PyTorch has to."""
    package = kernels()
    step: DecodeStep | None = None if package is None else package.decode_step(model)
    return step


def adamw_kernel(tensors: Iterable[torch.Tensor]) -> ModuleType | None:
    """Return `gptcli.kernels.adamw_kernel` if it can run on these tensors, otherwise None."""
    if kernels() is None:
        return None
    module = importlib.import_module(f"{KERNELS}.adamw_kernel")
    return module if module.supports(tensors) else None


def spell_ids(vocab_size: int) -> Speller | None:
    """Return the kernel that spells token ids in decimal, or None if numpy has to."""
    package = kernels()
    spell: Speller | None = None if package is None else package.spell_ids(vocab_size)
    return spell


def merge_learner(classes: Classes, order: bytes, limit: int) -> MergeLearner | None:
    """Return the kernel that learns byte-pair merges, or None if `tokenizers` has to."""
    package = kernels()
    learner: MergeLearner | None = (
        None if package is None else package.merge_learner(classes, order, limit)
    )
    return learner
