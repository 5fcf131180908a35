"""The processes that train one network together (torchrun), or the one that does it alone."""

import hashlib
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from n2nfx.errors import N2nfxError, UsageError


class RanksDiffer(N2nfxError):
    """Processes that should hold the same do not: a bug, or different machines or versions."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together; what is drawn and counted is the same on all.

    `rank` 0 writes what is written.
    """

    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, indices: np.ndarray) -> np.ndarray:
        """This rank's part of a batch; the parts of all ranks are the batch."""
        return indices[self.rank :: self.count]

    def summed(self, values: Tensor) -> Tensor:
        """The sums over all ranks, the same on each."""
        if self.count > 1:
            values = values.clone()
            distributed.all_reduce(values)
        return values

    def share_buffers(self, module: nn.Module) -> None:
        """Give all ranks the first one's buffers, as every training forward does."""
        if self.count > 1:
            for buffer in module.buffers():
                distributed.broadcast(buffer, 0)

    def of_first(self, value: Any) -> Any:
        """The first rank's value, on every rank; all of them wait here for it."""
        if self.count == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, 0)
        return values[0]

    def require_same(self, what: str, tensors: Iterable[Tensor]) -> None:
        """Raise `RanksDiffer` where the ranks' tensors are not equal to the last bit."""
        if self.count == 1:
            return
        found: list[Any] = [None] * self.count
        distributed.all_gather_object(found, _sha256(tensors))
        odd = [rank for rank, digest in enumerate(found) if digest != found[0]]
        if odd:
            raise RanksDiffer(
                f"{what} of rank {odd[0]} are not those of rank 0; are all processes on the same "
                "versions and the same data?"
            )

    def synchronized(self, module: nn.Module, device: torch.device) -> nn.Module:
        """The module with its gradients averaged over the ranks."""
        if self.count == 1:
            return module
        return DistributedDataParallel(
            module,
            device_ids=[device] if device.type == "cuda" else None,
            # Or else buckets change after the first step of each process, and with them the order
            # of sums: of three ranks on, a resumed run would differ in its last bits.
            find_unused_parameters=True,
        )


def _sha256(tensors: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().flatten()
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """The ranks: of the process group that there is, or that torchrun's environment names."""
    own = distributed.is_available() and not distributed.is_initialized() and launched()
    if own and device.type == "cuda":
        torch.cuda.set_device(device)  # where collectives of objects put them
    if own:
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        if distributed.is_available() and distributed.is_initialized():
            yield Ranks(distributed.get_rank(), distributed.get_world_size())
        else:
            yield Ranks()
        if own:
            distributed.barrier()  # who goes first may end what another still says
    finally:
        if own:
            distributed.destroy_process_group()


def launched() -> bool:
    """Whether torchrun started this process."""
    return {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def is_first() -> bool:
    """Whether this process is the one that tells, of those that torchrun started if it did."""
    return not launched() or os.environ["RANK"] == "0"


def leave() -> None:
    """End a process that torchrun started, as one that went right; any other goes on.

    Without C++ destructors: now and then a thread of gloo that still runs aborts the process.
    """
    if launched():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


def own_device(name: str) -> torch.device:
    """The device of that name; of several, the one that torchrun gives to this process.

    Raises UsageError where there is none.
    """
    count = torch.cuda.device_count()
    known = ["cpu", *(f"cuda:{index}" for index in range(count))]
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UsageError(f"there is no device {name!r}; there is {', '.join(known)}")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    if device.type == "cuda" and device.index >= count:
        raise UsageError(f"there is no device {name!r} here; there is {', '.join(known)}")
    return device
