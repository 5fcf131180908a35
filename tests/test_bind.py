"""Masks act in a module by its own names: bound, tied, hooked, loaded, unbound and baked."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import Model, Tied
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torchvision.models import resnet18

import n2nfx
from n2nfx import artifact
from n2nfx.bind import as_it_acts, bind, plain_state, unbind
from n2nfx.connectivity import count_effective
from n2nfx.errors import CannotOperate, UsageError
from n2nfx.masked import MASKED_CLASS, MaskedConv2d, MaskedWeight
from n2nfx.masks import Masks
from n2nfx.network import Layer, Network

PLAIN = tuple(MASKED_CLASS)
OPERATIONS = ("conv1d", "conv2d", "conv3d", "linear")


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


class CalledTwice(nn.Module):
    """One convolution in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x).relu())


class Functional(nn.Module):
    """Weights that functions use directly: at the root, nested, and one in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.inner = nn.ParameterDict({"kernel": torch.randn(4, 4, 3, 3)})
        self.w = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = functional.conv2d(x, self.kernel, padding=1).relu()
        x = functional.conv2d(x, weight=self.inner["kernel"], padding=1).relu().mean((2, 3))
        return functional.linear(functional.linear(x, self.w).relu(), self.w)


class TiedToFunction(nn.Module):
    """A layer whose weight a function uses too."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.fc(x).relu(), self.fc.weight)


class TiedEmbedding(nn.Module):
    """A language model's output layer that shares its weight with the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(10, 6), nn.Linear(6, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embedding(x))


class Penalized(nn.Module):
    """A layer whose weight's length is an output too."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x) * self.fc.weight.square().sum()


class NamesThatMeet(nn.Module):
    """Two parameters, and a submodule, whose names are the same once dots become underscores."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.ParameterDict({"b_c": torch.randn(6, 6)})
        self.a_b = nn.ParameterDict({"c": torch.randn(6, 6)})
        self.a_b_c_masked = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        x = functional.linear(functional.linear(x, self.a["b_c"]), self.a_b["c"])
        return self.a_b_c_masked(x)


IMAGES, VECTORS = (4, 3, 8, 8), (4, 6)
SHARED: list[tuple[Callable[[], nn.Module], tuple[int, ...], int]] = [
    (Tied, VECTORS, 36),
    (CalledTwice, IMAGES, 81),
    (Functional, IMAGES, 4 * 3 * 9 + 4 * 4 * 9 + 16),
    (TiedToFunction, VECTORS, 36),
    (Penalized, VECTORS, 36),
    (NamesThatMeet, VECTORS, 72),
]
shared = pytest.mark.parametrize(
    ("build", "shape"), [(build, shape) for build, shape, _ in SHARED], ids=lambda v: str(v)[-30:]
)


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A model with random weights and norms in use, the same for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                module.running_mean.normal_()
        return model


def random(*shape: int, seed: int = 7) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pruned(build: Callable[[], nn.Module], shape: tuple[int, ...], **options: Any) -> Network:
    options = {"density": 0.4, "floor": 0, **options}
    return n2nfx.transform(seeded(build), example=random(*shape), **options).network


def with_skips(seed: int = 0) -> Network:
    network = pruned(convolutional, IMAGES, skip_ratio=0.4, seed=seed)
    assert network.skips
    return network


def spoil(network: Network, value: float = 1e3) -> None:
    """Set every masked weight to a value that would be noticed."""
    with torch.no_grad():
        for name, mask in network.masks.items():
            network.module.get_parameter(name)[~mask] = value


def zeroed(build: Callable[[], nn.Module], masks: Masks) -> nn.Module:
    """The plain model with the masked weights zeroed by hand."""
    model = seeded(build)
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name)[~mask] = 0
    return model


def step(module: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and gradients of one call."""
    module.zero_grad()
    output = module(x)
    output.square().sum().backward()
    grads = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return output.detach(), grads


class Calls(TorchFunctionMode):
    """How often convolutions and linear operations were called, and with which nonzeros."""

    def __init__(self) -> None:
        super().__init__()
        self.nonzeros: list[int] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in OPERATIONS:
            weight = args[1] if len(args) > 1 else (kwargs or {})["weight"]
            self.nonzeros.append(int(torch.count_nonzero(weight)))
        return func(*args, **(kwargs or {}))


# Tied, repeated and functional weights.


@pytest.mark.parametrize(("build", "shape", "size"), SHARED)
def test_a_weight_in_several_places_is_counted_once(
    build: Callable[[], nn.Module], shape: tuple[int, ...], size: int
) -> None:
    network = pruned(build, shape)
    assert network.size == size
    assert network.nnz == network.masks.nnz == round(0.4 * size)


@shared
def test_a_mask_acts_wherever_its_weight_is_used(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    network = pruned(build, shape)
    spoil(network)
    output, grads = step(network.module, random(*shape))
    expected, reference = step(zeroed(build, network.masks), random(*shape))
    assert torch.equal(output, expected)
    for name, mask in network.masks.items():
        assert torch.equal(grads[name], reference[name] * mask)


@pytest.mark.parametrize(
    ("build", "shape", "uses"),
    [(Tied, VECTORS, 2), (CalledTwice, IMAGES, 2), (TiedToFunction, VECTORS, 2)],
)
def test_one_mask_acts_in_both_places(
    build: Callable[[], nn.Module], shape: tuple[int, ...], uses: int
) -> None:
    network = pruned(build, shape)
    with Calls() as calls:
        network.module(random(*shape))
    assert calls.nonzeros == [network.nnz] * uses


def test_functional_weights_keep_their_names() -> None:
    state = pruned(Functional, IMAGES).module.state_dict()
    assert {"kernel", "inner.kernel", "w"} <= set(state)


def test_names_that_meet_do_not_share_a_mask() -> None:
    network = pruned(NamesThatMeet, VECTORS)
    masks = [m.mask for m in network.module.modules() if isinstance(m, MaskedWeight)]
    assert len(masks) == 2
    assert not torch.equal(*masks)
    assert isinstance(network.module.get_submodule("a_b_c_masked"), nn.Sigmoid)


def test_a_weight_shared_with_an_embedding_is_refused_by_name() -> None:
    ids = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises(n2nfx.CannotOperate, match=r"embedding \(Embedding\)"):
        n2nfx.transform(TiedEmbedding(), density=0.4, example=ids)


def test_a_mask_that_would_act_nowhere_is_refused_by_name() -> None:
    norm = Layer("1", "linear", "1.weight", (8,), (8,), (8,), 8)
    network = n2nfx.trace(convolutional(), random(*IMAGES))
    wrong = replace(network, layers=(norm,), masks=Masks({"1.weight": torch.arange(8) > 3}))
    with pytest.raises(n2nfx.CannotOperate, match=r"1\.weight would act nowhere"):
        bind(wrong)


# What binding leaves as it was.


def test_a_layer_that_keeps_every_weight_stays_plain() -> None:
    network = pruned(convolutional, IMAGES, ends="dense")
    assert type(network.module.get_submodule("0")) is nn.Conv2d
    assert type(network.module.get_submodule("12")) is nn.Linear
    assert type(network.module.get_submodule("3")) is MaskedConv2d


def test_density_one_binds_nothing() -> None:
    network = pruned(convolutional, IMAGES, density=1.0)
    model = seeded(convolutional)
    assert list(network.module.state_dict()) == list(model.state_dict())
    assert torch.equal(network.module(random(*IMAGES)), model(random(*IMAGES)))


@pytest.mark.parametrize("skip_ratio", [0.0, 0.4])
def test_every_original_key_is_still_there_in_its_order(skip_ratio: float) -> None:
    network = pruned(convolutional, IMAGES, skip_ratio=skip_ratio)
    original = list(seeded(convolutional).state_dict())
    assert [key for key in network.module.state_dict() if key in original] == original


def test_a_resnet_keeps_its_keys_containers_and_classes() -> None:
    model = resnet18(weights=None, num_classes=10)
    module = n2nfx.transform(
        model, density=0.1, skip_ratio=0.5, example=random(1, 3, 32, 32)
    ).network.module
    original = list(model.state_dict())
    assert [key for key in module.state_dict() if key in original] == original
    layer = module.get_submodule("layer1")
    assert isinstance(layer, nn.Sequential)
    assert isinstance(layer[0].get_submodule("conv1"), nn.Conv2d)


def test_the_users_model_is_untouched() -> None:
    model = seeded(convolutional)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    n2nfx.transform(model, density=0.4, skip_ratio=0.4, example=random(*IMAGES))
    assert all(type(m) not in MASKED_CLASS.values() for m in model.modules())
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())


# Dense checkpoints and states of others.


def dense_state() -> dict[str, Tensor]:
    return seeded(convolutional, seed=5).state_dict()


def test_a_dense_checkpoint_loads_strictly_where_there_are_no_skips() -> None:
    network = pruned(convolutional, IMAGES)
    network.module.load_state_dict(dense_state(), strict=True)
    state = network.module.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in dense_state().items())
    assert same(as_it_acts(network).masks, network.masks)


def test_the_masks_of_a_network_with_other_layers_whole_are_not_mixed_with_its_own() -> None:
    x, model = random(*IMAGES), convolutional()
    ends = n2nfx.transform(model, density=0.4, skip_ratio=0, ends="dense", example=x).network
    all_of_them = n2nfx.transform(model, density=0.4, skip_ratio=0, example=x).network
    with pytest.raises(RuntimeError, match=r"Missing key.*: \"0.weight_mask\", \"12.weight_mask"):
        all_of_them.module.load_state_dict(ends.module.state_dict())
    told = all_of_them.module.load_state_dict(ends.module.state_dict(), strict=False)
    assert told.missing_keys == ["0.weight_mask", "12.weight_mask"]


def test_a_dense_checkpoint_stays_masked() -> None:
    network = pruned(convolutional, IMAGES)
    network.module.load_state_dict(dense_state())
    reference = seeded(convolutional, seed=5)
    with torch.no_grad():
        for name, mask in network.masks.items():
            reference.get_parameter(name).mul_(mask)
    x = random(*IMAGES)
    with Calls() as calls:
        output = network.module(x)
    assert torch.equal(output, reference(x))
    assert sum(calls.nonzeros) == network.nnz


def test_a_dense_checkpoint_of_functional_weights_loads_strictly() -> None:
    network = pruned(Functional, IMAGES)
    network.module.load_state_dict(seeded(Functional, seed=5).state_dict(), strict=True)
    with Calls() as calls:
        network.module(random(*IMAGES))
    assert sum(calls.nonzeros) == network.nnz + network.masks.counts["w"]  # w is used twice


@pytest.mark.parametrize("branch_norm", ["none", "batch"])
def test_all_that_a_dense_checkpoint_lacks_are_the_skips(branch_norm: str) -> None:
    network = pruned(convolutional, IMAGES, skip_ratio=0.4, branch_norm=branch_norm)
    lacks = network.module.load_state_dict(dense_state(), strict=False)
    weights = {skip.weight for skip in network.skips}
    norms = {key for key in lacks.missing_keys if "_norm." in key}
    assert set(lacks.missing_keys) - norms == weights
    assert bool(norms) == (branch_norm == "batch")
    assert all(key.startswith("skips.") for key in norms)
    assert lacks.unexpected_keys == []


def test_loading_a_dense_checkpoint_strictly_names_the_skips() -> None:
    network = with_skips()
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*skips\.") as caught:
        network.module.load_state_dict(dense_state(), strict=True)
    assert "weight_mask" not in str(caught.value)


def test_loading_leaves_the_users_state_as_it_was() -> None:
    state = dense_state()
    keys = list(state)
    pruned(convolutional, IMAGES).module.load_state_dict(state)
    assert list(state) == keys


def test_a_loaded_state_does_not_change_the_masks_of_the_network() -> None:
    network, other = with_skips(seed=0), with_skips(seed=1)
    before = {name: mask.clone() for name, mask in network.masks.items()}
    network.module.load_state_dict(other.module.state_dict())
    assert all(torch.equal(network.masks[name], mask) for name, mask in before.items())


def test_networks_with_the_same_masks_do_not_share_what_acts() -> None:
    first, other = with_skips(seed=0), with_skips(seed=1)
    second = n2nfx.Pipeline([])(first).network
    expected = first.module(random(*IMAGES))
    second.module.load_state_dict(other.module.state_dict())
    assert torch.equal(first.module(random(*IMAGES)), expected)


@pytest.mark.parametrize("build", [convolutional, Functional])
def test_the_masks_at_work_are_those_of_the_network_until_others_are_loaded(
    build: Callable[[], nn.Module],
) -> None:
    network, other = (pruned(build, IMAGES, seed=seed) for seed in (0, 1))
    assert same(as_it_acts(network).masks, network.masks)
    network.module.load_state_dict(other.module.state_dict())
    assert same(as_it_acts(network).masks, other.masks)
    assert not same(other.masks, network.masks)


def same(one: Masks, other: Masks) -> bool:
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


# Hooks.


def recorder(log: list[Any]) -> Callable[..., None]:
    def hook(*args: Any) -> None:
        log.append(args)

    return hook


def bound_convolution() -> tuple[nn.Module, nn.Module]:
    module = with_skips().module
    layer = module.get_submodule("3")
    assert isinstance(layer, MaskedConv2d)
    return module, layer


def test_a_forward_hook_gets_the_layer_its_inputs_and_its_output() -> None:
    module, layer = bound_convolution()
    log: list[Any] = []
    layer.register_forward_hook(recorder(log))
    module(random(*IMAGES))
    ((hooked_layer, inputs, output),) = log
    assert hooked_layer is layer
    assert isinstance(layer, nn.Conv2d)
    assert torch.equal(output, layer(*inputs))


def test_a_forward_hook_may_replace_the_output() -> None:
    module, layer = bound_convolution()
    before = module(random(*IMAGES))

    def louder(_layer: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        return output + 1e3

    layer.register_forward_hook(louder)
    assert not torch.equal(module(random(*IMAGES)), before)


def test_a_forward_pre_hook_may_replace_the_input() -> None:
    module, layer = bound_convolution()
    log: list[Any] = []
    layer.register_forward_pre_hook(lambda _layer, inputs: (inputs[0] * 0,))
    layer.register_forward_hook(recorder(log))
    module(random(*IMAGES))
    ((hooked_layer, inputs, output),) = log
    assert hooked_layer is layer
    assert not inputs[0].any()
    assert not output.any()


def test_a_full_backward_hook_gets_the_gradients_of_the_layer() -> None:
    module, layer = bound_convolution()
    log: list[Any] = []
    layer.register_full_backward_hook(recorder(log))
    module(random(*IMAGES)).sum().backward()
    ((hooked_layer, (grad_input,), (grad_output,)),) = log
    assert hooked_layer is layer
    assert grad_input.shape == grad_output.shape == (4, 8, 8, 8)
    assert grad_input.any()


called: list[nn.Module] = []  # the modules that `note` was a hook of


def note(module: nn.Module, *_args: Any) -> None:
    called.append(module)


def hooked() -> nn.Module:
    """A model with hooks on one of its layers; none was called yet."""
    model = seeded(convolutional)
    layer = model.get_submodule("3")
    layer.register_forward_hook(note)
    layer.register_forward_pre_hook(note)
    layer.register_full_backward_hook(note)
    called.clear()
    return model


def test_hooks_of_the_users_layers_are_not_called_while_tracing() -> None:
    n2nfx.trace(hooked(), random(*IMAGES))
    assert called == []


def test_hooks_of_the_users_layers_are_not_called_while_transforming() -> None:
    n2nfx.transform(hooked(), density=0.4, skip_ratio=0.4, example=random(*IMAGES))
    assert called == []


def test_hooks_of_the_users_layers_are_called_by_the_transformed_module() -> None:
    model = hooked()
    network = n2nfx.transform(model, density=0.4, skip_ratio=0.4, example=random(*IMAGES)).network
    called.clear()
    network.module(random(*IMAGES)).sum().backward()
    assert called == [network.module.get_submodule("3")] * 3
    assert isinstance(called[0], MaskedConv2d)


@pytest.mark.parametrize(
    "register",
    ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"],
)
def test_a_hook_on_a_block_is_called_and_the_layers_inside_have_their_masks(register: str) -> None:
    model = resnet18(weights=None)
    getattr(model.get_submodule("layer2.0"), register)(note)
    outcome = n2nfx.transform(model, density=0.1, skip_ratio=0.5, example=random(1, 3, 32, 32))
    module = outcome.network.module
    called.clear()
    module(random(2, 3, 32, 32)).sum().backward()
    assert called == [module.get_submodule("layer2.0")]
    assert outcome.network.size == sum(
        p.numel() for name, p in model.named_parameters() if p.dim() > 1
    )
    assert isinstance(module.get_submodule("layer2.0.conv1"), MaskedConv2d)


# Unbind and bake.


def bound_by_hand(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> Network:
    """A traced network with random masks, bound here and by no pipeline."""
    network = n2nfx.trace(seeded(build), random(*shape))
    masks = {layer.weight: random(*layer.weight_shape) > 0 for layer in network.layers}
    return replace(network, masks=Masks(masks))


@pytest.mark.parametrize(
    ("build", "shape"), [(convolutional, IMAGES), *((b, s) for b, s, _ in SHARED)]
)
def test_unbind_is_the_inverse_of_bind(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    network = bound_by_hand(build, shape)
    module, x = network.module.eval(), random(*shape)
    before = (network.text(), list(module.state_dict()), [type(m) for m in module.modules()])
    output = module(x)
    bind(network)
    assert list(module.state_dict()) != before[1]
    assert not torch.equal(module(x), output)
    unbind(module)
    assert (
        network.text(),
        list(module.state_dict()),
        [type(m) for m in module.modules()],
    ) == before
    assert torch.equal(module(x), output)


def test_unbind_leaves_the_weights_as_they_are() -> None:
    network = with_skips()
    spoil(network, 7.0)
    unbind(network.module)
    for name, mask in network.masks.items():
        assert bool((network.module.get_parameter(name)[~mask] == 7).all())


def test_a_network_can_be_bound_again() -> None:
    network = with_skips()
    expected = network.module(random(*IMAGES))
    unbind(network.module)
    bind(network)
    spoil(network)
    assert torch.equal(network.module(random(*IMAGES)), expected)


def test_baked_layers_are_plain() -> None:
    for network in (with_skips(), pruned(Functional, IMAGES)):
        modules = list(n2nfx.bake(network).module.modules())
        assert not any(isinstance(m, MaskedWeight) for m in modules)
        assert all(type(m) in PLAIN for m in modules if isinstance(m, PLAIN))
    assert type(n2nfx.bake(with_skips()).module.get_submodule("0")) is nn.Conv2d


def test_a_baked_network_has_the_models_keys_and_those_of_the_skips() -> None:
    network = with_skips()
    original = list(seeded(convolutional).state_dict())
    skips = [skip.weight for skip in network.skips]
    assert list(n2nfx.bake(network).module.state_dict()) == original + skips


def test_baked_weights_are_zero_where_masked_and_as_they_were_elsewhere() -> None:
    network = with_skips()
    spoil(network, torch.nan)
    baked = n2nfx.bake(network)
    for name, mask in network.masks.items():
        weight = baked.module.get_parameter(name)
        assert not weight[~mask].any()
        assert torch.equal(weight[mask], network.module.get_parameter(name)[mask])


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("build", [with_skips, lambda: pruned(Functional, IMAGES)])
def test_a_baked_network_gives_the_same_output_to_the_bit(
    build: Callable[[], Network], training: bool
) -> None:
    network = build()
    spoil(network)
    baked = n2nfx.bake(network)
    x = random(*IMAGES)
    bound, plain = (step(n.module.train(training), x) for n in (network, baked))
    assert torch.equal(bound[0], plain[0])
    for name, mask in network.masks.items():
        assert torch.equal(bound[1][name], plain[1][name] * mask)


def test_baking_leaves_the_bound_network_untouched() -> None:
    network = with_skips()
    spoil(network, 7.0)
    module = network.module
    types = [type(m) for m in module.modules()]
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with torch.no_grad():
        for parameter in n2nfx.bake(network).module.parameters():
            parameter.fill_(3.0)
    assert [type(m) for m in module.modules()] == types
    assert list(module.state_dict()) == list(state)
    assert all(torch.equal(state[name], now) for name, now in module.state_dict().items())


def test_a_baked_network_counts_and_masks_the_same() -> None:
    network = with_skips()
    baked = n2nfx.bake(network)
    assert (baked.nnz, baked.skips, baked.layers) == (network.nnz, network.skips, network.layers)
    assert same(baked.masks, network.masks)
    assert same(n2nfx.bake(baked).masks, network.masks)


def test_baking_bakes_the_masks_at_work() -> None:
    network, other = with_skips(seed=0), with_skips(seed=1)
    network.module.load_state_dict(other.module.state_dict())
    baked, x = n2nfx.bake(network), random(*IMAGES)
    assert torch.equal(baked.module.eval()(x), other.module.eval()(x))
    assert same(baked.masks, other.masks)


def test_a_pipeline_starts_from_the_masks_at_work() -> None:
    network, other = with_skips(seed=0), with_skips(seed=1)
    network.module.load_state_dict(other.module.state_dict())
    assert same(n2nfx.Pipeline([])(network).network.masks, other.masks)


def test_an_outcome_saves_the_masks_at_work(tmp_path: Path) -> None:
    outcome, other = (n2nfx.Pipeline([])(with_skips(seed=seed)) for seed in (0, 1))
    outcome.network.module.load_state_dict(other.network.module.state_dict())
    outcome.save(tmp_path / "saved")
    saved = artifact.read(tmp_path / "saved").masks
    assert saved.keys() == other.network.masks.keys()
    assert all(torch.equal(saved[name], mask) for name, mask in other.network.masks.items())


def test_the_plain_state_is_that_of_the_baked_network_tied_weights_once() -> None:
    network = pruned(TiedToFunction, VECTORS)
    assert list(plain_state(network.module)) == ["fc.weight", "fc.bias"]
    tied = pruned(Tied, VECTORS)
    assert list(plain_state(tied.module)) == ["first.weight", "first.bias", "second.bias"]
    skipping = with_skips()
    assert list(plain_state(skipping.module)) == list(n2nfx.bake(skipping).module.state_dict())


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight.clamp_(-0.1, 0.1),
        lambda weight: weight.data.clamp_(-0.1, 0.1),
        lambda weight: weight.detach().copy_(weight / 2),
        lambda weight: torch.clamp_(weight, -0.1, 0.1),
        lambda weight: weight.requires_grad_(False),
    ],
)
def test_a_weight_that_forward_changes_is_refused(change: Callable[[Tensor], object]) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            change(m.b.weight)
        return m.b(m.a(x).relu())

    model = Model(forward, a=nn.Linear(8, 8), b=nn.Linear(8, 8))
    with pytest.raises(CannotOperate, match="forward changes the weight in place"):
        n2nfx.transform(model, density=0.5, example=torch.randn(1, 8))


# What is replaced after tracing.


@pytest.mark.parametrize(
    ("new", "told"),
    [
        (nn.Linear(8, 7), r"^12.weight was 5x8, and is 7x8"),
        (nn.Identity(), r"^12.weight is gone: 12 \(Identity\) has no weight"),
        (nn.Sequential(nn.Linear(8, 5)), r"^12.weight is gone: 12 \(Sequential\) has no weight"),
    ],
)
def test_a_layer_that_was_replaced_by_another_is_told(new: nn.Module, told: str) -> None:
    network = with_skips()
    network.module.set_submodule("12", new)
    told = f"{told}.*; replace modules before tracing, and trace again"
    with pytest.raises(CannotOperate, match=told):
        n2nfx.bake(network)
    with pytest.raises(CannotOperate, match=told):
        n2nfx.channel_graph(network)


@pytest.mark.parametrize("use", [n2nfx.bake, lambda network: n2nfx.Pipeline([])(network).network])
def test_a_layer_that_was_replaced_by_one_of_its_shape_loses_no_weight(use: Any) -> None:
    network = with_skips()
    network.module.set_submodule("12", new := nn.Linear(8, 5))
    lost = new.weight.numel() - network.masks.counts["12.weight"]
    with pytest.raises(CannotOperate, match=rf"^the mask of 12.weight.*where {lost} weights"):
        use(network)
    assert new.weight.all()
    with torch.no_grad():
        new.weight *= network.masks["12.weight"]
    assert not use(network).module.get_parameter("12.weight")[~network.masks["12.weight"]].any()


def test_what_was_baked_and_trained_loses_no_weight(tmp_path: Path) -> None:
    outcome = n2nfx.transform(convolutional(), density=0.5, example=random(*IMAGES))
    baked = n2nfx.bake(outcome.network)
    replace(outcome, network=baked).save(tmp_path / "baked")
    baked.module.load_state_dict(dense_state())
    with pytest.raises(CannotOperate, match=r"is not at work.*trained or loaded since"):
        replace(outcome, network=baked).save(tmp_path / "trained")


def test_a_branch_to_a_layer_that_was_replaced_says_that_it_may_have_been() -> None:
    network = with_skips()
    assert "12" in {skip.target for skip in network.skips}
    network.module.set_submodule("12", nn.Linear(8, 7))
    told = "a branch gives 5 and its target has 7.*layer that was replaced.*before tracing"
    with pytest.raises(CannotOperate, match=told):
        network.module(torch.rand(2, 3, 8, 8))


@pytest.mark.parametrize("use", [n2nfx.bake, n2nfx.channel_graph, count_effective])
def test_what_is_no_network_is_told(use: Any) -> None:
    outcome = n2nfx.transform(convolutional(), density=0.5, example=random(*IMAGES))
    told = "n2nfx.trace.* or an outcome's .network, not Outcome"
    with pytest.raises(UsageError, match=told):
        use(outcome)
