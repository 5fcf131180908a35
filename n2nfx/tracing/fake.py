"""A copy of a model without data, which may be run as often as one likes, and leaves no trace."""

import logging
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode

from n2nfx.errors import CannotOperate
from n2nfx.graphmodule import HOOKS
from n2nfx.tracing.hooked import holders, is_own
from n2nfx.tracing.twins import twin

_TABLES = tuple(name for name in vars(nn.Module()) if "hooks" in name)


def fake_copy(model: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A copy with fake tensors for real ones, and without hooks: they are not ours to call."""
    real = [*model.parameters(), *model.buffers()]
    try:
        tables = _empty_tables(model.modules())
        fakes = tables | {id(tensor): _fake(tensor, mode) for tensor in real}
        with FakeCopyMode(mode):  # for tensors that are neither parameters nor buffers
            fake = twin(model, fakes)
    except Exception as error:
        raise CannotOperate(
            f"{type(model).__name__} cannot be copied for tracing: {error}"
        ) from error
    lay_bare(fake)
    return fake


def meta_copy(model: nn.Module) -> nn.Module:
    """A copy on the `meta` device, without hooks. Raises whatever a copy or a tensor may raise."""
    modules = [*model.modules()]
    tables = [table for m in modules for table in (m._parameters, m._buffers, vars(m))]
    real = {id(t): t for table in tables for t in table.values() if isinstance(t, Tensor)}
    blanks = {key: _on_meta(tensor) for key, tensor in real.items()}
    blank = twin(model, _empty_tables(modules) | blanks)
    lay_bare(blank)
    return blank


def _empty_tables(modules: Iterable[nn.Module]) -> dict[int, Any]:
    """What becomes of modules' tables of hooks, by id: most of what there is to copy."""
    tables = [vars(m)[name] for m in modules for name in _TABLES if name in vars(m)]
    return {id(table): type(table)() for table in tables}


def _on_meta(tensor: Tensor) -> Tensor:
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
        raise TypeError(f"a {type(tensor).__name__} ({tensor.layout})")
    blank = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(blank, requires_grad=tensor.requires_grad)
    return blank.requires_grad_(tensor.requires_grad)


def lay_bare(model: nn.Module) -> None:
    """Take away a copy's hooks, but its own (`hooked`), and what `torch.compile` put on modules."""
    tables = [table for m in model.modules() for name in HOOKS if (table := getattr(m, name))]
    known = holders(model) if tables else {}
    for table in tables:
        for key in [key for key, hook in table.items() if not is_own(hook, known)]:
            del table[key]
    for module in model.modules():
        if type(module).__module__.startswith("torch._dynamo"):
            vars(module)["forward"] = module._orig_mod


def _fake(tensor: Tensor, mode: FakeTensorMode) -> Tensor:
    """A fake tensor like a real one. Plain ones are made anew, five times faster than converted."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
        return mode.from_tensor(tensor, static_shapes=True)
    with mode:
        fake = torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
        )
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(fake, requires_grad=tensor.requires_grad)
    return fake.requires_grad_(tensor.requires_grad)


@contextmanager
def quiet() -> Iterator[None]:
    """Let torch not log the traceback of what is told in a sentence."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    disabled, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = disabled


@contextmanager
def random_untouched() -> Iterator[None]:
    """Leave every random generator as it was, and refuse draws that a graph would freeze."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
            same = map(np.array_equal, numpy, np.random.get_state())
            if random.getstate() != python or not all(same):
                raise CannotOperate(
                    "forward draws from the generator of Python or numpy, and the graph would keep "
                    "what it drew while traced; draw with torch"
                )
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
