"""Tracing: models that do something outside of tensors, which no graph has, are seen to do it."""

import copy
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import samples
import torch
from torch import Tensor, nn
from torch.nn import functional

import n2nfx
from n2nfx.errors import CannotOperate
from n2nfx.network import Network
from n2nfx.passes import RandomPruning

Forward = Callable[[Any, Tensor], Tensor]

BATCH = 4  # one that tracing itself never uses


class Model(samples.Model):
    """A block between two layers, and a function of the module and the input for a forward."""

    first: Any
    block: Any
    last: Any

    def __init__(self, body: Forward) -> None:
        super().__init__(
            body,
            first=nn.Linear(4, 4),
            block=nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU()),
            last=nn.Linear(4, 4),
            scale=torch.ones(4),
        )

    def plain(self, x: Tensor) -> Tensor:
        return self.last(self.block(self.first(x)))


def built(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


def example(batch: int = 1) -> Tensor:
    return torch.linspace(-1, 1, 4 * batch).reshape(batch, 4)


def steps(model: nn.Module, training: bool, count: int = 3) -> list[Tensor]:
    """What several calls and backwards leave behind."""
    model.train(training)
    left: list[Tensor] = []
    for _ in range(count):
        model.zero_grad()
        output = model(example(BATCH))
        output.square().mean().backward()
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        left += [output.detach(), *grads, *(b.clone() for b in model.buffers())]
    return left


def assert_same(make: Callable[[], nn.Module], graph: nn.Module) -> None:
    """Call after call the graph does what a model that nobody called before does."""
    for training in (False, True):
        want, got = steps(built(make), training), steps(copy.deepcopy(graph), training)
        assert len(want) == len(got)
        assert all(map(torch.equal, want, got))


def traced(make: Callable[[], nn.Module]) -> Network:
    network = n2nfx.trace(built(make), example())
    assert_same(make, network.module)
    return network


def wholes(network: Network) -> list[str]:
    return [note.partition(" (")[0] for note in network.notes if "is kept as it is" in note]


# A forward that is put on an instance


def of_the_class(block: nn.Module) -> Callable[..., Any]:
    """A function that encloses what a module does by its class."""
    old = block.forward
    return lambda x: old(x) * 2


def with_default(block: nn.Module) -> Callable[..., Any]:
    return lambda x, old=block.forward: old(x) * 2


def enclosing_a_function(block: nn.Module) -> Callable[..., Any]:
    doubled = of_the_class(block)
    return lambda x: doubled(x) + 1


def a_method(block: nn.Module) -> Callable[..., Any]:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        return type(self).forward(self, x) * 2

    return types.MethodType(forward, block)


def of_its_weight(layer: Any) -> Callable[..., Any]:
    def forward(self: Any, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight * 2, self.bias)

    return types.MethodType(forward, layer) if isinstance(layer, nn.Linear) else layer.forward


def patched(path: str, way: Callable[[nn.Module], Callable[..., Any]]) -> nn.Module:
    model = Model(Model.plain)
    part = model.get_submodule(path)
    vars(part)["forward"] = way(part)
    return model


WAYS = [of_the_class, with_default, enclosing_a_function, a_method]


@pytest.mark.parametrize("path", ["block", "block.0", "block.1", "block.2", "first"])
@pytest.mark.parametrize("way", [*WAYS, of_its_weight])
def test_a_forward_on_an_instance_is_what_the_graph_does(path: str, way: Any) -> None:
    network = traced(lambda: patched(path, way))
    assert wholes(network) == []
    assert [layer.weight for layer in network.layers] == [
        "first.weight", "block.0.weight", "last.weight"
    ]  # fmt: skip


@pytest.mark.parametrize("path", ["block", "block.0"])
@pytest.mark.parametrize("way", [*WAYS, of_its_weight])
def test_a_dropped_weight_has_no_effect_under_a_forward_on_an_instance(path: str, way: Any) -> None:
    network = traced(lambda: patched(path, way))
    pruned = n2nfx.Pipeline([RandomPruning(0.5)])(network).network
    before = steps(copy.deepcopy(pruned.module), training=False, count=1)
    with torch.no_grad():
        for name, mask in pruned.masks.items():
            pruned.module.get_parameter(name)[~mask] = 1e3
    after = steps(copy.deepcopy(pruned.module), training=False, count=1)
    assert all(map(torch.equal, before, after))


def test_a_pipeline_changes_its_own_copy_of_what_a_forward_encloses() -> None:
    network = traced(lambda: patched("block", of_the_class))
    outcome = n2nfx.Pipeline([RandomPruning(0.5)])(network)
    with torch.no_grad():
        for parameter in network.module.parameters():
            parameter.fill_(torch.nan)
    assert outcome.network.module.eval()(example()).isfinite().all()


def test_a_forward_that_runs_the_original_by_a_global_name_is_refused() -> None:
    model = built(lambda: Model(Model.plain))
    namespace = {"old": model.get_submodule("block").forward}
    vars(model.block)["forward"] = eval("lambda x: old(x) * 2", namespace)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(CannotOperate, match=r"still runs layers of the model itself.*block\.1"):
        n2nfx.trace(model, example(2))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# Errors that the forward catches


def by_value(model: Any, x: Tensor) -> Tensor:
    try:
        factor = x.abs().max().item()
    except Exception:
        factor = 0.5
    return model.plain(x) * factor


def by_numpy(model: Any, x: Tensor) -> Tensor:
    try:
        added = torch.from_numpy(x.detach().numpy().copy())
    except Exception:
        added = torch.zeros(4)
    return model.plain(x) + added


@pytest.mark.parametrize("body", [by_value, by_numpy])
def test_an_error_of_tracing_that_the_forward_catches_is_seen(body: Forward) -> None:
    assert wholes(traced(lambda: Model(body))) == ["the whole model"]


class Catches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        try:
            return self.inner(x) * x.abs().max().item()
        except Exception:
            return x


def test_only_the_module_that_catches_is_kept_whole() -> None:
    network = traced(lambda: nn.Sequential(nn.Linear(4, 4), Catches(), nn.Linear(4, 4)))
    assert wholes(network) == ["1"]
    assert [layer.name for layer in network.layers] == ["0", "1.inner", "2"]


class CatchesAPart(nn.Module):
    """The part fails; what catches is around it, and another part is fine."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        try:
            x = x * torch.tensor(x.detach().numpy().max())
        except Exception:
            x = x + 1
        return self.fine(x)


def test_what_is_caught_beside_a_layer_keeps_its_module_whole() -> None:
    network = traced(lambda: nn.Sequential(CatchesAPart(), nn.Linear(4, 4)))
    assert wholes(network) == ["0"]


# Whether gradients are enabled


def by_grad_mode(model: Any, x: Tensor) -> Tensor:
    return model.plain(x) * (2 if torch.is_grad_enabled() else 1)


def test_a_forward_that_asks_whether_gradients_are_enabled_is_kept_whole() -> None:
    network = traced(lambda: Model(by_grad_mode))
    assert wholes(network) == ["the whole model"]
    assert "whether gradients are enabled" in network.notes[0]
    model, graph = built(lambda: Model(by_grad_mode)).eval(), network.module.eval()
    with torch.no_grad():
        assert torch.equal(model(example(BATCH)), graph(example(BATCH)))


def test_the_question_itself_is_left_as_it_was() -> None:
    ask = torch.is_grad_enabled
    n2nfx.trace(built(lambda: Model(by_grad_mode)), example())
    assert torch.is_grad_enabled is ask


# State in Python


def counter(model: Any, x: Tensor) -> Tensor:
    model.count = getattr(model, "count", 0) + 1
    return model.plain(x) * min(1.0, model.count / 10)


def first_call(model: Any, x: Tensor) -> Tensor:
    if not getattr(model, "known", False):
        with torch.no_grad():
            model.scale.copy_(x.mean(0))
        model.known = True
    return model.plain(x) * model.scale


def only_first(model: Any, x: Tensor) -> Tensor:
    first, model.later = not getattr(model, "later", False), True
    return model.plain(x) * (2 if first else 1)


def recurrent(model: Any, x: Tensor) -> Tensor:
    model.kept = (getattr(model, "kept", torch.zeros(4)) + x.mean(0)).detach()
    return model.plain(x) + model.kept


def listed(model: Any, x: Tensor) -> Tensor:
    model.seen = [*getattr(model, "seen", []), x.mean(0).detach()]
    return model.plain(x) + model.seen[0] * len(model.seen)


@pytest.mark.parametrize("body", [counter, first_call, only_first, recurrent, listed])
def test_a_forward_that_does_something_else_at_its_next_call_is_kept_whole(body: Forward) -> None:
    network = traced(lambda: Model(body))
    assert wholes(network) == ["the whole model"]
    assert "from one call to the next" in network.notes[0]
    assert len(network.layers) == 3


def cached(model: Any, x: Tensor) -> Tensor:
    if not hasattr(model, "grid"):
        model.grid = torch.linspace(0, 1, 4)
    return model.plain(x) + model.grid


def cached_by_size(model: Any, x: Tensor) -> Tensor:
    if getattr(model, "size", None) != x.shape[-1]:
        model.size, model.grid = x.shape[-1], torch.linspace(0, 1, x.shape[-1])
    return model.plain(x) + model.grid


def counts_for_itself(model: Any, x: Tensor) -> Tensor:
    model.count = getattr(model, "count", 0) + 1
    return model.plain(x)


def leaves_features(model: Any, x: Tensor) -> Tensor:
    model.features = model.first(x)
    return model.last(model.features)


@pytest.mark.parametrize("body", [cached, cached_by_size, counts_for_itself, leaves_features])
def test_a_forward_that_leaves_things_and_does_the_same_is_traced(body: Forward) -> None:
    assert wholes(traced(lambda: Model(body))) == []


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        return self.inner(x) * (0.5 if self.count > 1 else 1.0)


def test_only_the_module_that_counts_is_kept_whole() -> None:
    network = traced(lambda: nn.Sequential(nn.Linear(4, 4), Counter(), nn.Linear(4, 4)))
    assert wholes(network) == ["1"]


# The class of the model


class Frozen(Model):
    """A model whose norm stays in evaluation, as detectors do it."""

    def __init__(self) -> None:
        super().__init__(Model.plain)

    def train(self, mode: bool = True) -> "Frozen":
        super().train(mode)
        self.block[1].eval()
        return self


@pytest.mark.parametrize("way", [lambda g: g, copy.deepcopy, copy.copy])
def test_the_mode_is_set_as_the_models_class_does(way: Callable[[Any], nn.Module]) -> None:
    graph = way(traced(Frozen).module)
    norm = graph.get_submodule("block.1")
    assert (graph.train().training, norm.training) == (True, False)
    assert not graph.eval().training
    assert list(graph.state_dict()) == list(Frozen().state_dict())
    assert dict(graph.named_modules()).keys() == dict(Frozen().named_modules()).keys()


def test_masks_and_skips_follow_the_mode_of_a_class_of_its_own() -> None:
    pruned = n2nfx.Pipeline([RandomPruning(0.5)])(traced(Frozen)).network
    pruned.module.train()
    assert pruned.module.get_submodule("first").training
    assert not pruned.module.get_submodule("block.1").training


class Doubles(nn.Sequential):
    """A container that is kept whole, and runs over its own parts."""

    def forward(self, input: Tensor) -> Tensor:
        input = super().forward(input)
        return input * 2 if input.sum() > 0 else input


def test_a_sequential_model_that_is_kept_whole_runs_its_own_parts_only() -> None:
    network = traced(lambda: Doubles(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)))
    assert wholes(network) == ["the whole model"]
    assert [name for name, _ in network.module.named_children()] == ["0", "1", "2"]


# Saved and loaded


class InAList(nn.Module):
    """A layer that no table has; the model is kept whole."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [nn.Linear(4, 4)]
        self.last = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.hidden[0](x).relu())


class Experts(nn.Module):
    """Which layer is called, and in which order, depends on data."""

    def __init__(self) -> None:
        super().__init__()
        self.experts: Any = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        order = self.experts[0].weight.detach().sum(1).argsort().tolist()
        for index in order[:2]:
            x = self.experts[index % 3](x)
        return x


class Variadic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 4)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.last(inputs[0])


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(4, 4)

    def forward(self, **inputs: Tensor) -> Tensor:
        x = inputs["x"]
        return self.last(x) * (1 if x.sum() > 0 else 2)


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (InAList, example()),
        (Experts, example()),
        (Variadic, example()),
        (Named, {"x": example()}),
        (lambda: Model(counter), example()),
        (lambda: Model(counter), {"x": example()}),
        (lambda: patched("block", of_the_class), example()),
        (Frozen, example()),
    ],
)
def test_what_was_saved_is_loaded(tmp_path: Path, make: Any, inputs: Any) -> None:
    outcome = n2nfx.Pipeline([RandomPruning(0.5)])(n2nfx.trace(built(make), inputs))
    outcome.save(tmp_path / "saved")
    torch.manual_seed(7)  # other weights, which can lead to other layers
    again = n2nfx.load(tmp_path / "saved", model=make())
    assert again.layers == outcome.network.layers
    assert [spec.by_name for spec in again.inputs] == [isinstance(inputs, dict)]
    if make is not InAList:  # whose hidden layer is nowhere to be saved
        want = outcome.network.module.eval()(example(BATCH))
        assert torch.equal(again.module.eval()(example(BATCH)), want)


# What torch.compile makes


def never(*_: object) -> Any:
    raise AssertionError("something was compiled")


def compiled(path: str) -> nn.Module:
    model = Model(Model.plain)
    setattr(model, path, torch.compile(model.get_submodule(path), backend=never))
    return model


@pytest.mark.parametrize("path", ["block", "first"])
def test_a_compiled_part_is_traced_as_what_it_was_made_of(path: str) -> None:
    network = n2nfx.trace(built(lambda: compiled(path)), example())
    assert network.notes == ()
    assert len(network.layers) == 3
    assert_same(lambda: Model(Model.plain), network.module)
    pruned = n2nfx.Pipeline([RandomPruning(0.5)])(network).network
    assert pruned.module(example(BATCH)).isfinite().all()


def test_a_model_that_compiles_itself_is_traced_without() -> None:
    model = built(lambda: Model(Model.plain))
    model.get_submodule("block").compile(backend=never)
    network = n2nfx.trace(model, example())
    assert len(network.layers) == 3
    assert_same(lambda: Model(Model.plain), network.module)


# TorchScript inside


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x).relu()


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_inside_is_called_trained_and_told_not_to_be_prunable() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 4), torch.jit.script(Scripted()), nn.Linear(4, 4))

    network = traced(make)
    assert wholes(network) == ["1"]
    assert "nothing in it prunable" in network.notes[0]
    assert "1.inner: not prunable" in network.notes[1]
    assert [layer.name for layer in network.layers] == ["0", "2"]
    assert all(parameter.is_leaf for parameter in copy.deepcopy(network.module).parameters())
    n2nfx.Pipeline([RandomPruning(0.5)])(network)


# What has nothing to prune


def test_a_network_without_layers_is_refused_with_the_reasons() -> None:
    network = n2nfx.trace(nn.Sequential(nn.Flatten(), nn.ReLU()), example())
    with pytest.raises(CannotOperate, match="no prunable layer"):
        n2nfx.Pipeline([RandomPruning(0.5)])(network)


def test_a_hook_on_a_parameter_is_told_to_be_lost() -> None:
    model = built(lambda: Model(Model.plain))
    model.get_parameter("first.weight").register_hook(lambda gradient: gradient * 2)
    (note,) = n2nfx.trace(model, example()).notes
    assert note.startswith("first.weight has a hook of its own")


def test_masks_are_laid_out_as_their_weights_are() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)).to(
        memory_format=torch.channels_last
    )
    network = n2nfx.trace(model, torch.zeros(1, 3, 8, 8))
    pruned = n2nfx.Pipeline([RandomPruning(0.5)])(network).network
    for part in pruned.module.children():
        mask = part.get_buffer("weight_mask")
        assert mask.is_contiguous(memory_format=torch.channels_last)
