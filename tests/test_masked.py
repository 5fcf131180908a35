"""A masked weight stays without effect, whatever trains, averages, copies or compiles the network.

The measure is what convolutions and linear operations really compute with: a torch-function mode
counts the nonzeros of the weights that they are given, and every masked weight is set to a value
that the output would show.
"""

import copy
import io
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_model, save_model
from samples import Net
from timm.utils import ModelEmaV3  # type: ignore[attr-defined]
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.overrides import TorchFunctionMode

import n2nfx
from n2nfx.masked import MASK, MASKED_CLASS, MaskedLinear, keep
from n2nfx.network import Network

OPERATIONS = {f"{op}{d}d" for op in ("conv", "conv_transpose") for d in (1, 2, 3)} | {"linear"}
LOUD = [1e3, float("inf"), float("nan")]


def mlp() -> nn.Sequential:
    """Linear layers without biases: every parameter is a matrix."""
    layers: list[nn.Module] = []
    for _ in range(5):
        layers += [nn.Linear(12, 12, bias=False), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def random(*shape: int, seed: int = 7) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def images(seed: int = 7) -> Tensor:
    return random(4, 3, 8, 8, seed=seed)


def network_of(build: Callable[[], nn.Module], x: Tensor, seed: int = 0) -> Network:
    """A sparse network with skip branches."""
    network = n2nfx.transform(
        seeded(build), density=0.4, skip_ratio=0.4, floor=0, example=x, seed=seed
    ).network
    assert network.skips
    return network


def sparse(seed: int = 0) -> Network:
    return network_of(Net, images(), seed)


class _Operands(TorchFunctionMode):
    """The nonzeros of every weight that a convolution or linear operation is given."""

    def __init__(self) -> None:
        super().__init__()
        self.nonzeros = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in OPERATIONS:
            self.nonzeros += int(torch.count_nonzero(args[1]))
        return func(*args, **(kwargs or {}))


def used(module: nn.Module, x: Tensor) -> int:
    """How many nonzero weights the module computes with."""
    with _Operands() as operands, torch.no_grad():
        copy.deepcopy(module)(x)
    return operands.nonzeros


def spoil(module: nn.Module, network: Network, value: float = 1e3) -> None:
    """Set every masked weight of a module to a value that an output would show."""
    with torch.no_grad():
        for name, mask in network.masks.items():
            module.get_parameter(name)[~mask] = value


def masked_parts(network: Network, tensors: Callable[[str], Tensor]) -> Tensor:
    """What the tensors, by the weight's name, hold at the masked places."""
    return torch.cat([tensors(name)[~mask].flatten() for name, mask in network.masks.items()])


def raw(network: Network) -> Tensor:
    return masked_parts(network, network.module.get_parameter)


def step(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Output and gradients of one call."""
    module.zero_grad()
    output = module(x)
    output.square().mean().backward()
    grads = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return {"": output.detach(), **grads}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


# Training.


def sgd(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4)


def nesterov(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True)


def adam(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01, weight_decay=1e-2)


def adamw(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=1e-2)


elementwise = pytest.mark.parametrize("optimizer", [sgd, nesterov, adam, adamw])


def train(
    network: Network, optimizer: Callable[..., torch.optim.Optimizer], x: Tensor
) -> Iterator[None]:
    """Several steps; every prunable weight gets a gradient, and changes."""
    module = network.module.train()
    stepper = optimizer(module.parameters())
    for _ in range(5):
        before = {name: module.get_parameter(name).detach().clone() for name in network.masks}
        grads = step(module, x)
        stepper.step()
        for name, weight in before.items():
            assert grads[name].any()
            assert not torch.equal(module.get_parameter(name), weight)
        yield


@elementwise
def test_no_masked_weight_comes_back_in_training(optimizer: Any) -> None:
    network = sparse()
    for _ in train(network, optimizer, images()):
        assert not raw(network).any()
        assert used(network.module, images()) == network.nnz


@elementwise
def test_no_masked_weight_comes_back_in_a_trained_dense_checkpoint(optimizer: Any) -> None:
    network = sparse()
    network.module.load_state_dict(seeded(Net, seed=5).state_dict(), strict=False)
    for _ in train(network, optimizer, images()):
        assert used(network.module, images()) == network.nnz


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_moves_masked_weights_and_they_stay_without_effect() -> None:
    network = network_of(mlp, random(4, 12))
    muon = getattr(torch.optim, "Muon", None)
    for _ in train(network, muon, random(4, 12)):  # type: ignore[arg-type]
        assert raw(network).any()
        assert used(network.module, random(4, 12)) == network.nnz


def test_the_gradient_of_a_masked_weight_is_exactly_zero() -> None:
    network = sparse()
    spoil(network.module, network)
    grads = step(network.module, images())
    assert not masked_parts(network, grads.__getitem__).any()
    assert all(grads[name][mask].any() for name, mask in network.masks.items())


def test_a_masked_weight_gets_no_gradient_from_one_that_is_not_finite() -> None:
    network = sparse()
    (network.module(images()) * torch.nan).sum().backward()
    grads = {name: p.grad for name, p in network.module.named_parameters() if p.grad is not None}
    assert masked_parts(network, lambda name: grads[name].isnan()).sum() == 0


def test_mixed_precision_computes_with_the_kept_weights_only() -> None:
    network = sparse()
    spoil(network.module, network)
    with torch.autocast("cpu", torch.bfloat16):
        assert used(network.module, images()) == network.nnz


# The function never depends on a masked weight.


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("value", LOUD)
@pytest.mark.parametrize(("build", "x"), [(Net, images()), (mlp, random(4, 12))])
def test_outputs_and_gradients_do_not_depend_on_a_masked_weight(
    build: Callable[[], nn.Module], x: Tensor, value: float, training: bool
) -> None:
    network = network_of(build, x)
    module = network.module.train(training)
    spoiled = copy.deepcopy(module)
    spoil(spoiled, network, value)
    assert same(step(spoiled, x), step(module, x))


def test_a_resnet_does_not_depend_on_a_masked_weight() -> None:
    x = random(2, 3, 32, 32)
    network = n2nfx.transform(
        "torchvision:resnet18", density=0.05, skip_ratio=0.5, example=x
    ).network
    assert network.skips
    spoiled = copy.deepcopy(network.module)
    spoil(spoiled, network, torch.nan)
    assert same(step(spoiled, x), step(network.module, x))


def test_a_layer_that_keeps_nothing_gives_its_bias() -> None:
    layer = MaskedLinear(3, 2)
    layer.register_buffer(MASK, torch.zeros(2, 3, dtype=torch.bool))
    output = layer(random(4, 3))
    assert torch.equal(output, layer.bias.expand(4, 2))
    output.sum().backward()
    assert layer.weight.grad is not None
    assert not layer.weight.grad.any()


def test_keep_gives_the_weight_or_zero() -> None:
    weight = torch.tensor([1.0, torch.inf, torch.nan, -0.0, 2.0])
    mask = torch.tensor([True, False, False, True, False])
    kept = keep(weight, mask)
    assert kept.tolist() == [1.0, 0.0, 0.0, 0.0, 0.0]
    assert kept.signbit().tolist() == [False, False, False, True, False]


# Every class of layer.

STOCK: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3), (2, 4, 9)),
    "Conv1d no bias": (lambda: nn.Conv1d(4, 6, 3, bias=False), (2, 4, 9)),
    "Conv1d same": (lambda: nn.Conv1d(4, 6, 5, padding="same"), (2, 4, 9)),
    "Conv1d circular": (
        lambda: nn.Conv1d(4, 6, 3, padding=2, padding_mode="circular"),
        (2, 4, 9),
    ),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 9, 8)),
    "Conv2d groups": (lambda: nn.Conv2d(4, 6, 3, groups=2), (2, 4, 9, 8)),
    "Conv2d depthwise": (lambda: nn.Conv2d(4, 8, 3, groups=4, bias=False), (2, 4, 9, 8)),
    "Conv2d dilation": (lambda: nn.Conv2d(4, 6, (3, 2), dilation=(2, 1)), (2, 4, 9, 8)),
    "Conv2d reflect": (
        lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        (2, 4, 9, 8),
    ),
    "Conv2d same circular": (
        lambda: nn.Conv2d(4, 6, 3, padding="same", padding_mode="circular"),
        (2, 4, 9, 8),
    ),
    "Conv3d": (lambda: nn.Conv3d(2, 4, 3, padding=1), (2, 2, 4, 5, 6)),
    "Conv3d replicate": (
        lambda: nn.Conv3d(2, 4, 3, padding=1, padding_mode="replicate"),
        (2, 2, 4, 5, 6),
    ),
    "ConvTranspose1d": (
        lambda: nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1),
        (2, 4, 9),
    ),
    "ConvTranspose2d": (
        lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, dilation=2),
        (2, 4, 5, 6),
    ),
    "ConvTranspose2d groups": (
        lambda: nn.ConvTranspose2d(4, 6, 3, groups=2, bias=False),
        (2, 4, 5, 6),
    ),
    "ConvTranspose3d": (lambda: nn.ConvTranspose3d(2, 4, 3, stride=2), (2, 2, 3, 4, 3)),
    "Linear": (lambda: nn.Linear(6, 5), (3, 6)),
    "Linear no bias, more dimensions": (lambda: nn.Linear(6, 5, bias=False), (3, 4, 6)),
}


class Upsampled(nn.Module):
    """A transposed convolution that is told its output's size."""

    def __init__(self, layer: nn.Module, size: list[int]) -> None:
        super().__init__()
        self.layer, self.size = layer, size

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, output_size=self.size)


SIZED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ConvTranspose1d": (
        lambda: Upsampled(nn.ConvTranspose1d(4, 6, 3, stride=3), [14]),
        (2, 4, 4),
    ),
    "ConvTranspose2d": (
        lambda: Upsampled(nn.ConvTranspose2d(4, 6, 3, stride=2), [10, 11]),
        (2, 4, 4, 5),
    ),
    "ConvTranspose3d": (
        lambda: Upsampled(nn.ConvTranspose3d(2, 4, 3, stride=2), [7, 8, 10]),
        (2, 2, 3, 3, 4),
    ),
}


def bound_and_reference(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> tuple[Network, nn.Module]:
    """A bound layer, loud where it is masked, and the plain one with those weights zeroed."""

    def wrapped() -> nn.Module:
        return nn.Sequential(build())

    network = n2nfx.transform(seeded(wrapped), density=0.5, floor=0, example=random(*shape)).network
    reference = seeded(wrapped)
    spoil(reference, network, 0.0)
    spoil(network.module, network)
    return network, reference


@pytest.mark.parametrize(
    ("build", "shape"),
    [*STOCK.values(), *SIZED.values()],
    ids=[*STOCK, *(f"{name} output_size" for name in SIZED)],
)
def test_a_bound_layer_computes_as_the_plain_one_with_zeros_to_the_bit(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    network, reference = bound_and_reference(build, shape)
    x, y = (random(*shape).requires_grad_() for _ in range(2))
    bound, plain = step(network.module, x), step(reference, y)
    assert list(bound) == list(plain)
    for name, expected in plain.items():
        assert torch.equal(bound[name], expected * network.masks.get(name, torch.tensor(1)))
    assert x.grad is not None
    assert y.grad is not None
    assert torch.equal(x.grad, y.grad)


@pytest.mark.parametrize("name", ["Conv2d", "ConvTranspose2d", "Linear"])
def test_a_bound_layer_takes_one_example_without_a_batch(name: str) -> None:
    build, shape = STOCK[name]
    network, reference = bound_and_reference(build, shape)
    layer, plain = network.module.get_submodule("0"), reference.get_submodule("0")
    assert torch.equal(layer(random(*shape[1:])), plain(random(*shape[1:])))


def test_a_bound_layer_refuses_an_impossible_output_size_as_the_plain_one_does() -> None:
    build, shape = STOCK["ConvTranspose2d"]
    network, _ = bound_and_reference(build, shape)
    with pytest.raises(ValueError, match="requested an output size"):
        network.module.get_submodule("0")(random(*shape), output_size=[99, 99])


def test_every_stock_class_has_a_masked_one_that_is_tested_here() -> None:
    tested = {type(build()) for build, _ in STOCK.values()}
    assert tested == set(MASKED_CLASS)


# Averages and copies.


def averaged(network: Network, use_buffers: bool) -> nn.Module:
    average = AveragedModel(
        network.module, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=use_buffers
    )
    for _ in train(network, sgd, images()):
        average.update_parameters(network.module)
    return average.module


def averaged_by_timm(network: Network) -> nn.Module:
    average = ModelEmaV3(network.module, decay=0.5)
    for _ in train(network, sgd, images()):
        average.update(network.module)
    return average.module


AVERAGES: dict[str, Callable[[Network], nn.Module]] = {
    "parameters": lambda network: averaged(network, use_buffers=False),
    "parameters and buffers": lambda network: averaged(network, use_buffers=True),
    "timm": averaged_by_timm,
}


@pytest.mark.parametrize("average", AVERAGES.values(), ids=AVERAGES)
def test_a_moving_average_stays_masked(average: Callable[[Network], nn.Module]) -> None:
    network = sparse()
    module = average(network)
    assert not masked_parts(network, module.get_parameter).any()
    assert used(module, images()) == network.nnz
    spoiled = copy.deepcopy(module)
    spoil(spoiled, network, torch.nan)
    assert torch.equal(spoiled(images()), module(images()))


@pytest.mark.parametrize("average", AVERAGES.values(), ids=AVERAGES)
def test_a_moving_average_averages(average: Callable[[Network], nn.Module]) -> None:
    network, again = sparse(), sparse()
    expected = again.module.get_parameter("w").detach().clone()
    for number, _ in enumerate(train(again, sgd, images())):
        share = 0.0 if number == 0 and average is not AVERAGES["timm"] else 0.5
        expected = share * expected + (1 - share) * again.module.get_parameter("w").detach()
    torch.testing.assert_close(average(network).get_parameter("w"), expected)


def pickled(module: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(module))


def saved(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, pickled, saved])
def test_a_copy_is_the_same_network_and_stays_masked(way: Callable[[Any], nn.Module]) -> None:
    network = sparse()
    module = network.module
    copied = way(module)
    assert list(copied.state_dict()) == list(module.state_dict())
    assert type(copied).__name__ == "Net"
    spoil(copied, network)
    assert used(copied, images()) == network.nnz
    assert same(step(copy.deepcopy(copied), images()), step(copy.deepcopy(module), images()))


@pytest.mark.parametrize("way", [copy.deepcopy, pickled, saved])
def test_training_a_copy_leaves_the_original_alone(way: Callable[[Any], Any]) -> None:
    network = sparse()
    before = {name: tensor.clone() for name, tensor in network.module.state_dict().items()}
    copied = way(network)
    for _ in train(copied, sgd, images()):
        assert used(copied.module, images()) == network.nnz
    assert same(before, dict(network.module.state_dict()))


def test_a_pickled_module_works_in_a_fresh_process(tmp_path: Path) -> None:
    network = network_of(mlp, random(4, 12))  # no class of this file, which nobody could import
    spoil(network.module, network)
    torch.save((pickle.dumps(network.module), random(4, 12)), tmp_path / "in")
    program = (
        "import pickle, sys, torch\n"
        "code, x = torch.load(sys.argv[1], weights_only=False)\n"
        "torch.save(pickle.loads(code)(x), sys.argv[2])\n"
    )
    command = [sys.executable, "-W", "error", "-c", program, tmp_path / "in", tmp_path / "out"]
    subprocess.run(command, check=True)
    assert torch.equal(torch.load(tmp_path / "out"), network.module(random(4, 12)))


# States.


def test_a_saved_state_makes_another_network_the_same() -> None:
    first, second = sparse(seed=0), sparse(seed=1)
    for _ in train(first, sgd, images()):
        pass
    assert not same(dict(first.masks), dict(second.masks))
    file = io.BytesIO()
    torch.save(first.module.state_dict(), file)
    file.seek(0)
    second.module.load_state_dict(torch.load(file, weights_only=True), strict=True)
    assert same(dict(second.module.state_dict()), dict(first.module.state_dict()))
    assert used(second.module, images()) == first.nnz
    assert same(step(second.module, images()), step(first.module, images()))


def test_a_state_may_be_assigned_instead_of_copied() -> None:
    first, second = sparse(seed=0), sparse(seed=1)
    second.module.load_state_dict(first.module.state_dict(), strict=True, assign=True)
    assert torch.equal(second.module.eval()(images()), first.module.eval()(images()))


def test_a_dense_state_may_be_assigned_and_stays_masked() -> None:
    network = n2nfx.transform(seeded(Net), density=0.4, example=images()).network
    network.module.load_state_dict(seeded(Net, seed=5).state_dict(), strict=True, assign=True)
    assert used(network.module, images()) == network.nnz


def test_a_state_holds_the_masks_as_bools() -> None:
    state = sparse().module.state_dict()
    masks = {name: tensor.dtype for name, tensor in state.items() if "mask" in name}
    assert masks
    assert set(masks.values()) == {torch.bool}


# Other dtypes and devices.


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_masks_stay_bool_and_at_work_in_another_dtype(dtype: torch.dtype) -> None:
    network = sparse()
    module = network.module.to(dtype)
    masks = [tensor for name, tensor in module.named_buffers() if "mask" in name]
    assert len(masks) == len(network.masks)
    assert {mask.dtype for mask in masks} == {torch.bool}
    x = images().to(dtype)
    spoiled = copy.deepcopy(module)
    spoil(spoiled, network, torch.nan)
    assert same(step(spoiled, x), step(module, x))
    assert used(spoiled, x) == network.nnz


def test_a_network_moves_to_the_meta_device() -> None:
    module = sparse().module.to("meta")
    assert {tensor.device.type for tensor in module.state_dict().values()} == {"meta"}
    assert module(torch.empty(6, 3, 8, 8, device="meta")).shape == (6, 5)


def test_channels_last_weights_stay_masked() -> None:
    network = sparse()
    module: nn.Module = network.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    spoil(module, network)
    assert used(module, images()) == network.nnz


# Compilers.


@pytest.fixture
def compiler() -> Iterator[None]:
    """A compiler that has seen nothing yet, and forgets what it saw."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def compiled(module: nn.Module, backend: str) -> Callable[[Tensor], Tensor]:
    return torch.compile(module, backend=backend, fullgraph=True)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("training", [False, True])
def test_a_compiled_network_computes_the_same_and_stays_masked(training: bool) -> None:
    network = sparse()
    module = network.module.train(training)
    eager = copy.deepcopy(module)
    spoil(module, network, torch.nan)
    fast: Any = compiled(module, "aot_eager")
    expected, got = step(eager, images()), step(fast, images())
    got = {name.removeprefix("_orig_mod."): tensor for name, tensor in got.items()}
    torch.testing.assert_close(got, expected)
    assert not masked_parts(network, got.__getitem__).any()


@pytest.mark.usefixtures("compiler")
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_a_network_compiled_by_inductor_computes_the_same_and_stays_masked() -> None:
    network = network_of(mlp, random(4, 12))
    fast = compiled(network.module, "inductor")
    with torch.no_grad():
        expected = network.module(random(4, 12))
        torch.testing.assert_close(fast(random(4, 12)), expected)
        spoil(network.module, network, torch.nan)
        torch.testing.assert_close(fast(random(4, 12)), expected)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(("build", "shape"), [*STOCK.values(), *SIZED.values()])
def test_every_stock_class_compiles_without_a_break(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    network, reference = bound_and_reference(build, shape)
    output = compiled(network.module, "eager")(random(*shape))
    torch.testing.assert_close(output, reference(random(*shape)))


def test_an_exported_network_gives_the_same_output_to_the_bit_and_holds_its_masks() -> None:
    network = sparse()
    module = network.module.eval()
    with torch.no_grad():
        program = torch.export.export(module, (images(),))
        exported: Any = program.module()
        assert torch.equal(exported(images()), module(images()))
    masks = [tensor for name, tensor in program.state_dict.items() if "mask" in name]
    assert sum(int(mask.sum()) for mask in masks) == network.nnz
    assert {mask.dtype for mask in masks} == {torch.bool}


def test_an_exported_network_stays_masked() -> None:
    network = sparse()
    module = network.module.eval()
    with torch.no_grad():
        exported: Any = torch.export.export(module, (images(),)).module()
        expected = exported(images())
        spoil(exported, network, torch.nan)
        assert torch.equal(exported(images()), expected)


def test_an_exported_network_can_be_saved_and_loaded() -> None:
    network = sparse()
    module = network.module.eval()
    file = io.BytesIO()
    with torch.no_grad():
        torch.export.save(torch.export.export(module, (images(),)), file)
        file.seek(0)
        loaded: Any = torch.export.load(file).module()
        assert torch.equal(loaded(images()), module(images()))


def test_a_layer_of_two_names_is_loaded_from_a_file_that_has_one(tmp_path: Path) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = self.other = nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return self.other(torch.relu(self.one(x)))

    first, second = (
        n2nfx.transform(Twice(), density=0.5, skip_ratio=0, example=torch.zeros(1, 6), seed=seed)
        for seed in (0, 1)
    )
    save_model(first.network.module, str(tmp_path / "x.safetensors"))
    load_model(second.network.module, str(tmp_path / "x.safetensors"))
    x = torch.randn(3, 6)
    assert torch.equal(first.network.module(x), second.network.module(x))
