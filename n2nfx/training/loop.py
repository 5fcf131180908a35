"""The training loop, from top to bottom: epochs, steps, what is measured, and where it stands.

Everything drawn is keyed by the seed and by where in the training it is drawn, and so is the
learning rate; a checkpoint therefore holds tensors and a position, and a training that goes on from
one ends with the same bits as one that was never interrupted.
"""

import errno
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from itertools import islice
from math import isfinite

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from n2nfx.bind import bake, masks_at_work, with_acting_masks, with_masks
from n2nfx.errors import CannotOperate, N2nfxError, described
from n2nfx.masks import Masks
from n2nfx.network import Network
from n2nfx.pipeline import BrokenInvariant
from n2nfx.runspec import Training
from n2nfx.seeds import derive
from n2nfx.tracing.values import tensors
from n2nfx.training.augment import draws
from n2nfx.training.average import Average
from n2nfx.training.checkpoint import Checkpoint
from n2nfx.training.data import Data
from n2nfx.training.ranks import Ranks
from n2nfx.training.rewiring import NotFinite, Rewiring
from n2nfx.training.sampler import sampler_of
from n2nfx.training.schedules import rate

_LOOK_EVERY = 16  # steps: to look at a number of the device is to wait for it
_REWIRE_EVERY = 100  # steps at most (Evci et al. 2020)
_WORKERS = 4  # processes that decode an image folder
_LEAST_SCALE = 2.0**-10  # a loss that must be scaled so low to have finite gradients has diverged


class Diverged(N2nfxError):
    """A loss or a gradient was no finite number; `epochs` are those that were done before."""

    def __init__(self, reason: str, epochs: list["Epoch"]) -> None:
        super().__init__(reason)
        self.epochs = epochs


@dataclass(frozen=True)
class Epoch:
    """What was measured when `epoch` epochs were done.

    `loss` is the mean over the epoch's training images, as trained; `test_loss` without smoothing;
    `accuracy` is on the test images, in percent. `seconds` are all since the run began, and
    `images_per_second` counts training only.
    """

    epoch: int
    loss: float
    accuracy: float
    test_loss: float
    lr: float
    images_per_second: float
    seconds: float


@dataclass(frozen=True)
class Progress:
    """How far a training is; `last` is the last epoch that was measured."""

    epoch: int
    epochs: int
    step: int
    steps: int
    images_per_second: float
    seconds_left: float
    last: Epoch | None


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network, its masked weights zero, and what every epoch measured."""

    network: Network
    epochs: list[Epoch]


Batch = tuple[Tensor, Tensor]


def train(
    network: Network,
    data: Data,
    training: Training,
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    ranks: Ranks | None = None,
    saved: Checkpoint | None = None,
    save: Callable[[Checkpoint], None] | None = None,
    save_every: float = 60.0,
    on_epoch: Callable[[Epoch], None] | None = None,
    watch: Callable[[Progress], None] | None = None,
) -> Trained:
    """Train a network whose masks are at work; the network that is handed in stays as it is.

    It goes on from `saved`; `save` is given a checkpoint whenever `save_every` seconds have passed,
    to be written at once: its tensors are those that are trained.
    Raises `Diverged`, and `CannotOperate` where the memory is too small.
    """
    device = torch.device(device)
    with _memory_told(training, device), _generators_restored(device):
        trainer = Trainer(network, data.to(device), training, seed, device, ranks or Ranks())
        if saved is not None:
            trainer.load(saved)
        clock = _Clock(trainer, saved.facts["seconds"] if saved is not None else 0.0)
        while len(trainer.epochs) < training.epochs:
            clock.start_epoch()
            for step, images in trainer.batches():
                trainer.step(step, images)
                clock.images += images
                if trainer.steps % _LOOK_EVERY == 0:
                    trainer.require_finite()
                    if watch is not None:
                        watch(clock.progress())
                if save is not None and clock.since_written >= save_every:
                    if trainer.is_finite():
                        save(trainer.checkpoint(clock.seconds))
                    clock.written = time.monotonic()
            trainer.require_finite()
            trainer.require_masks()
            clock.end_epoch()
            trainer.epochs.append(trainer.measured(clock))
            if on_epoch is not None:
                on_epoch(trainer.epochs[-1])
            if watch is not None:
                watch(clock.progress())
        return Trained(trainer.trained(), trainer.epochs)


class Trainer:
    """A network in training: what one step does, and all that a checkpoint must hold.

    `steps` and `epochs` are what was done so far; `sums` are those of the epoch's losses, over all
    ranks, and of its gradients' norms, where one that is not finite leaves its trace.
    """

    def __init__(
        self,
        network: Network,
        data: Data,
        training: Training,
        seed: int,
        device: torch.device,
        ranks: Ranks,
    ) -> None:
        self.training, self.data, self.seed, self.ranks = training, data, seed, ranks
        self.device = device
        self.sampler = sampler_of(training, len(data.train), seed, ranks.count)
        self.network = _own(network, training, device)
        self.module = self.network.module
        self.optimizer = _optimizer(self.module, training, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=training.precision == "fp16")
        self.average = Average(self.module, training.ema) if training.ema else None
        self.rewiring = _rewiring(self.network, self.optimizer, training, self.total, seed)
        projected = self.network.masks if self.rewiring is None else Masks()
        self.projection = _Projection(self.module, projected)
        compiled: nn.Module = torch.compile(self.module) if training.compile else self.module  # pyright: ignore[reportAssignmentType]
        self.compiled = compiled
        self.synchronized = ranks.synchronized(compiled, device)
        self.steps = 0
        self.epochs: list[Epoch] = []
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)
        self.require_ranks_alike()

    @property
    def total(self) -> int:
        """Steps of the whole training."""
        return self.training.epochs * self.sampler.steps

    # What a step does

    def batches(self) -> Iterator[tuple[Iterator[Batch], int]]:
        """What is left of the epoch: this rank's micro-batches of each step, the images of all."""
        epoch, train = len(self.epochs), self.data.train
        left = self.sampler.epoch(epoch, self.steps - epoch * self.sampler.steps)
        rows = [self.ranks.share(micro) for step in left for micro in step]
        drawn = None
        if self.training.augment:
            drawn = draws(self.seed, "augment", epoch, self.sampler.images)
        batches = train.batches(rows, drawn, _WORKERS)
        for step in left:
            yield islice(batches, len(step)), sum(map(len, step))

    def step(self, batches: Iterable[Batch], images: int) -> None:
        """One step of the optimizer, on micro-batches that on all ranks have so many images."""
        torch.manual_seed(derive(self.seed, "step", str(self.steps), str(self.ranks.rank)))
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.training, self.steps, self.sampler.steps)
        self.module.train()
        micro = list(batches)
        total = torch.zeros_like(self.sums[0])
        for number, (pixels, labels) in enumerate(micro, 1):
            with self._gradients_apart(number < len(micro)):
                loss = self._loss(self.synchronized, pixels, labels)
                self.scaler.scale(loss * (self.ranks.count / images)).backward()
            total += loss.detach()
        self.sums[0] += self.ranks.summed(total)
        if not self.scaler.is_enabled():  # else a gradient that overflows only lowers the scale
            self.sums[1] += _norm(self.module)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self.projection()
        self.steps += 1
        if self.rewiring is not None:
            self._rewire(self.rewiring, *micro[-1])
        if self.average is not None:
            self.average.update(self.steps)

    def _rewire(self, rewiring: Rewiring, pixels: Tensor, labels: Tensor) -> None:
        try:
            rewiring.step(lambda: self._loss(self.module, pixels, labels))
        except NotFinite as error:
            raise Diverged(str(error), self.epochs) from error

    def _loss(self, module: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
        """The sum of the images' losses."""
        scores = self._scores(module, pixels)
        labels = labels.to(self.device, non_blocking=True)
        smoothing = self.training.label_smoothing
        return functional.cross_entropy(scores, labels, reduction="sum", label_smoothing=smoothing)

    def _scores(self, module: nn.Module, pixels: Tensor) -> Tensor:
        images = self.data.normalized(pixels.to(self.device, non_blocking=True))
        if self.training.channels_last and images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        kind = _PRECISIONS[self.training.precision]
        with torch.autocast(self.device.type, kind, enabled=kind is not None):
            output = module(images)
        return next(tensors(output)).float()

    def _gradients_apart(self, apart: bool) -> AbstractContextManager[None]:
        """Where more micro-batches follow, ranks keep their gradients to themselves."""
        if apart and isinstance(self.synchronized, DistributedDataParallel):
            return self.synchronized.no_sync()
        return nullcontext()

    # What is looked at

    def is_finite(self) -> bool:
        """Whether every loss and gradient of this epoch was finite."""
        return bool(self.sums.isfinite().all())

    def require_finite(self) -> None:
        """Raise `Diverged` where a loss or gradient of this epoch was not finite: on all ranks."""
        loss, norm = self.sums.tolist()
        what = "" if isfinite(norm) else "a gradient"
        what = what if isfinite(loss) else "the loss"
        if self.scaler.is_enabled() and self.scaler.get_scale() < _LEAST_SCALE:
            what = "a gradient in fp16, however the loss was scaled,"
        if what:
            raise Diverged(
                f"epoch {len(self.epochs) + 1}, by step {self.steps}: {what} was not finite; try a "
                "lower lr or a warmup",
                self.epochs,
            )

    def require_masks(self) -> None:
        """Raise `BrokenInvariant` where not exactly the masked weights are zero."""
        found = with_acting_masks(self.network).nnz + self.projection.escaped()
        if found != self.network.nnz:
            raise BrokenInvariant(
                f"training keeps nnz: {self.network.nnz} at its start, {found} after step "
                f"{self.steps}"
            )
        self.require_ranks_alike()

    def require_ranks_alike(self) -> None:
        """Raise `RanksDiffer` where ranks have other masks or weights than the first."""
        self.ranks.require_same("the masks", _masks_of(self.network))
        self.ranks.require_same("the weights", self.module.parameters())

    def measured(self, clock: "_Clock") -> Epoch:
        """The end of an epoch: its losses, and the accuracy on the test images.

        Raises `Diverged` where their loss is not finite: no scores can be compared then.
        """
        images = self.sampler.images
        loss = float(self.sums[0]) / images
        self.sums.zero_()
        right, test_loss = self._tested()
        if not isfinite(test_loss):
            raise Diverged(
                f"epoch {len(self.epochs) + 1}: the loss on the test images was not finite; try a "
                "lower lr or a warmup",
                self.epochs,
            )
        return Epoch(
            epoch=len(self.epochs) + 1,
            loss=loss,
            accuracy=100 * right / len(self.data.test),
            test_loss=test_loss / len(self.data.test),
            lr=rate(self.training, self.steps - 1, self.sampler.steps),
            images_per_second=clock.images_per_second,
            seconds=clock.seconds,
        )

    @torch.no_grad()
    def _tested(self) -> tuple[int, float]:
        """How many test images are right, and the sum of their losses."""
        module = self.compiled if self.average is None else self.average.module
        self.ranks.share_buffers(self.module if self.average is None else self.average.module)
        module.eval()
        size = self.training.batch_size
        rows = np.split(np.arange(len(self.data.test)), range(size, len(self.data.test), size))
        own = [share for row in rows if len(share := self.ranks.share(row))]
        found = torch.zeros(2, dtype=torch.float64, device=self.device)
        for pixels, labels in self.data.test.batches(own, None, _WORKERS):
            scores, labels = self._scores(module, pixels), labels.to(self.device)
            found[0] += (scores.argmax(1) == labels).sum()
            found[1] += functional.cross_entropy(scores, labels, reduction="sum")
        right, loss = self.ranks.summed(found).tolist()
        return int(right), loss

    def trained(self) -> Network:
        """The network with the weights that were measured."""
        module = self.module if self.average is None else self.average.module
        return replace(self.network, module=module)

    # Where it stands

    def checkpoint(self, seconds: float) -> Checkpoint:
        """All that is needed to go on; learning rate and random numbers follow from `step`."""
        facts = {
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "seconds": seconds,
            "scaler": self.scaler.state_dict(),
            "rewiring": None if self.rewiring is None else self.rewiring.state_dict(),
        }
        return Checkpoint(self.steps, facts, dict(self._tensors()))

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield "sums", self.sums
        for name, mask in self.network.masks.items():
            yield f"mask/{name}", mask
        for name, tensor in self.module.state_dict().items():
            yield f"module/{name}", tensor
        if self.average is not None:
            for name, tensor in self.average.module.state_dict().items():
                yield f"average/{name}", tensor
        for number, parameter in enumerate(self._parameters()):
            for key, value in self.optimizer.state[parameter].items():
                yield f"optimizer/{number}/{key}", value

    def _parameters(self) -> list[nn.Parameter]:
        return self.optimizer.param_groups[0]["params"]

    def load(self, saved: Checkpoint) -> None:
        """Go on where a checkpoint was made, with its masks.

        A pruner that looks at data may choose others here: another CPU rounds otherwise.
        """
        self.steps = saved.step
        self.epochs = [Epoch(**epoch) for epoch in saved.facts["epochs"]]
        self.scaler.load_state_dict(saved.facts["scaler"])
        if self.rewiring is not None:
            self.rewiring.load_state_dict(saved.facts["rewiring"])
        self.sums.copy_(saved.tensors["sums"])
        self._take_masks(Masks(_under("mask", saved.tensors)))
        self.module.load_state_dict(_under("module", saved.tensors))
        if self.average is not None:
            self.average.module.load_state_dict(_under("average", saved.tensors))
        self._load_optimizer(_under("optimizer", saved.tensors))
        self.require_ranks_alike()

    def _take_masks(self, masks: Masks) -> None:
        made = self.network.masks
        alike = masks.keys() == made.keys() and masks.nnz == made.nnz
        if masks_at_work(self.module):  # which a weight that is whole has not
            alike = alike and _whole(masks) == _whole(made)
        if not alike:
            raise CannotOperate(
                "the checkpoint has masks of other weights than are pruned here: go on where the "
                "run was begun, or delete its folder"
            )
        masks = Masks({name: masks[name] for name in made})  # in the network's order
        self.network = with_masks(self.network, masks)
        if self.rewiring is None:
            self.projection = _Projection(self.module, masks)

    def _load_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        parameters = self._parameters()
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            number, _, key = name.partition("/")
            parameter = parameters[int(number)]
            if value.shape == parameter.shape:  # in its layout too, which decides how it is added
                value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
            state.setdefault(int(number), {})[key] = value
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})


_PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def _own(network: Network, training: Training, device: torch.device) -> Network:
    """A copy on the device, its masked weights zero; only rewiring needs the masks at work."""
    if training.rewiring == "none":
        own = bake(network)
    else:
        own = replace(network, module=deepcopy(network.module))
    own.module.to(device)
    if training.channels_last:
        own.module.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return own


def _optimizer(
    module: nn.Module, training: Training, device: torch.device
) -> torch.optim.Optimizer:
    fused = device.type in ("cpu", "cuda")
    parameters, decay = list(module.parameters()), training.weight_decay
    if training.optimizer == "adamw":
        betas = (training.momentum, 0.999)
        return torch.optim.AdamW(parameters, training.lr, betas, weight_decay=decay, fused=fused)
    sgd = torch.optim.SGD(
        parameters, training.lr, training.momentum,
        weight_decay=decay, nesterov=training.nesterov, fused=fused,
    )  # fmt: skip
    if training.momentum:
        # torch's fused SGD makes them in its first step, of whatever is in the memory, and leaves
        # them so where fp16 skips that step.
        for parameter in parameters:
            sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return sgd


def _rewiring(
    network: Network, optimizer: torch.optim.Optimizer, training: Training, total: int, seed: int
) -> Rewiring | None:
    """The rules of Evci et al. 2020: three quarters of the training, and once an epoch at least.

    In a network without masks, such as the reference, there is nothing to rewire.
    """
    if training.rewiring == "none" or not masks_at_work(network.module):
        return None
    return Rewiring(
        network, optimizer, method=training.rewiring, until=max(1, 3 * total // 4),
        every=min(_REWIRE_EVERY, total // training.epochs), seed=seed,
    )  # fmt: skip


class _Projection:
    """Sets the masked weights of a module to zero again."""

    def __init__(self, module: nn.Module, masks: Masks) -> None:
        partial = [name for name, mask in masks.items() if masks.counts[name] < mask.numel()]
        self._weights: list[Tensor] = [module.get_parameter(name) for name in partial]
        self._masks = [
            torch.empty_like(weight, requires_grad=False).copy_(masks[name])
            for name, weight in zip(partial, self._weights, strict=True)
        ]

    @torch.no_grad()
    def __call__(self) -> None:
        if self._weights:
            torch._foreach_mul_(self._weights, self._masks)  # pyright: ignore[reportPrivateImportUsage]

    def escaped(self) -> int:
        """How many masked weights are not zero."""
        pairs = zip(self._weights, self._masks, strict=True)
        return sum(int(((mask == 0) & (weight != 0)).sum()) for weight, mask in pairs)


class _Clock:
    """Seconds of the run, those before this process included, and how fast the epoch goes."""

    def __init__(self, trainer: Trainer, before: float) -> None:
        self._trainer, self._before = trainer, before
        self._first, self._start = trainer.steps, time.monotonic()
        self.written = self._start
        self.start_epoch()

    def start_epoch(self) -> None:
        self.images, self._epoch, self._end = 0, time.monotonic(), 0.0

    def end_epoch(self) -> None:
        """The images of the epoch were trained on; what comes is no training."""
        self._end = time.monotonic()

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._start

    @property
    def since_written(self) -> float:
        return time.monotonic() - self.written

    @property
    def images_per_second(self) -> float:
        return self.images / max((self._end or time.monotonic()) - self._epoch, 1e-9)

    def progress(self) -> Progress:
        trainer = self._trainer
        done = max(trainer.steps - self._first, 1)
        return Progress(
            epoch=len(trainer.epochs),
            epochs=trainer.training.epochs,
            step=trainer.steps,
            steps=trainer.total,
            images_per_second=self.images_per_second,
            seconds_left=(time.monotonic() - self._start) / done * (trainer.total - trainer.steps),
            last=trainer.epochs[-1] if trainer.epochs else None,
        )


def _whole(masks: Masks) -> set[str]:
    """The weights of which a mask drops nothing."""
    return {name for name, mask in masks.items() if masks.counts[name] == mask.numel()}


def _masks_of(network: Network) -> list[Tensor]:
    return list(with_acting_masks(network).masks.values())


def _norm(module: nn.Module) -> Tensor:
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    return torch.nn.utils.get_total_norm(gradients)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin so, without that."""
    start = f"{prefix}/"
    return {
        name.removeprefix(start): tensor
        for name, tensor in tensors.items()
        if name.startswith(start)
    }


@contextmanager
def _generators_restored(device: torch.device) -> Iterator[None]:
    """The caller's random numbers go on as if nothing had been drawn."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        yield


@contextmanager
def _memory_told(training: Training, device: torch.device) -> Iterator[None]:
    """Say what helps where the memory is too small; nothing is changed on anybody's behalf."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_of_memory(error):
            raise
        half, twice = (training.batch_size + 1) // 2, 2 * training.accumulate
        raise CannotOperate(
            f"the memory of {device} is too small for batches of {training.batch_size} "
            f"({described(error)}); batch_size={half} with accumulate={twice} takes half of it and "
            "as many images a step, but batch norms see smaller batches; precision=bf16 helps too"
        ) from error


def is_of_memory(error: BaseException | None) -> bool:
    """Whether an error says that the memory is too small, of a GPU or the machine."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or any(text in str(error) for text in _NO_MEMORY)


# As torch says it of the CPU's; as CUDA and its libraries say it, past torch's own allocator.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory", "_ALLOC_FAILED")
