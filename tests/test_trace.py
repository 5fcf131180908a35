"""Tracing: the graph does what the model does, to the last bit, and the model is left alone."""

import copy
import dataclasses
import pickle
import random
import subprocess
import sys
import textwrap
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import timm
import torch
import torch.utils.checkpoint
import torchvision
from samples import Model
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.std_conv import StdConv2d
from torch import Tensor, fx, nn
from torch.nn import functional

import n2nfx
from n2nfx.errors import CannotOperate
from n2nfx.graphmodule import graphs_of
from n2nfx.masked import MaskedLinear
from n2nfx.passes import N2NSkip, RandomPruning
from n2nfx.tracing import record

Forward = Callable[..., Any]

BATCH = 4  # one that tracing itself never uses


def examples(*shapes: tuple[int, ...], batch: int = 1) -> tuple[Tensor, ...]:
    return tuple(torch.rand(batch, *shape) - 0.3 for shape in shapes)


def traced(model: nn.Module, *shapes: tuple[int, ...]) -> fx.GraphModule:
    return n2nfx.trace(model, examples(*shapes)).module


def effects(model: nn.Module, inputs: Sequence[Tensor], training: bool) -> dict[str, Tensor]:
    """Everything that a call and a backward leave behind, by name."""
    model.train(training).zero_grad()
    own = [value.clone() for value in inputs]
    torch.manual_seed(0)
    outputs = dict(flat(model(*own), "output"))
    losses = [value.square().mean() for value in outputs.values() if value.requires_grad]
    if losses:
        sum(losses, torch.zeros(())).backward()
    gradients = {f"gradient of {name}": p.grad for name, p in model.named_parameters()}
    return {
        **{name: value.detach() for name, value in outputs.items()},
        **{name: value for name, value in gradients.items() if value is not None},
        **{name: value.clone() for name, value in model.named_buffers()},
        **{f"input {index}": value for index, value in enumerate(own)},
    }


def flat(value: Any, name: str) -> list[tuple[str, Tensor]]:
    """The tensors of a result by where they are, with the type of what they are in."""
    if isinstance(value, Tensor):
        return [(name, value)]
    items = value.items() if isinstance(value, Mapping) else enumerate(value)
    return [
        found
        for key, item in items
        for found in flat(item, f"{name}.{type(value).__name__}[{key}]")
    ]


def assert_same(model: nn.Module, graph: nn.Module, *inputs: Tensor) -> None:
    """The two do the same, in evaluation and in a step of training, to the last bit."""
    for training in (False, True):
        assert_same_effects(effects(model, inputs, training), effects(graph, inputs, training))


def assert_same_effects(want: dict[str, Tensor], got: dict[str, Tensor]) -> None:
    assert list(want) == list(got)
    assert [name for name in want if not torch.equal(want[name], got[name])] == []


def assert_traced_alike(model: nn.Module, *shapes: tuple[int, ...], batch: int = BATCH) -> None:
    assert_same(model, traced(model, *shapes), *examples(*shapes, batch=batch))


def shaken(model: nn.Module) -> nn.Module:
    """The model with norms and biases away from 0 and 1, so that no branch is silent."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2:
                parameter.uniform_(0.5, 1.5)
    return model


def from_zoo(name: str) -> nn.Module:
    zoo, _, plain = name.partition(":")
    torch.manual_seed(0)
    if zoo == "timm":
        return timm.create_model(plain)
    return torchvision.models.get_model(plain, weights=None)


def refusal(model: Any, example: Any) -> str:
    with pytest.raises(CannotOperate) as caught:
        n2nfx.trace(model, example)
    assert type(caught.value) is CannotOperate
    return str(caught.value)


# The same to the last bit, at a batch size that was never recorded.

SMALL_NETWORKS = [
    "timm:resnet10t",
    "timm:resnet18d",
    "timm:resnet26t",
    "timm:resnet32ts",
    "timm:resnetrs50",
    "timm:resnetblur18",
    "timm:resnetaa34d",
    "timm:resnetv2_18",
    "timm:resnetv2_50x1_bit",
    "timm:resnet50_gn",
    "timm:resnet50_clip",
    "timm:resnext26ts",
    "timm:resnext50_32x4d",
    "timm:vgg11",
    "timm:vgg11_bn",
    "torchvision:resnet18",
    "torchvision:resnet50",
    "torchvision:resnext50_32x4d",
    "torchvision:vgg11",
    "torchvision:vgg11_bn",
]


@pytest.mark.parametrize("name", SMALL_NETWORKS)
def test_a_network_of_the_zoos_is_the_same_to_the_last_bit(name: str) -> None:
    assert_traced_alike(shaken(from_zoo(name)), (3, 64, 64))


# Those with more than 300 million parameters would not fit into the memory of a small machine:
# of them the graph, its shapes and its state are compared, without numbers.
TOO_LARGE = {
    "timm:resnet50x64_clip",
    "timm:resnet50x64_clip_gap",
    "timm:resnetv2_101x3_bit",
    "timm:resnetv2_152x4_bit",
    "timm:resnext101_32x32d",
}
FAMILIES = ("resnet*", "resnext*", "wide_resnet*", "vgg*")
WHOLE_ZOO = [
    *(f"timm:{name}" for family in FAMILIES for name in timm.list_models(family)),
    *(f"torchvision:{name}" for name in torchvision.models.list_models(include=FAMILIES)),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in WHOLE_ZOO if name not in TOO_LARGE])
def test_every_network_of_the_zoos_is_the_same_to_the_last_bit(name: str) -> None:
    assert_traced_alike(shaken(from_zoo(name)), (3, 64, 64))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(TOO_LARGE), ids=lambda name: f"{name}-shapes_only")
@pytest.mark.parametrize("training", [False, True])
def test_the_largest_networks_have_the_same_shapes_and_state(name: str, training: bool) -> None:
    with torch.device("meta"):
        model = from_zoo(name).train(training)
        graph = traced(model, (3, 64, 64))
        (x,) = examples((3, 64, 64), batch=BATCH)
    assert sum(parameter.numel() for parameter in model.parameters()) > 300_000_000
    assert graph(x).shape == model(x).shape
    assert shapes(graph) == shapes(model)


def shapes(module: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, value.shape) for name, value in module.state_dict().items()]


def test_a_plain_stack_is_the_same_to_the_last_bit() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Dropout2d(0.2),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 16),
        nn.Dropout(0.5, inplace=True),
        nn.ReLU(inplace=True),
        nn.Linear(16, 5),
    )
    assert_traced_alike(model, (3, 8, 8))


@pytest.mark.parametrize("name", ["resnet18", "vgg11"])
def test_the_same_modules_are_called_in_the_same_order_as_symbolic_trace_says(name: str) -> None:
    def called(graph: fx.Graph) -> list[str]:
        return [str(node.target) for node in graph.nodes if node.op == "call_module"]

    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
        found = called(traced(model, (3, 64, 64)).graph)
    assert found == called(fx.symbolic_trace(model).graph)
    assert len(found) > 20


# What the copy keeps.


def with_everything() -> nn.Module:
    """Parts that are used, unused, frozen, in another mode, tied and not saved."""
    model = Model(
        lambda m, x: m.head(m.blocks(x).mean((2, 3))),
        blocks=nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)),
        head=nn.Linear(4, 2),
        unused=nn.ModuleDict({"aux": nn.Linear(2, 2)}),
        bare=nn.Parameter(torch.ones(3)),
        counter=torch.zeros(2),
    )
    model.register_buffer("unsaved", torch.zeros(1), persistent=False)
    model.twin = model.get_submodule("head")
    model.train()
    model.get_submodule("blocks.1").eval()
    model.get_submodule("blocks.0").requires_grad_(False)
    return model


def test_the_state_dict_has_the_same_keys_in_the_same_order_and_the_same_values() -> None:
    model = with_everything()
    want, got = model.state_dict(), traced(model, (3, 8, 8)).state_dict()
    assert list(got) == list(want)
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_every_module_is_there_with_its_class_and_its_mode_used_or_not() -> None:
    def parts(module: nn.Module) -> list[tuple[str, type, bool]]:
        named = module.named_modules(remove_duplicate=False)
        return [(name, type(part), part.training) for name, part in named if name]

    model = with_everything()
    assert parts(traced(model, (3, 8, 8))) == parts(model)


def test_every_parameter_keeps_its_place_and_whether_it_is_trained() -> None:
    def parameters(module: nn.Module) -> list[tuple[str, bool]]:
        return [(name, p.requires_grad) for name, p in module.named_parameters()]

    model = with_everything()
    assert parameters(traced(model, (3, 8, 8))) == parameters(model)


def test_tied_weights_stay_tied() -> None:
    graph = traced(with_everything(), (3, 8, 8))
    assert graph.get_submodule("twin") is graph.get_submodule("head")


def shifted(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    return output + 1


def test_a_hook_on_a_layer_is_called_by_the_graph() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].register_forward_hook(shifted)
    graph = traced(model, (4,))
    assert_same(model, graph, torch.ones(BATCH, 4))


def test_record_shares_the_parameters_of_the_model_and_trace_does_not() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    own = set(map(id, model.parameters()))
    assert set(map(id, record(model, torch.ones(1, 4)).module.parameters())) == own
    assert not set(map(id, traced(model, (4,)).parameters())) & own


def test_training_the_graph_does_not_change_the_model() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = copy.deepcopy(model.state_dict())
    graph = traced(model, (3, 8, 8))
    optimizer = torch.optim.SGD(graph.parameters(), lr=1.0)
    graph.train()(torch.rand(4, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not torch.equal(graph.state_dict()["0.weight"], before["0.weight"])
    assert model[0].weight.grad is None


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_graph_can_be_trained_wherever_it_was_traced(context: Callable[[], Any]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    with context():
        graph = traced(model, (3, 8, 8))
    assert_same(model, graph, *examples((3, 8, 8), batch=BATCH))


def test_a_traced_network_can_be_traced_again() -> None:
    model = Model(dropped, layer=nn.Linear(4, 4))
    graph = traced(model, (4,))
    assert_same(model, traced(graph, (4,)), *examples((4,), batch=BATCH))


# The model is left alone.


class Stateful(nn.Module):
    """A forward that changes all it can: buffers, attributes, caches, its own parts."""

    seen: Tensor

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.fails = fails
        self.convolution = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("seen", torch.zeros(4))
        self.calls = 0
        self.cache: dict[str, Tensor] = {}
        self.grid: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.seen.add_(1)
        self.cache["grid"] = torch.arange(4)
        self.grid = self.cache["grid"]
        self.left_behind = "by forward"
        self.norm.momentum = 0.5
        torch.manual_seed(5)
        x = self.drop(self.norm(self.convolution(x)) + torch.rand(()))
        if self.fails:
            raise ValueError("half-way")
        return x


def state_of(model: nn.Module) -> dict[str, Any]:
    """All that there is to a model: of tensors the identity, version, flags and values."""

    def known(value: Any) -> Any:
        if isinstance(value, Tensor):
            return (
                id(value),
                value._version,
                value.requires_grad,
                value.grad is None,
                value.tolist(),
            )
        if isinstance(value, dict):
            return {key: known(item) for key, item in value.items()}
        return value

    return {name: known(vars(module)) for name, module in model.named_modules()}


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_as_before(fails: bool) -> None:
    model = Stateful(fails).train()
    model.norm.eval()
    model.convolution.requires_grad_(False)
    model.convolution.register_forward_hook(
        lambda *_: pytest.fail("a hook of the model was called")
    )
    model.register_forward_pre_hook(lambda *_: pytest.fail("a hook of the model was called"))
    before = state_of(model)
    if fails:
        assert "half-way" in refusal(model, torch.ones(1, 3, 8, 8))
    else:
        n2nfx.trace(model, torch.ones(1, 3, 8, 8))
    assert state_of(model) == before


def generators() -> tuple[Any, ...]:
    numpy = [np.asarray(part).tolist() for part in np.random.get_state()]
    return torch.get_rng_state().tolist(), numpy, random.getstate()


@pytest.mark.parametrize("fails", [False, True])
def test_the_random_generators_are_as_before(fails: bool) -> None:
    model = Stateful(fails)
    before = generators()
    if fails:
        refusal(model, torch.ones(1, 3, 8, 8))
    else:
        n2nfx.trace(model, torch.ones(1, 3, 8, 8))
    assert generators() == before


def cached(model: Any, x: Tensor) -> Tensor:
    if model.grid is None:
        model.grid = torch.arange(6)
        model.cache["twice"] = model.grid * 2
    return model.layer(x) + model.grid * model.cache["twice"]


def test_a_cache_that_forward_fills_does_not_stop_the_trace() -> None:
    assert_traced_alike(Model(cached, layer=nn.Linear(6, 6), grid=None, cache={}), (5, 6))


# Training and evaluation.


def dropped(model: Any, x: Tensor) -> Tensor:
    return functional.dropout(model.layer(x), 0.5, training=model.training)


def dropped_and_added(model: Any, x: Tensor) -> Tensor:
    return x + functional.dropout(x, 0.5, model.training) + model.drop(x)


def dropped_in_place(model: Any, x: Tensor) -> Tensor:
    x = model.layer(x)
    y = model.drop_in_place(x)
    return x + y


def attended(model: Any, x: Tensor) -> Tensor:
    p = 0.4 if model.training else 0.0
    return functional.scaled_dot_product_attention(model.layer(x), x, x, dropout_p=p)


def resized(model: Any, x: Tensor) -> Tensor:
    x = model.layer(x)[:, None]
    if model.training:
        return functional.interpolate(x, size=[3, 5])
    return functional.interpolate(x, scale_factor=2.0)


@pytest.mark.parametrize("body", [dropped, dropped_and_added, dropped_in_place, attended, resized])
def test_what_depends_on_the_mode_follows_it(body: Forward) -> None:
    drops = {"drop": nn.Dropout(0.3), "drop_in_place": nn.Dropout(0.3, inplace=True)}
    assert_traced_alike(Model(body, layer=nn.Linear(6, 6), **drops), (5, 6))


def test_a_part_that_is_put_into_another_mode_is_followed_before_and_after_tracing() -> None:
    model = nn.Sequential(*(Model(dropped, layer=nn.Linear(4, 4)) for _ in range(2))).train()
    model[0].eval()
    graph = traced(model, (4,))
    x = torch.rand(BATCH, 4)

    def assert_alike() -> None:
        torch.manual_seed(0)
        want = model(x)
        torch.manual_seed(0)
        assert torch.equal(graph(x), want)

    assert_alike()
    for module in (model, graph):
        module.get_submodule("0").train()
        module.get_submodule("1").eval()
    assert_alike()


class Auxiliary(nn.Module):
    """A block with a head that only training runs."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.extra = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.extra(x) if self.training else self.main(x)


def two_graphs() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), Auxiliary(), nn.Dropout(0.5), nn.Linear(4, 2))


def test_another_structure_in_training_gets_a_graph_of_its_own() -> None:
    model = two_graphs()
    network = n2nfx.trace(model, torch.ones(1, 4))
    assert [layer.name for layer in network.layers] == ["0", "2.extra", "4", "2.main"]
    assert "in training:" in network.text()
    for copied in (network.module, copy.deepcopy(network.module), copy.copy(network.module)):
        assert_same(model, copied, torch.rand(BATCH, 4))
    again = pickle.loads(pickle.dumps(network.module))
    assert_same(model, again, torch.rand(BATCH, 4))


@pytest.mark.parametrize(("name", "size"), [("googlenet", 64), ("inception_v3", 299)])
def test_auxiliary_heads_are_layers_and_run_in_training_only(name: str, size: int) -> None:
    model = torchvision.models.get_model(name, weights=None, init_weights=False)
    network = n2nfx.trace(model, torch.zeros(1, 3, size, size))
    weights = {n for n, p in model.named_parameters() if p.dim() > 1}
    assert {layer.weight for layer in network.layers} == weights
    assert_same(model, network.module, torch.rand(2, 3, size, size))


@pytest.mark.parametrize("wiring", ["paper", "linear", "joint"])
def test_masks_and_skips_are_at_work_in_both_graphs(wiring: Any) -> None:
    network = n2nfx.trace(two_graphs(), torch.ones(1, 4))
    passes = [RandomPruning(0.5), N2NSkip(0.3, (1, 2), wiring=wiring)]
    outcome = n2nfx.Pipeline(passes)(network)
    module, x = outcome.network.module, torch.rand(BATCH, 4)
    assert outcome.network.nnz == outcome.counts.kept == round(0.5 * network.size)
    assert outcome.network.skips
    for skip in outcome.network.skips:
        called = [[node.target for node in graph.nodes] for graph in graphs_of(module)]
        assert all(targets.count(skip.name) == 1 for targets in called)
        assert not {skip.source, skip.target} & {"2.extra", "2.main"}  # one graph has them
    assert any("one mode" in refusal.reason for refusal in outcome.network.refused)
    plain = n2nfx.bake(outcome.network).module
    for training in (False, True):
        want, got = (effects(m, (x,), training) for m in (module, plain))
        assert torch.equal(want["output"], got["output"])
    with torch.no_grad():
        for skip in outcome.network.skips:
            module.get_parameter(skip.weight).fill_(9.0)
    for training in (False, True):
        want, got = (effects(m, (x,), training) for m in (module, plain))
        assert not torch.equal(want["output"], got["output"])


# Any batch size.


def summed(model: Any, x: Tensor) -> Tensor:
    total = x * 0
    for step in range(3):
        total = total + model.layer(x) * step
    return total


BATCH_GENERIC: dict[str, Forward] = {
    "view": lambda m, x: m.layer(x).view(x.shape[0], -1),
    "fold": lambda m, x: m.layer(x).reshape(x.size(0) * 5, 6).reshape(x.size(0), 5, 6),
    "size": lambda m, x: m.layer(x).flatten(0, 1).view(*x.size()[:2], 3, 2),
    "zeros": lambda m, x: m.layer(x)[:, :, :3].sum(1) + torch.zeros(x.shape[0], 3, device=x.device),
    "ones": lambda m, x: m.layer(x) * x.new_ones(len(x), 5, 1),
    "expand": lambda m, x: torch.cat((m.token.expand(x.shape[0], -1, -1), m.layer(x)), 1),
    "repeat": lambda m, x: m.layer(x) + m.token.repeat(x.shape[0], 5, 1),
    "arange": lambda m, x: m.layer(x) + torch.arange(x.shape[0])[:, None, None],
    "mean": lambda m, x: m.layer(x).sum(0) / x.shape[0],
    "twice": lambda m, x: m.layer(torch.cat((x, x)))[x.shape[0] :],
    "one less": lambda m, x: m.layer(x)[: x.shape[0] - 1],
    "first": lambda m, x: m.layer(x).unbind(0)[0],
    "squeeze": lambda m, x: m.layer(x).sum(1, keepdim=True).squeeze(),
    "loop": summed,
}


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("body", BATCH_GENERIC.values(), ids=BATCH_GENERIC)
def test_a_forward_that_computes_with_the_batch_size_is_right_at_any(
    body: Forward, batch: int
) -> None:
    model = Model(body, layer=nn.Linear(6, 6), token=nn.Parameter(torch.rand(1, 1, 6)))
    assert_traced_alike(model, (5, 6), batch=batch)


NOT_BATCH_GENERIC: dict[str, Forward] = {
    "branch on many": lambda m, x: m.layer(x) if x.shape[0] > 4 else x,
    "branch on one": lambda m, x: m.layer(x) if x.shape[0] == 1 else x,
    "branch on odd": lambda m, x: m.layer(x) if x.shape[0] % 2 else x,
    "half": lambda m, x: m.layer(x)[: x.shape[0] // 2],
    "at most": lambda m, x: m.layer(x)[: min(x.shape[0], 4)],
    "rows": lambda m, x: torch.stack([m.layer(row) for row in x]),
    "mean": lambda m, x: m.layer(x) * (1 / x.shape[0]),
}


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("body", NOT_BATCH_GENERIC.values(), ids=NOT_BATCH_GENERIC)
def test_a_part_that_does_other_things_for_other_batch_sizes_is_kept_whole(
    body: Forward, batch: int
) -> None:
    assert_kept_whole(body, batch)


def assert_kept_whole(body: Forward, batch: int) -> None:
    """For what it does at other batch sizes, and right at this one."""
    model = nn.Sequential(nn.ReLU(), Model(body, layer=nn.Linear(6, 6)))
    network = n2nfx.trace(model, torch.ones(1, 5, 6))
    assert [layer.name for layer in network.layers] == ["1.layer"]
    (note,) = network.notes
    assert note.startswith("1 (Model) is kept as it is")
    assert "depends on the batch size" in note
    assert_same(model, network.module, *examples((5, 6), batch=batch))


FROM_MANY_ON: dict[str, Forward] = {
    "chunks": lambda m, x: torch.cat([m.layer(chunk) for chunk in x.split(64)]),
    "slices": lambda m, x: torch.cat([m.layer(x[at : at + 64]) for at in range(0, len(x), 64)]),
    "branch": lambda m, x: m.layer(x) if x.shape[0] < 100 else -m.layer(x),
    "at most": lambda m, x: m.layer(x)[: min(x.shape[0], 500)],
}


@pytest.mark.parametrize("batch", [64, 65, 129, 700])
@pytest.mark.parametrize("body", FROM_MANY_ON.values(), ids=FROM_MANY_ON)
def test_a_part_that_does_other_things_from_many_examples_on_is_kept_whole(
    body: Forward, batch: int
) -> None:
    assert_kept_whole(body, batch)


@pytest.mark.parametrize("batch", [2, 70])
def test_a_forward_that_looks_at_values_in_training_only_is_right_in_both_modes(batch: int) -> None:
    """Recording on the meta device ends at its third run, and begins again."""

    def body(model: Any, x: Tensor) -> Tensor:
        made = model.layer(x)
        if model.training and made.sum().item() > 0:
            made = made * 2
        return made.reshape(x.shape[0], -1)

    model = nn.Sequential(nn.ReLU(), Model(body, layer=nn.Linear(6, 6)))
    network = n2nfx.trace(model, torch.ones(1, 5, 6))
    assert "looks at the values" in "".join(network.notes)
    assert_same(model, network.module, *examples((5, 6), batch=batch))


def test_activation_shapes_have_no_batch_wherever_it_stands() -> None:
    model = Model(lambda m, x: m.layer(x.transpose(0, 1)), layer=nn.Linear(6, 4))
    (layer,) = n2nfx.trace(model, torch.ones(1, 5, 6)).layers
    assert (layer.reads, layer.writes) == ((5, 6), (5, 4))


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: m.layer(x)[: x.shape[0] - 1 if m.training else None],
        lambda m, x: m.layer(x) * (2 if m.training and len(x) > 4 else 1),
        lambda m, x: m.layer(x) * (2 if m.training or len(x) > 4 else 1),
    ],
    ids=["number in training", "branch in training", "branch in evaluation"],
)
@pytest.mark.parametrize("batch", [2, 7])
def test_what_depends_on_batch_size_and_mode_at_once_is_right_too(
    body: Forward, batch: int
) -> None:
    assert_traced_alike(Model(body, layer=nn.Linear(6, 6)), (5, 6), batch=batch)


def test_the_batch_of_the_example_makes_no_difference() -> None:
    model = Model(BATCH_GENERIC["fold"], layer=nn.Linear(6, 6))
    one, many = (n2nfx.trace(model, torch.ones(batch, 5, 6)) for batch in (1, 17))
    assert one.text() == many.text()
    assert one.layers == many.layers


def test_the_graph_follows_its_input_to_another_device() -> None:
    model = Model(BATCH_GENERIC["zeros"], layer=nn.Linear(6, 6))
    graph = traced(model, (5, 6)).to("meta")
    assert graph(torch.ones(2, 5, 6, device="meta")).device.type == "meta"


def test_a_model_is_traced_on_the_device_that_it_is_on() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3)).to("meta")
    assert n2nfx.trace(model, torch.ones(1, 3, 8, 8, device="meta")).layers[0].uses == 36


# Inputs and outputs.


class Two(nn.Module):
    """Several inputs, some of which may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(
        self,
        x: Tensor,
        plus: Tensor | None = None,
        times: Tensor | None = None,
        *,
        minus: Any = 0.0,
    ) -> Tensor:
        x = self.layer(x) if plus is None else self.layer(x) + plus
        return (x if times is None else x * times) - minus


@pytest.mark.parametrize("names", [("x",), ("x", "plus"), ("x", "times"), ("minus", "x", "plus")])
def test_inputs_by_name_are_given_by_name(names: tuple[str, ...]) -> None:
    model = Two()
    network = n2nfx.trace(model, {name: torch.ones(1, 4) for name in names})
    given = {name: torch.rand(BATCH, 4) for name in names}
    assert torch.equal(network.module(**given), model(**given))
    assert {spec.name for spec in network.inputs} == set(names)


def test_several_inputs_in_order_have_the_names_that_forward_gives_them() -> None:
    network = n2nfx.trace(Two(), [torch.ones(1, 4), torch.ones(1, 1, dtype=torch.float64)])
    assert [(spec.name, spec.shape, spec.dtype) for spec in network.inputs] == [
        ("x", (1, 4), "float32"),
        ("plus", (1, 1), "float64"),
    ]


def test_any_number_of_inputs_is_taken() -> None:
    model = Model(lambda m, *inputs: m.layer(sum(inputs)) * len(inputs), layer=nn.Linear(4, 4))
    assert_traced_alike(model, (4,), (4,), (4,))


def test_an_input_with_another_first_dimension_has_no_batch() -> None:
    model = Model(lambda m, x, table: m.layer(x) @ table.T, layer=nn.Linear(4, 4))
    graph = n2nfx.trace(model, (torch.ones(5, 4), torch.ones(9, 4))).module
    assert_same(model, graph, torch.rand(BATCH, 4), torch.rand(9, 4))


def test_whole_numbers_are_inputs_too() -> None:
    model = Model(
        lambda m, ids: m.layer(m.embed(ids)), embed=nn.Embedding(9, 4), layer=nn.Linear(4, 4)
    )
    graph = n2nfx.trace(model, torch.zeros(1, 5, dtype=torch.int64)).module
    assert_same(model, graph, torch.randint(9, (BATCH, 5)))


class Pair(NamedTuple):
    first: Any
    second: Any


OUTPUTS: dict[str, Forward] = {
    "tuple": lambda m, x: (m.layer(x), x * 2),
    "list": lambda m, x: [m.layer(x), [x * 2]],
    "dict": lambda m, x: {"out": m.layer(x), "features": {"first": x}},
    "named tuple": lambda m, x: Pair(m.layer(x), (x * 2,)),
    "the input": lambda m, x: x,
}


@pytest.mark.parametrize("body", OUTPUTS.values(), ids=OUTPUTS)
def test_outputs_of_any_structure_come_out_as_they_are(body: Forward) -> None:
    assert_traced_alike(Model(body, layer=nn.Linear(4, 4)), (4,))


# What Python does in between.


def looks_at_shapes(model: Any, x: Tensor) -> Tensor:
    if isinstance(x, Tensor) and len(x.shape) == 3 and x.shape[-1] == 6:
        x = model.layer(x)
    while x.shape[1] > 2:
        x = x[:, ::2] if x.shape[1] % 2 else x[:, 1:]
    return x


def takes_apart(model: Any, x: Tensor) -> Tensor:
    parts = [part * index for index, part in enumerate(model.layer(x).split(2, dim=2))]
    first, *rest = parts
    return torch.cat([first, *rest, *(x.unbind(1)[0][:, None, :2] for _ in range(2))], 1)


def checkpointed(model: Any, x: Tensor) -> Tensor:
    return torch.utils.checkpoint.checkpoint(model.layer, x, use_reentrant=False) * 2


PYTHON: dict[str, Forward] = {
    "shapes": looks_at_shapes,
    "lists": takes_apart,
    "checkpoint": checkpointed,
    "numpy": lambda m, x: m.layer(x).view(-1, np.prod(x.shape[1:])) * np.sqrt(2.0),
    "infinity": lambda m, x: m.layer(x).masked_fill(x > 0, float("-inf")).exp(),
}


@pytest.mark.parametrize("body", PYTHON.values(), ids=PYTHON)
def test_python_around_the_tensors_works_as_always(body: Forward) -> None:
    assert_traced_alike(Model(body, layer=nn.Linear(6, 6)), (5, 6))


def added_in_place(model: Any, x: Tensor) -> Tensor:
    y = model.layer(x)
    y += x
    y *= 2
    return y


def set_items(model: Any, x: Tensor) -> Tensor:
    y = model.layer(x).clone()
    y[:, 0] = 0
    y[:, 1:, ::2] += x[:, 1:, ::2]
    return y


def filled_through_views(model: Any, x: Tensor) -> Tensor:
    out = torch.empty_like(x)
    out[:, :2] = model.layer(x)[:, :2]
    out[:, 2:].copy_(x[:, 2:]).mul_(3)
    out.view(len(x), -1).clamp_(min=0)
    return out


def changed_before_reading(model: Any, x: Tensor) -> Tensor:
    y = model.layer(x)
    z = y.relu_()
    return y + z + functional.relu(x.neg(), inplace=True)


def running_mean(model: Any, x: Tensor) -> Tensor:
    y = model.layer(x)
    scale = 0.1 if model.training else 0.0
    model.mean.mul_(1 - scale).add_(y.detach().mean((0, 1)), alpha=scale)
    return y - model.mean


def changed_behind_dropout(model: Any, x: Tensor) -> Tensor:
    y = model.layer(x)
    z = functional.dropout(y, 0.5, model.training)
    z.relu_()
    return y + z


IN_PLACE: dict[str, Forward] = {
    "operators": added_in_place,
    "items": set_items,
    "views": filled_through_views,
    "methods": changed_before_reading,
    "buffer": running_mean,
    "dropout": changed_behind_dropout,
    "the input": lambda m, x: m.layer(x.mul_(2)) + x,
    "out": lambda m, x: torch.mul(x, 2, out=torch.empty_like(x)) + m.layer(x),
}


@pytest.mark.parametrize("body", IN_PLACE.values(), ids=IN_PLACE)
def test_what_is_changed_in_place_is_changed_in_the_graph(body: Forward) -> None:
    assert_traced_alike(Model(body, layer=nn.Linear(6, 6), mean=torch.zeros(6)), (5, 6))


class Padded(nn.Conv2d):
    """A convolution with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(functional.pad(input, (1, 1, 1, 1)))


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "same padding": lambda: Conv2dSame(3, 4, 3, stride=2),
    "standardized": lambda: StdConv2d(3, 4, 3),
    "subclass": lambda: Padded(3, 4, 3),
    "parametrized": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3)),
    "transposed": lambda: nn.ConvTranspose2d(3, 4, 3, stride=2),
    "reflected": lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
}


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_a_convolution_of_any_kind_is_the_same_to_the_last_bit(
    layer: Callable[[], nn.Module],
) -> None:
    assert_traced_alike(nn.Sequential(layer(), nn.ReLU()), (3, 8, 8))


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_a_layer_alone_can_be_traced(layer: Callable[[], nn.Module]) -> None:
    assert_traced_alike(layer(), (3, 8, 8))


# What cannot be traced is kept whole, or is a call of the graph.


def looks_at_values(model: Any, x: Tensor) -> Tensor:
    x = model.layer(x)
    return x * 2 if x.sum() > 0 else x


def asks_for_an_item(model: Any, x: Tensor) -> Tensor:
    return model.layer(x) * x.detach().abs().max().item()


def selects_by_value(model: Any, x: Tensor) -> Tensor:
    return model.layer(x)[x > 0]


def leaves_torch(model: Any, x: Tensor) -> Tensor:
    return model.layer(x) + torch.from_numpy(np.ones_like(x.detach().numpy()))


def replaces_a_buffer(model: Any, x: Tensor) -> Tensor:
    model.mean = model.mean * 0.9 + x.mean().detach()
    return model.layer(x) - model.mean


def computes_in_half(model: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model.layer(x).float()


def fails(model: Any, x: Tensor) -> Tensor:
    raise ValueError(" \n")


OUTSIDE = torch.ones(6)

KEPT_WHOLE: dict[str, tuple[Forward, str]] = {
    "branches on values": (looks_at_values, "looks at the values of a tensor"),
    "asks for an item": (asks_for_an_item, "looks at the values of a tensor"),
    "selects by value": (selects_by_value, "looks at the values of a tensor"),
    "numpy": (leaves_torch, "numpy"),
    "replaces a buffer": (replaces_a_buffer, "in the place of block.mean"),
    "autocast": (computes_in_half, "torch.autocast"),
    "a tensor from outside": (lambda m, x: m.layer(x) + OUTSIDE, "comes from outside the model"),
}


@pytest.mark.parametrize(("body", "reason"), KEPT_WHOLE.values(), ids=KEPT_WHOLE)
def test_what_cannot_be_traced_is_kept_whole_and_its_layers_are_prunable(
    body: Forward, reason: str
) -> None:
    block = Model(body, layer=nn.Linear(6, 6), mean=torch.zeros(()))
    model = Model(lambda m, x: m.block(m.first(x)) * 2, first=nn.Linear(6, 6), block=block)
    network = n2nfx.trace(model, torch.ones(1, 5, 6))
    assert [layer.name for layer in network.layers] == ["first", "block.layer"]
    assert [layer.uses for layer in network.layers] == [5, 5]
    (note,) = network.notes
    assert note.startswith("block (Model) is kept as it is")
    assert reason in note
    assert_same(model, network.module, *examples((5, 6), batch=BATCH))
    outcome = n2nfx.Pipeline([RandomPruning(0.5)])(network)
    assert outcome.network.nnz == 36
    assert type(outcome.network.module.get_submodule("block.layer")) is MaskedLinear


@pytest.mark.parametrize(("body", "reason"), KEPT_WHOLE.values(), ids=KEPT_WHOLE)
def test_a_model_that_cannot_be_traced_at_all_is_one_call_with_its_names_and_layers(
    body: Forward, reason: str
) -> None:
    model = Model(body, layer=nn.Linear(6, 6), mean=torch.zeros(()))
    network = n2nfx.trace(model, torch.ones(1, 5, 6))
    assert [(layer.name, layer.uses) for layer in network.layers] == [("layer", 5)]
    (note,) = network.notes
    assert note.startswith("the whole model (Model) is kept as it is")
    assert list(network.module.state_dict()) == list(model.state_dict())
    for module in (network.module, copy.deepcopy(network.module)):
        assert_same(copy.deepcopy(model), module, *examples((5, 6), batch=BATCH))
    outcome = n2nfx.Pipeline([RandomPruning(0.5)])(network)
    module: Any = outcome.network.module
    x = examples((5, 6), batch=BATCH)
    before = effects(copy.deepcopy(module), x, False)["output"]
    with torch.no_grad():
        module.layer.weight[~outcome.network.masks["layer.weight"]] = 1e3
    assert torch.equal(effects(module, x, False)["output"], before)


def test_a_model_that_is_one_call_follows_its_parts_to_another_dtype() -> None:
    model = Model(looks_at_values, layer=nn.Linear(6, 6), mean=torch.zeros(2))
    module = n2nfx.trace(model, torch.ones(1, 5, 6)).module.double()
    assert module(torch.ones(3, 5, 6, dtype=torch.float64)).dtype == torch.float64
    module.load_state_dict(model.double().state_dict())
    assert_same(model, module, torch.rand(BATCH, 5, 6, dtype=torch.float64))


def test_only_the_innermost_module_is_kept_whole() -> None:
    inner = Model(looks_at_values, layer=nn.Linear(6, 6))
    model = nn.Sequential(nn.Sequential(nn.Linear(6, 6), inner), nn.ReLU(), nn.Linear(6, 6))
    network = n2nfx.trace(model, torch.ones(1, 6))
    assert [layer.name for layer in network.layers] == ["0.0", "0.1.layer", "2"]
    called = [node.target for node in network.module.graph.nodes if node.op == "call_module"]
    assert called == ["0.0", "0.1", "1", "2"]


@pytest.mark.parametrize(
    "body", [looks_at_values, asks_for_an_item, selects_by_value, leaves_torch]
)
def test_a_note_names_the_module_and_the_line_of_the_models_own_code(body: Forward) -> None:
    model = Model(lambda m, x: m.block(x), block=Model(body, layer=nn.Linear(6, 6)))
    (note,) = n2nfx.trace(model, torch.ones(1, 5, 6)).notes
    line = body.__code__.co_firstlineno + (2 if body is looks_at_values else 1)
    assert f"in block (Model), {__file__}:{line}" in note


def uses_a_weight_by_hand(model: Any, x: Tensor) -> Tensor:
    return functional.linear(x, model.layer.weight) * x.max().item()


def test_a_weight_that_a_function_uses_inside_a_whole_part_is_not_prunable() -> None:
    block = Model(uses_a_weight_by_hand, layer=nn.Linear(6, 6))
    network = n2nfx.trace(nn.Sequential(nn.Linear(6, 6), block), torch.ones(1, 6))
    assert [layer.name for layer in network.layers] == ["0"]
    assert any(
        note.startswith("1.layer: not prunable, and not counted: a function inside 1")
        for note in network.notes
    )


@pytest.mark.parametrize(
    "register",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
def test_a_hook_on_a_block_is_called_by_the_graph(register: str) -> None:
    calls: list[nn.Module] = []
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 4))
    getattr(model[0], register)(lambda module, *_: calls.append(module))
    network = n2nfx.trace(model, torch.ones(1, 4))
    assert calls == []
    assert [layer.name for layer in network.layers] == ["0.0", "1"]
    assert "0 (Sequential) is kept as it is" in network.notes[0]
    assert "it has a hook" in network.notes[0]
    network.module(torch.rand(2, 4, requires_grad=True)).sum().backward()
    assert calls == [network.module.get_submodule("0")]


class Doubled(torch.autograd.Function):
    """Its backward is not the derivative of its forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float = 2.0) -> Tensor:
        return x * factor

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] * 3, None


with warnings.catch_warnings():
    warnings.simplefilter("ignore")

    @torch.jit.script
    def scripted(x: Tensor) -> Tensor:
        if x.size(0) > 3:
            return x.relu() * 2
        return x + 1


def without_gradient(model: Any, x: Tensor) -> Tensor:
    y = model.layer(x)
    with torch.no_grad():
        z = model.layer(y) * model.token
        y.mul_(2)
    return y + z + model.layer(x).detach()


def norm_without_gradient(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        shift = model.norm(model.layer(x))
    return model.layer(x) - shift


def checkpointed_reentrant(model: Any, x: Tensor) -> Tensor:
    def inside(x: Tensor) -> Tensor:
        return functional.dropout(model.layer(x), 0.5, model.training)

    return torch.utils.checkpoint.checkpoint(inside, x * model.token, use_reentrant=True) * 2


CALLS: dict[str, Forward] = {
    "custom function": lambda m, x: Doubled.apply(m.layer(x), 4.0) + Doubled.apply(x),
    "script": lambda m, x: scripted(m.layer(x)),
    "no gradient": without_gradient,
    "norm without gradient": norm_without_gradient,
    "checkpoint, reentrant": checkpointed_reentrant,
    "checkpoint with dropout": lambda m, x: torch.utils.checkpoint.checkpoint(
        lambda x: functional.dropout(m.layer(x), 0.5, m.training), x, use_reentrant=False
    ),
}


@pytest.mark.parametrize("body", CALLS.values(), ids=CALLS)
@pytest.mark.parametrize("batch", [2, 7])
def test_what_no_mode_sees_inside_of_is_a_call_of_the_graph(body: Forward, batch: int) -> None:
    model = Model(
        body, layer=nn.Linear(6, 6), norm=nn.BatchNorm1d(5), token=nn.Parameter(torch.rand(6))
    )
    network = n2nfx.trace(model, torch.ones(1, 5, 6))
    assert network.notes == ()
    assert [layer.name for layer in network.layers] == ["layer"]
    for module in (network.module, copy.deepcopy(network.module)):
        assert_same(copy.deepcopy(model), module, *examples((5, 6), batch=batch))


def test_a_custom_function_keeps_its_name_in_the_text_and_in_a_pickle() -> None:
    network = n2nfx.trace(
        Model(lambda m, x: Doubled.apply(m.layer(x)), layer=nn.Linear(4, 4)), torch.ones(1, 4)
    )
    assert "Doubled.apply(layer)" in network.text()


@dataclasses.dataclass
class Outputs:
    """A result of a type of its own."""

    logits: Tensor
    features: dict[str, Tensor]
    loss: Tensor | None = None


class Ordered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        hidden = self.layer(x)
        return OrderedDict(b=hidden, a=OrderedDict(z=x * 2))


class Dataclassed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        hidden = self.layer(x)
        return Outputs(hidden, {"hidden": hidden * 2})


def test_ordered_mappings_and_dataclasses_come_out_as_such() -> None:
    x = torch.rand(3, 4)
    for model in (Ordered(), Dataclassed()):
        got, want = n2nfx.trace(model, x).module(x), model(x)
        assert type(got) is type(want)
        if isinstance(want, Outputs):
            assert torch.equal(got.logits, want.logits)
            assert torch.equal(got.features["hidden"], want.features["hidden"])
            assert got.loss is None
        else:
            assert list(got) == list(want) == ["b", "a"]
            assert type(got["a"]) is OrderedDict
            assert torch.equal(got["a"]["z"], want["a"]["z"])


# Another size of the input.


def test_a_convolutional_network_takes_any_resolution() -> None:
    model = from_zoo("torchvision:resnet18")
    module = traced(model, (3, 64, 64))
    for size in ((3, 33, 97), (3, 224, 160)):
        assert_same(model, module, *examples(size, batch=2))


SIZED: dict[str, Forward] = {
    "view": lambda m, x: m.layer(x).view(-1, 4 * 64),
    "same padding": lambda m, x: m.same(x),
    "resized": lambda m, x: functional.interpolate(m.same(x), size=x.shape[2:]),
    "branch": lambda m, x: m.layer(x) if x.shape[-1] > 8 else x,
}


@pytest.mark.parametrize("body", SIZED.values(), ids=SIZED)
def test_a_graph_with_a_size_written_into_it_refuses_another(body: Forward) -> None:
    model = Model(body, layer=nn.Conv2d(3, 4, 1), same=Conv2dSame(3, 4, 3, stride=2))
    module = traced(model, (3, 8, 8))
    assert_same(model, module, *examples((3, 8, 8), batch=BATCH))
    with pytest.raises(CannotOperate, match=r"3x9x8, and this network's graph has 3x8x8"):
        module(torch.rand(2, 3, 9, 8))


def test_a_sequence_may_be_of_any_length_where_the_model_takes_any() -> None:
    model = Model(lambda m, x: m.layer(x).relu().sum(1), layer=nn.Linear(6, 6))
    assert_same(model, traced(model, (5, 6)), *examples((9, 6), batch=BATCH))
    words = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4))
    module = n2nfx.trace(words, torch.zeros(1, 5, dtype=torch.int64)).module
    assert_same(words, module, torch.randint(9, (BATCH, 7)))


# Tensors without data, and fake ones.


@pytest.mark.parametrize(
    "name",
    [
        *("torchvision:resnet18", "torchvision:densenet121", "torchvision:efficientnet_b0"),
        *("torchvision:swin_t", "torchvision:vit_b_32", "torchvision:googlenet"),
        *("timm:convnext_atto", "timm:levit_128s", "timm:ghostnet_050", "timm:mixer_s32_224"),
        *("timm:efficientnet_cc_b0_4e", "timm:test_nfnet"),
    ],
)
@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
def test_both_ways_of_tracing_give_the_same_network(name: str) -> None:
    model, x = from_zoo(name), torch.zeros(1, 3, 224, 224)
    quick, careful = (record(copy.deepcopy(model), x, quick=quick) for quick in (True, False))
    assert quick.text() == careful.text()
    assert quick.layers == careful.layers


def test_model_code_is_told_the_device_that_the_model_is_on() -> None:
    seen: list[Any] = []

    def body(model: Any, x: Tensor) -> Tensor:
        made = [x, model.layer.weight, torch.zeros(4), torch.arange(4, device=x.device)]
        made += [x.new_ones(4), torch.ones_like(x), x.to("cpu"), x.to(torch.device("cpu"))]
        made += [torch.tensor([1.0]), torch.zeros(4, device="cpu"), model.layer(x).relu()]
        seen.extend((m.device, m.is_meta, m.is_cpu, m.is_cuda) for m in made)
        return model.layer(x) + made[2] + made[3] + made[7] * made[8] + made[9]

    assert_traced_alike(Model(body, layer=nn.Linear(4, 4)), (4,))
    assert set(seen) == {(torch.device("cpu"), False, True, False)}


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: m.layer(x).cpu() * 2,
        lambda m, x: m.layer(x) * int(torch.tensor(3.0)),
        lambda m, x: m.layer(x) if bool(torch.ones(2).all()) else x,
        lambda m, x: m.layer(x.T.contiguous().T).T.reshape(6, -1).T,
        lambda m, x: m.layer(x).T.view(3, 2, -1).sum((0, 1))[:, None] + x,
    ],
    ids=["cpu", "a number", "a constant", "strides", "a view of strides"],
)
def test_where_tensors_without_data_do_not_do_fake_ones_do(body: Forward) -> None:
    assert_traced_alike(Model(body, layer=nn.Linear(6, 6)), (6,))


# Other kinds of models.


class Cells(nn.Module):
    """Recurrent cells beside convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(3, 6, 3, padding=1)
        self.lstm = nn.LSTM(6, 5, batch_first=True, bidirectional=True)
        self.cell = nn.GRUCell(10, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.lstm(self.convolution(x).relu().transpose(1, 2))
        state = hidden.new_zeros(len(x), 4)
        for step in range(hidden.shape[1]):
            state = self.cell(hidden[:, step], state)
        return self.head(state)


def test_recurrent_cells_are_calls_and_only_what_is_beside_them_is_prunable() -> None:
    network = n2nfx.trace(Cells(), torch.zeros(1, 3, 7))
    assert [layer.name for layer in network.layers] == ["convolution", "head"]
    assert_traced_alike(Cells(), (3, 7))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_in_another_precision_stays_in_it(dtype: torch.dtype) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2),
    ).to(dtype)  # fmt: skip
    x = torch.rand(4, 3, 8, 8).to(dtype)
    network = n2nfx.trace(model, x[:1])
    assert_same(model, network.module, x)
    outcome = n2nfx.Pipeline([RandomPruning(0.5), N2NSkip(0.5, hops=(2,))])(network)
    assert outcome.network.nnz == round(0.5 * network.size)
    assert {p.dtype for p in outcome.network.module.parameters()} == {dtype}
    assert outcome.network.module(x).dtype == dtype


def test_what_forward_prints_goes_to_stderr_and_is_not_in_the_graph(
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = Model(lambda m, x: (print("inside"), m.layer(x))[1], layer=nn.Linear(4, 4))
    module = traced(model, (4,))
    told = capsys.readouterr()
    assert told.out == ""
    assert "inside" in told.err
    module(torch.ones(1, 4))
    assert capsys.readouterr() == ("", "")


# What is refused, and what the message says.


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (fails, "ValueError: no message"),
        (lambda m, x: m.layer(x[..., :5]), "RuntimeError"),
        (lambda m, x: m.layer(x, x), "TypeError"),
    ],
)
def test_a_forward_that_cannot_run_is_refused_with_the_reason(body: Forward, reason: str) -> None:
    block = Model(body, layer=nn.Linear(6, 6))
    assert reason in refusal(Model(lambda m, x: m.block(x), block=block), torch.ones(1, 5, 6))


def test_a_refusal_names_the_module_and_the_line_of_the_models_own_code() -> None:
    model = Model(lambda m, x: m.block(x), block=Model(fails, layer=nn.Linear(6, 6)))
    message = refusal(model, torch.ones(1, 5, 6))
    assert f"in block (Model), {__file__}:{fails.__code__.co_firstlineno + 1}" in message


def test_a_wrong_number_of_channels_is_refused_with_layer_and_shape() -> None:
    message = refusal(nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3)), torch.ones(1, 5, 8, 8))
    assert "in 1 (Conv2d)" in message
    assert "(1, 5, 8, 8)" in message


@pytest.mark.parametrize(
    ("norm", "shape"), [(nn.BatchNorm2d(4), (4, 8)), (nn.BatchNorm1d(4), (4, 8, 8))]
)
def test_a_batch_norm_of_the_wrong_dimension_is_refused(
    norm: nn.Module, shape: tuple[int, ...]
) -> None:
    model = nn.Sequential(nn.Identity(), nn.PReLU(), norm)
    assert "2 (BatchNorm" in refusal(model, torch.ones(1, *shape))


@pytest.mark.parametrize("model", [functional.relu, nn.ReLU, "resnet18", None])
def test_what_is_no_module_is_refused(model: Any) -> None:
    assert "only an nn.Module" in refusal(model, torch.ones(1, 4))


@pytest.mark.parametrize(
    ("example", "reason"),
    [
        (torch.tensor(1.0), "batch dimension"),
        ((torch.ones(1, 4), torch.tensor(1.0)), "plus must be a tensor"),
        ({"x": torch.tensor(1.0)}, "x must be a tensor"),
        (4, "must be a tensor"),
        (None, "must be a tensor"),
        ("x", "must be a tensor"),
        (np.ones((1, 4)), "must be a tensor"),
        ([None], "must be a tensor"),
        ((), "an example input is needed"),
        ({}, "an example input is needed"),
        ({"x": torch.ones(1, 4), "tims": torch.ones(1, 4)}, "takes no tims; did you mean times?"),
        ({"plus": torch.ones(1, 4)}, "missing 1 required positional argument: 'x'"),
        ([torch.ones(1, 4)] * 4, "TypeError"),
    ],
    ids=range(13),
)
def test_what_is_no_example_is_refused(example: Any, reason: str) -> None:
    assert reason in refusal(Two(), example)


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    model = Model(lambda m, x: x, lock=threading.Lock())
    assert "cannot be copied" in refusal(model, torch.ones(1, 4))


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
def test_a_model_without_shapes_is_refused() -> None:
    assert "cannot be copied for tracing" in refusal(nn.LazyLinear(4), torch.ones(1, 4))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_a_scripted_model_is_refused() -> None:
    model = torch.jit.script(nn.Sequential(nn.Linear(4, 4)))
    assert "not written in Python" in refusal(model, torch.ones(1, 4))


@pytest.mark.parametrize("draw", [random.random, np.random.rand])
def test_a_draw_that_the_graph_would_freeze_is_refused(draw: Callable[[], float]) -> None:
    model = Model(lambda m, x: x * 2 if draw() < 2 else x)
    before = generators()
    assert "draws from the generator" in refusal(model, torch.ones(1, 4))
    assert generators() == before


@pytest.mark.parametrize("name", ["graph", "code"])
def test_a_part_with_a_name_of_the_graph_modules_own_is_refused(name: str) -> None:
    model = Model(lambda m, x: getattr(m, name)(x), **{name: nn.Linear(4, 4)})
    assert f"a part of it {name}" in refusal(model, torch.ones(1, 4))


def test_a_refusal_prints_nothing(caplog: pytest.LogCaptureFixture) -> None:
    refusal(nn.Sequential(nn.Linear(3, 4)), torch.ones(1, 4))
    assert caplog.records == []


# How it grows.


def test_a_graph_of_400_layers_has_400_calls_and_nothing_else() -> None:
    layers = [layer for _ in range(200) for layer in (nn.Linear(4, 4), nn.ReLU(inplace=True))]
    graph = traced(nn.Sequential(*layers), (4,)).graph
    assert len(graph.nodes) == 400 + 2


def test_a_graph_with_switches_and_numbers_grows_with_the_layers_and_no_faster() -> None:
    def block() -> nn.Module:
        return Model(
            lambda m, x: dropped(m, x).view(2 * len(x), 2).view(-1, 4), layer=nn.Linear(4, 4)
        )

    def nodes(layers: int) -> int:
        return len(traced(nn.Sequential(*(block() for _ in range(layers))), (4,)).graph.nodes)

    assert nodes(60) - nodes(40) == nodes(40) - nodes(20) == 20 * 5


def test_a_traced_model_is_let_go_in_a_process_that_traces_for_the_first_time() -> None:
    script = """
        import gc, weakref, torch, n2nfx.tracing
        class Twice(torch.nn.Linear):
            def forward(self, x):
                return super().forward(x) + x
        model = torch.nn.Sequential(Twice(4, 4))
        network = n2nfx.tracing.record(model, torch.ones(1, 4), quick=False)
        del model
        held = weakref.ref(network.module.get_submodule("0"))
        del network
        gc.collect()
        assert held() is None, gc.get_referrers(held())
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


# Layers that forward calls otherwise than they are


def frozen(m: Any, x: Tensor) -> Tensor:
    m.norm.eval()
    return m.norm(m.conv(x))


def noisy(m: Any, x: Tensor) -> Tensor:
    m.inner.train()
    return m.inner(m.conv(x))


def substituted(m: Any, x: Tensor) -> Tensor:
    return torch.func.functional_call(m.conv, {"weight": m.conv.weight * m.scale}, x)


def substituted_inside(m: Any, x: Tensor) -> Tensor:
    return torch.func.functional_call(m.inner, {"0.weight": m.conv.weight * m.scale}, m.conv(x))


def swapped(m: Any, x: Tensor) -> Tensor:
    kept = m.conv.weight
    del m.conv.weight
    m.conv.weight = kept * 2
    y = m.conv(x)
    del m.conv.weight
    m.conv.weight = kept
    return y


def dilated(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    m.conv.dilation = m.conv.padding = (2, 2)
    y = y + m.conv(x)
    m.conv.dilation = m.conv.padding = (1, 1)
    return y


def weight_dropped(m: Any, x: Tensor) -> Tensor:
    m.rnn.weight_hh_l0 = functional.dropout(m.raw, 0.5, m.training)
    return m.rnn(m.conv(x).flatten(2).mT)[0]


def altering(forward: Forward) -> Model:
    """With a part around it that knows nothing of it."""
    torch.manual_seed(0)
    rnn = nn.LSTM(3, 3, batch_first=True)
    raw = rnn._parameters.pop("weight_hh_l0")
    assert raw is not None
    rnn.weight_hh_l0 = raw.data
    return Model(
        forward, conv=nn.Conv2d(3, 3, 3, padding=1), norm=nn.BatchNorm2d(3), rnn=rnn, raw=raw,
        inner=nn.Sequential(nn.Conv2d(3, 3, 1), nn.Dropout(0.5)),
        scale=nn.Parameter(torch.tensor(3.0)),
    )  # fmt: skip


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    "forward", [frozen, noisy, substituted, substituted_inside, swapped, dilated, weight_dropped]
)
def test_a_layer_that_forward_alters_is_called_as_the_model_calls_it(
    forward: Forward, training: bool
) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), altering(forward))
    network = n2nfx.trace(model, torch.randn(1, 3, 8, 8))
    assert any("forward changes" in note for note in network.notes)
    x = torch.randn(BATCH, 3, 8, 8)
    results = []
    for one in (copy.deepcopy(model), network.module):
        torch.manual_seed(0)
        result = one.train(training)(x)
        result.sum().backward()
        state = one.state_dict()
        results.append((result, one.get_parameter("1.scale").grad, state["1.norm.running_mean"]))
    for want, got in zip(*results, strict=True):
        assert (want is None) == (got is None)
        assert want is None or torch.equal(want, got)


def test_a_model_that_makes_gradients_itself_makes_them_wherever_it_runs() -> None:
    def forces(m: Any, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad(m.a(x).pow(2).sum(), x)[0]

    model = Model(forces, a=nn.Linear(8, 8))
    network = n2nfx.trace(model, torch.randn(1, 8))
    x = torch.randn(BATCH, 8)
    with torch.no_grad():
        assert torch.equal(network.module(x), model(x))


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_what_no_copy_can_be_made_of_is_told() -> None:
    normed = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(3, 8, 3)), nn.ReLU())
    scripted = torch.jit.script(nn.Linear(8, 8))
    for trace in (n2nfx.trace, record):
        with pytest.raises(CannotOperate, match=r"0.weight was computed with .*remove_weight_norm"):
            trace(normed, torch.randn(1, 3, 8, 8))
        with pytest.raises(CannotOperate, match="TorchScript"):
            trace(scripted, torch.randn(1, 8))


def test_a_layer_of_what_is_no_example_has_channels() -> None:
    model = Model(lambda m, x: m.a(x) + m.b(m.table), a=nn.Linear(8, 8), b=nn.Linear(4, 8))
    model.register_buffer("table", torch.randn(4))
    outcome = n2nfx.transform(model, density=0.5, example=torch.randn(1, 8))
    assert outcome.network.nnz == 48
    assert outcome.network.layers[1].channels == 8


# What a hook hands to forward


class Watched(nn.Module):
    """Its hooks keep what a layer gives, in several ways; forward adds it up."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.seen, self.count = nn.Linear(8, 8), dict[str, Tensor](), 0
        hooks = {"method": self.keep, "partial": partial(keep_in, self.seen), "number": self.add}
        self.a.register_forward_hook(hooks[how])

    def keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.seen["a"] = output

    def add(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.count = 3

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.a(x)
        return y, sum((v.square().mean() for v in self.seen.values()), x.new_zeros(())) + self.count


def keep_in(store: dict[str, Tensor], module: nn.Module, inputs: Any, output: Tensor) -> None:
    store["a"] = output


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("how", ["method", "partial", "number"])
def test_what_a_hook_leaves_in_the_model_is_found_by_it(how: str, inside: bool) -> None:
    torch.manual_seed(0)
    model: Any = Watched(how)
    if inside:
        model = Model(lambda m, x: m.w(m.first(x)), first=nn.Linear(8, 8), w=model)
    network = n2nfx.trace(model, torch.randn(1, 8))
    assert any("leaves something in it" in note for note in network.notes)
    pruned = n2nfx.Pipeline([RandomPruning(density=0.5)])(network).network
    x = torch.randn(BATCH, 8)
    for want, got in zip(model(x), network.module(x), strict=True):
        assert torch.equal(want, got)
    output, loss = pruned.module(x)
    torch.testing.assert_close(loss, output.square().mean() if how != "number" else loss)


def test_a_hook_that_no_copy_takes_along_is_refused() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    seen: list[Any] = []
    vars(model)["seen"] = seen
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    with pytest.raises(CannotOperate, match="a hook of 0 is a function around an object"):
        n2nfx.trace(model, torch.randn(1, 8))


# What forward asks of values that are the same in every call


class Causal(nn.Module):
    """torch's transformer looks whether the mask that it is given is the causal one."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True)
        self.inside = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], device=x.device)
        return self.inside(x, mask=mask)


def test_a_causal_mask_is_known_to_be_one() -> None:
    torch.manual_seed(0)
    model = Causal()
    network = n2nfx.trace(model, torch.randn(1, 6, 16))
    assert network.notes == ()
    x = torch.randn(BATCH, 6, 16)
    for training in (False, True):
        assert torch.equal(model.train(training)(x), network.module.train(training)(x))
    passes = [RandomPruning(density=0.5), N2NSkip(ratio=0.2, hops=(2,))]
    spliced = n2nfx.Pipeline(passes)(network).network
    assert spliced.skips
    assert spliced.module(x).shape == x.shape


def set_by_numbers(m: Any, x: Tensor) -> Tensor:
    table = torch.zeros(3)
    table[1] = 2.0
    table[1:].mul_(3)
    return m.a(x) * table[1].item() if table[1] > 5 else x


def built_by_size(m: Any, x: Tensor) -> Tensor:
    return m.a(x) * torch.arange(x.shape[-1], device=x.device).sum().item()


@pytest.mark.parametrize("forward", [set_by_numbers, built_by_size])
def test_what_depends_on_numbers_alone_is_answered(forward: Forward) -> None:
    model = Model(forward, a=nn.Linear(4, 4))
    network = n2nfx.trace(model, torch.randn(1, 4))
    x = torch.randn(BATCH, 4)
    assert network.notes == ()
    assert torch.equal(network.module(x), model(x))


def set_by_data(m: Any, x: Tensor) -> Tensor:
    table = torch.zeros(3)
    table[1] = x.sum()
    return m.a(x) if table[1] > 0 else x


def set_in_place_by_data(m: Any, x: Tensor) -> Tensor:
    table = torch.zeros(3)
    table[1:].add_(x.sum())
    return m.a(x) if table.sum() > 0 else x


def set_by_buffer(m: Any, x: Tensor) -> Tensor:
    return m.a(x) if (m.table * torch.ones(3)).sum() > 0 else x


def drawn(m: Any, x: Tensor) -> Tensor:
    return m.a(x) if torch.rand(1).mul(2) < 1 else x


@pytest.mark.parametrize("forward", [set_by_data, set_in_place_by_data, set_by_buffer, drawn])
def test_what_depends_on_more_is_not(forward: Forward) -> None:
    model = Model(forward, a=nn.Linear(4, 4), table=torch.ones(3))
    network = n2nfx.trace(model, torch.ones(1, 4))
    assert any("kept as it is" in note for note in network.notes)
    for x in (torch.randn(BATCH, 4), torch.ones(BATCH, 4), -torch.ones(BATCH, 4)):
        torch.manual_seed(0)
        want = model(x)
        torch.manual_seed(0)
        assert torch.equal(network.module(x), want)
