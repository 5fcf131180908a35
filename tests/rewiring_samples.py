"""A small task for rewiring, trained by one process or by a rank of several.

Here and not in the test file: a spawned process imports what it runs by name.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from samples import Net
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

import n2nfx
from n2nfx.bind import as_it_acts
from n2nfx.training.rewiring import Rewiring

RANKS = 2


def outcome(seed: int = 0) -> n2nfx.Outcome:
    """A sparse network with skip branches that are at work."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Net()
    found = n2nfx.transform(
        model, density=0.3, skip_ratio=0.4, floor=0, example=torch.zeros(1, 3, 8, 8), seed=seed
    )
    assert found.network.skips
    return found


def batch(seed: int, size: int = 16) -> tuple[Tensor, Tensor]:
    """Images whose class is the patch that is bright."""
    random = torch.Generator().manual_seed(seed)
    images = torch.randn(size, 3, 8, 8, generator=random)
    labels = torch.randint(5, (size,), generator=random)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[label % 3, label : label + 3, label : label + 3] += 3
    return images, labels


def sgd(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


def train_on_share(
    method: Any,
    scope: Any,
    share: slice,
    wrap: Callable[[nn.Module], nn.Module] = lambda module: module,
) -> nn.Module:
    """A network trained on a share of every batch, its norms in evaluation."""
    network = outcome().network
    module = network.module.double()
    for part in module.modules():
        part.training = part.training and not isinstance(part, nn.BatchNorm2d)
    wrapped, optimizer = wrap(module), sgd(module)
    rewiring = Rewiring(network, optimizer, until=9, every=2, method=method, scope=scope)
    for step in range(6):
        images, labels = (part[share] for part in batch(step))

        def loss(x: Tensor = images, y: Tensor = labels) -> Tensor:
            return functional.cross_entropy(wrapped(x.double()), y)

        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        rewiring.step(loss)
    assert not same(dict(as_it_acts(network).masks), dict(network.masks))
    return module


def run_rank(rank: int, folder: Path, method: Any, scope: Any) -> None:
    """One of two processes that train one network, each on its half of every batch."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS
    )
    module = train_on_share(method, scope, slice(rank, None, RANKS), DistributedDataParallel)
    torch.save(state(module), folder / f"{rank}.pt")
    leave_together()


def leave_together() -> None:
    """End this rank's process once all ranks are done.

    Without C++ destructors: a thread of gloo that still runs then aborts the process.
    """
    distributed.barrier()
    distributed.destroy_process_group()
    os._exit(0)
