"""Dynamic sparse training: while a network trains, its weakest connections go and others come.

The number of kept weights stays, to the last one. SET grows at random (Mocanu et al. 2018, Nature
Communications 9:2383), RigL where the loss's gradient is largest (Evci et al. 2020, ICML). Skip
branches are rewired as layers are. In a training loop:

    rewiring = Rewiring(network, optimizer, until=3 * steps // 4)
    for inputs, targets in batches:
        ...
        optimizer.step()
        rewiring.step(lambda: loss(network.module(inputs), targets))
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from n2nfx.bind import masks_at_work
from n2nfx.errors import CannotOperate, UsageError, did_you_mean, kinds, require_kind
from n2nfx.masked import dense_gradients
from n2nfx.masks import top_k
from n2nfx.network import Network
from n2nfx.seeds import generator

Method = Literal["rigl", "set"]
Scope = Literal["layer", "global"]
Closure = Callable[[], Tensor]


@dataclass(frozen=True)
class Rules:
    """When a network is rewired, how much of it, and by what.

    Every `every` steps before step `until`, a share of the kept weights is exchanged: `fraction`
    at first, less and less as a cosine falls, none at `until` (Evci et al. 2020, section 3).
    """

    method: Method
    every: int
    fraction: float
    until: int
    seed: int
    scope: Scope

    def __post_init__(self) -> None:
        _require_choice("method", self.method, get_args(Method))
        _require_choice("scope", self.scope, get_args(Scope))
        for name in ("every", "until"):
            if type(value := getattr(self, name)) is not int or value < 1:
                raise UsageError(f"{name} is a number of steps, at least 1, not {value!r}")
        if type(self.fraction) not in (int, float) or not 0 < self.fraction <= 1:
            raise UsageError(f"fraction must be above 0 and at most 1, not {self.fraction!r}")
        if type(self.seed) is not int:
            raise UsageError(f"a seed must be a whole number (int), not {self.seed!r}")

    def due(self, step: int) -> bool:
        """Whether the network is rewired after that many training steps."""
        return step % self.every == 0 and step < self.until

    def share(self, step: int) -> float:
        """The share of the kept weights that is exchanged then."""
        return self.fraction / 2 * (1 + math.cos(math.pi * step / self.until))


def _require_choice(what: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(
            f"{what} must be {' or '.join(known)}, not {value!r}{did_you_mean(str(value), known)}"
        )


class NotFinite(CannotOperate):
    """A weight or a gradient that decides what is rewired is no finite number."""


class Rewiring:
    """Rewires the masks at work in a network's module, in place, while an optimizer trains it.

    Call `step` after every step of the optimizer. With the scope "layer" each layer and each
    branch keeps its number of weights; with "global" all of them exchange weights, and each keeps
    at least its strongest. The weights that take part are those that have a mask at work and that
    the optimizer trains; one that is kept whole stays whole. `until` is the step at which rewiring
    ends: three quarters of the training is usual. For the network's masks as they are now, see
    `n2nfx.bind.as_it_acts`.

    Raises `UsageError` for rules that nobody could follow, or an optimizer of another network.
    """

    def __init__(
        self,
        network: Network,
        optimizer: Optimizer,
        *,
        until: int,
        method: Method = "rigl",
        every: int = 100,
        fraction: float = 0.3,
        scope: Scope = "layer",
        seed: int = 0,
    ) -> None:
        require_kind(network, Network, "a network is n2nfx.load(...) or an outcome's .network")
        require_kind(optimizer, Optimizer, "an optimizer is one of torch.optim")
        self.rules = Rules(method, every, fraction, until, seed, scope)
        self.steps = 0
        self._network = network
        self._optimizer = optimizer
        self._weights()

    def step(self, closure: Closure | None = None) -> int:
        """Count one step of training, and rewire where that is due; gives how many weights grew.

        `closure` computes the loss of a batch and gives it, without going backward. RigL needs it,
        and calls it once where rewiring is due; SET never does. Raises `NotFinite` for a
        weight or a gradient that is not finite: nothing is changed then.
        """
        if closure is None and self.rules.method == "rigl":
            raise UsageError("rigl needs a closure that gives the loss: rewiring.step(lambda: ...)")
        step, grown = self.steps + 1, 0
        if self.rules.due(step):
            grown = self._rewire(step, closure)
        self.steps = step
        return grown

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides the states of the module and the optimizer."""
        return {"steps": self.steps, "rules": asdict(self.rules)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the state was taken; raises `UsageError` if that was by other rules."""
        if not isinstance(state, Mapping) or set(state) != {"steps", "rules"}:
            found = sorted(state) if isinstance(state, Mapping) else kinds(state)
            raise UsageError(f"a state of rewiring has steps and rules, not {found}")
        for name, own in asdict(self.rules).items():
            if (saved := state["rules"].get(name)) != own:
                raise UsageError(
                    f"the state was made with {name}={saved!r}, and here it is {own!r}"
                )
        self.steps = state["steps"]

    def _weights(self) -> list["_Weight"]:
        """Those that take part, as they are now: a module may have been moved or loaded since."""
        module, masks = self._network.module, masks_at_work(self._network.module)
        trained = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        named = ((name, module.get_parameter(name)) for name in self._network.masks)
        found = [
            _Weight(name, parameter, tuple(masks[id(parameter)]))
            for name, parameter in named
            if id(parameter) in masks and id(parameter) in trained and parameter.requires_grad
        ]
        if not found:
            raise UsageError(
                "the optimizer trains no weight that a mask of the network acts on; give it the "
                "parameters of the network's own module, outcome.network.module.parameters()"
            )
        return found

    def _rewire(self, step: int, closure: Closure | None) -> int:
        weights = self._weights()
        if self.rules.method == "set":
            appeals = [_random(weight, self.rules.seed, step) for weight in weights]
        else:
            assert closure is not None
            appeals = _gradients(self._network.module, weights, closure)
        found = list(zip(weights, appeals, strict=True))
        for weight, appeal in found:
            _require_finite(step, weight.name, "weights", weight.strength)
            _require_finite(step, weight.name, "gradients", appeal)
        pools = [found] if self.rules.scope == "global" else [[one] for one in found]
        # All is chosen before anything is changed.
        chosen = [_exchanged(pool, self.rules.share(step)) for pool in pools]
        changes = zip(weights, (mask for masks in chosen for mask in masks), strict=True)
        return sum(_change(weight, mask, self._optimizer) for weight, mask in changes)


@dataclass(frozen=True, eq=False)
class _Weight:
    """A weight that takes part, and all the buffers that mask it. What is compared is flat."""

    name: str
    parameter: nn.Parameter
    masks: tuple[Tensor, ...]

    @cached_property
    def kept(self) -> Tensor:
        return self.masks[0].reshape(-1).cpu()

    @cached_property
    def strength(self) -> Tensor:
        """The magnitude of each kept weight, in the order of their indices."""
        kept = self.parameter.detach()[self.masks[0]].abs().cpu()
        return kept.to(torch.promote_types(kept.dtype, torch.float32))


def _require_finite(step: int, name: str, what: str, values: Tensor) -> None:
    if not values.isfinite().all():
        raise NotFinite(
            f"step {step}: the {what} of {name} are not all finite, so it cannot be rewired; "
            "training has diverged, or the loss overflows"
        )


# What would be worth growing.


def _random(weight: _Weight, seed: int, step: int) -> Tensor:
    """A number above 0 for every weight, the same on every rank and machine."""
    draw = generator(seed, "rewiring", str(step), weight.name)
    return 1 - torch.from_numpy(draw.random(weight.parameter.numel(), dtype=np.float32))


def _gradients(module: nn.Module, weights: Sequence[_Weight], closure: Closure) -> list[Tensor]:
    """The magnitudes of the loss's gradients, those of dropped weights too, over all ranks.

    Nothing of it is left in the module: no gradient, no batch in the statistics of its norms.
    """
    with torch.enable_grad(), _buffers_restored(module), dense_gradients(module):
        loss = closure()
        if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
            raise UsageError("rewiring's closure must give the loss: one number with a gradient")
        gradients = _derivatives(loss, [weight.parameter for weight in weights])
    return [_summed(gradient).abs().reshape(-1).cpu() for gradient in gradients]


def _derivatives(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Sequence[Tensor]:
    try:
        return torch.autograd.grad(loss, parameters, materialize_grads=True)
    except RuntimeError as error:
        if "second time" not in str(error):
            raise
        raise UsageError(
            "rewiring's closure gives the loss and must not go backward itself, as an optimizer's "
            "does: leave loss.backward() out"
        ) from error


@contextmanager
def _buffers_restored(module: nn.Module) -> Iterator[None]:
    """Every buffer is the tensor that it was, with the values that it had."""
    tables = [(part._buffers, dict(part._buffers)) for part in module.modules()]
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, values in before:
            buffer.copy_(values)
        for table, own in tables:
            table.update(own)


def _summed(gradient: Tensor) -> Tensor:
    """The sum over all ranks, which orders weights as the mean does; every rank gets the same."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return gradient
    total = gradient.to(torch.promote_types(gradient.dtype, torch.float32), copy=True).contiguous()
    distributed.all_reduce(total)
    return total


# What is dropped and what is grown.


def _exchanged(pool: Sequence[tuple[_Weight, Tensor]], share: float) -> list[Tensor]:
    """The new masks, flat, of weights that exchange connections, each with its appeal.

    The weakest `share` of the kept is dropped, and as many are grown of all that is not kept then,
    the most appealing first; lower indices win. What was just dropped may come back: then it has
    not changed. The strongest of each weight stays, and what has no appeal at all is not grown:
    if there is too little that has, less is exchanged.
    """
    kept = torch.cat([weight.kept for weight, _ in pool])
    appeal = torch.cat([appeal for _, appeal in pool])
    at = kept.nonzero().flatten()
    loose = torch.cat([_but_the_strongest(weight.strength) for weight, _ in pool])
    count = min(
        int(share * len(at)),
        int(loose.count_nonzero()),
        int(appeal.count_nonzero() - appeal[at].count_nonzero()),
    )
    strength = torch.cat([weight.strength for weight, _ in pool])
    stays = ~loose
    stays[loose] = top_k(strength[loose], int(loose.count_nonzero()) - count)
    appeal[at[stays]] = -1
    mask = top_k(appeal, count)
    mask[at[stays]] = True
    return list(mask.split([weight.kept.numel() for weight, _ in pool]))


def _but_the_strongest(strength: Tensor) -> Tensor:
    """All True but the highest; among equals, the first of them."""
    return ~top_k(strength, min(1, strength.numel()))


def _change(weight: _Weight, mask: Tensor, optimizer: Optimizer) -> int:
    """Give a weight its new mask; what came or went is zero, and the optimizer knows nothing of it.

    Gives how many came.
    """
    parameter, changed = weight.parameter, mask ^ weight.kept
    forgotten = changed.reshape(parameter.shape).to(parameter.device)
    state = optimizer.state.get(parameter, {})
    alike = [s for s in state.values() if isinstance(s, Tensor) and s.shape == parameter.shape]
    with torch.no_grad():
        for buffer in weight.masks:
            buffer.copy_(mask.reshape(parameter.shape))
        for tensor in (parameter, *alike):
            tensor.masked_fill_(forgotten, 0)
    return int((mask & changed).sum())
