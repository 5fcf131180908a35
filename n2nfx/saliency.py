"""What pruners that score weights share: a copy of the network to take gradients on.

The network itself is never run, so that its module, buffers, gradients and the random generators
are left as they were.
"""

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from n2nfx.batches import Batch, Loss
from n2nfx.bind import bind, computed_weights, unbind
from n2nfx.errors import CannotOperate, N2nfxError, UsageError, first_line
from n2nfx.masks import Masks, Ranked
from n2nfx.network import Network
from n2nfx.seeds import derive

Norm = Literal["batch", "running"]


@dataclass(frozen=True)
class _Branch:
    """The weight of a skip branch as an allocation sees it: no floor holds for a branch."""

    name: str
    weight: str
    size: int
    weight_shape: tuple[int, ...]
    channels: int = 0


def prunable(network: Network) -> tuple[Ranked, ...]:
    """Every prunable weight: the layers', and those of skip branches behind the first layer.

    The last is so the last layer, for allocations that keep the ends whole.
    """
    branches = (
        _Branch(skip.name, skip.weight, skip.size, skip.weight_shape)
        for skip in network.skips
        if skip.size
    )
    return (*network.layers[:1], *branches, *network.layers[1:])


class Workbench:
    """A copy of a network's module in which only the prunable weights get gradients.

    Every weight is there, whatever the network's masks. Everything is in evaluation mode but, with
    `norm="batch"`, the norms that have running statistics, which then use those of the batch; the
    graph is the one for training then, if there is one. Gains of norms that are exactly zero are
    one: behind them nothing would have a gradient. What the network draws by itself is seeded.
    """

    def __init__(
        self, network: Network, norm: Norm, seed: int, dtype: torch.dtype | None = None
    ) -> None:
        self._network = network
        self._seed = seed
        self.module = copy.deepcopy(network.module).to(dtype)
        unbind(self.module)
        self.module.requires_grad_(False)
        self.weights = {
            item.weight: self.module.get_parameter(item.weight) for item in prunable(network)
        }
        for weight in self.weights.values():
            weight.requires_grad_()
        _open_gains(self.module)
        set_mode(self.module, norm)
        self.computed = computed_weights(self.module) & self.weights.keys()

    def run(self, inputs: Sequence[Tensor]) -> Any:
        """The module's output, to be differentiated."""
        with seeded(self._seed, inputs[0].device), torch.enable_grad():
            try:
                return call(self.module, inputs)
            except Exception as error:
                shapes = ", ".join("x".join(map(str, one.shape)) for one in inputs)
                told = first_line(error) or type(error).__name__
                raise CannotOperate(
                    f"the network cannot run on inputs of {shapes}: {told}"
                ) from error

    def loss(self, batch: Batch, loss: Loss) -> Tensor:
        """The loss over one batch, a single finite number."""
        output = self.run(batch.inputs)
        try:
            with torch.enable_grad():
                value = loss(output, batch.targets)
        except N2nfxError:
            raise
        except Exception as error:
            told = first_line(error) or type(error).__name__
            raise CannotOperate(f"the loss cannot be computed: {told}") from error
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise UsageError("a loss must give one number, the mean over the batch, as a tensor")
        if not torch.isfinite(value):
            raise CannotOperate(f"the loss is {value.item()}{self._first_bad(batch)}")
        return value.reshape(())

    def gradients(self, value: Tensor, **options: Any) -> dict[str, Tensor]:
        """The derivative of a number by every weight, zero where it does not depend on it."""
        if not value.requires_grad:
            raise CannotOperate("the loss depends on no prunable weight: there is no gradient")
        found = torch.autograd.grad(
            value, list(self.weights.values()), materialize_grads=True, **options
        )
        return dict(zip(self.weights, found, strict=True))

    def mean_gradients(self, batches: Sequence[Batch], loss: Loss) -> dict[str, Tensor]:
        """The gradient of the mean loss over the union of the batches.

        A loss is taken for the mean over its batch; each batch has its own statistics.
        """
        total: dict[str, Tensor] = {}
        for batch, share in shares(batches):
            with torch.enable_grad():
                value = self.loss(batch, loss) * share
            for name, found in self.gradients(value).items():
                total[name] = total[name].add_(found) if name in total else found
        return total

    def restrict(self, masks: Mapping[str, Tensor]) -> None:
        """Mask the weights that a layer computes further with, where it uses the result too.

        For all others it is enough that they are zero, which leaves them a gradient.
        """
        if masks:
            unbind(self.module)
            bind(replace(self._network, module=self.module, masks=Masks(masks)))

    def _first_bad(self, batch: Batch) -> str:
        """Which module is the first to give a number that is not finite."""
        found: list[str] = []

        def watch(name: str) -> Callable[[nn.Module, object, object], None]:
            def hook(_: nn.Module, __: object, output: object) -> None:
                if isinstance(output, Tensor) and not torch.isfinite(output).all():
                    found.append(name)

            return hook

        hooks = [
            part.register_forward_hook(watch(name))
            for name, part in self.module.named_modules()
            if name
        ]
        self.run(batch.inputs)
        for hook in hooks:
            hook.remove()
        return f"; {found[0]} is the first to give a value that is not finite" if found else ""


def shares(batches: Sequence[Batch]) -> Iterator[tuple[Batch, float]]:
    """Each batch with its share of all examples."""
    total = sum(batch.size for batch in batches)
    for batch in batches:
        yield batch, batch.size / total


def checked(scores: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The scores, detached; raises `CannotOperate` where some are not finite, or all are zero."""
    require_finite(scores)
    require_some(scores.values())
    return {name: own.detach() for name, own in scores.items()}


def require_finite(scores: Mapping[str, Tensor]) -> None:
    """Raise `CannotOperate` where some scores are not finite, with the first layer's name."""
    for name, own in scores.items():
        if torch.isfinite(own.sum()):
            continue  # a sum is not finite if a part is not
        bad = own.numel() - int(torch.isfinite(own).sum())
        if bad:
            raise CannotOperate(
                f"{bad:,} of the {own.numel():,} scores of {name} are NaN or infinite: the weights "
                "or the gradients there are not finite"
            )


def require_some(scores: Iterable[Tensor]) -> None:
    """Raise `CannotOperate` where all scores are zero."""
    if not any(own.any() for own in scores):
        raise CannotOperate(
            "all scores are zero, so they cannot tell one weight from another: nothing depends on "
            "any weight; random would do"
        )


def _open_gains(module: nn.Module) -> None:
    """Set the gains of norms, and of residual branches, that are exactly zero to one."""
    for part in module.modules():
        is_norm = any("norm" in cls.__name__.lower() for cls in type(part).__mro__)
        for name, gain in part.named_parameters(recurse=False):
            is_gain = gain.ndim < 2 and ("gain" in name or (is_norm and name == "weight"))
            if is_gain and not gain.any():
                gain.detach().fill_(1.0)


def set_mode(module: nn.Module, norm: Norm) -> None:
    """Evaluation, but with `norm="batch"` for the norms that have running statistics.

    They use those of the batch then, and the graph for training is run, if there is one.
    """
    module.eval()
    if norm == "running":
        return
    module.training = True  # which graph is run
    for part in module.modules():
        if isinstance(part, _NormBase):
            part.training = True


def call(module: nn.Module, inputs: Sequence[Tensor]) -> Any:
    """A module's output; a graph module called as usual would print where its code fails.

    What its forward prints goes to stderr.
    """
    with redirect_stdout(sys.stderr):
        return nn.Module.__call__(module, *inputs)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Let what draws from torch's generators draw the same, and leave them as they were."""
    own = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=own):
        torch.default_generator.manual_seed(derive(seed, "scores") % 2**63)
        if own:
            torch.cuda.default_generators[own[0]].manual_seed(derive(seed, "scores") % 2**63)
        yield
