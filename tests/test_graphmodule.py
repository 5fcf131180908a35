"""A WholeGraphModule stays whole: its tree, order, hooks and name, through copying and pickling."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import n2nfx
from n2nfx.graphmodule import WholeGraphModule
from n2nfx.tracing.layers import find_layers

Through = Callable[[WholeGraphModule], WholeGraphModule]

calls: list[str] = []  # who a hook of `Model` was called with


def note_forward(module: nn.Module, _inputs: Any, _output: Any) -> None:
    calls.append(f"forward {type(module).__name__}")


def note_pre_forward(module: nn.Module, _args: Any, kwargs: dict[str, Any]) -> None:
    calls.append(f"before {type(module).__name__} {sorted(kwargs)}")


def note_backward(module: nn.Module, _inputs: Any, _outputs: Any) -> None:
    calls.append(f"backward {type(module).__name__}")


def note_pre_backward(module: nn.Module, _outputs: Any) -> None:
    calls.append(f"before backward {type(module).__name__}")


class Model(nn.Module):
    """What a plain GraphModule loses: a head that never runs, containers, a cache, attributes."""

    cache: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8))
        self.aux = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 2))
        self.blocks = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU())
        self.heads = nn.ModuleDict({"left": nn.Linear(8, 3), "unused": nn.Linear(8, 3)})
        self.register_buffer("cache", torch.arange(8.0), persistent=False)
        self.labels = ["a", "b", "c"]

    def forward(self, x: Tensor) -> Tensor:
        start = torch.zeros(x.shape[0], 8, device=x.device)
        return self.heads["left"](start + self.blocks(x) * self.scale + self.cache)


class InPlace(nn.Module):
    """A forward that writes into its own tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        y[:, :2] = 0
        y += 1
        return y


def traced(model: nn.Module | None = None) -> WholeGraphModule:
    module = n2nfx.trace(Model() if model is None else model, example()).module
    assert isinstance(module, WholeGraphModule)
    return module


def example() -> Tensor:
    return torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def pickled(module: WholeGraphModule) -> WholeGraphModule:
    return pickle.loads(pickle.dumps(module))


def as_is(module: WholeGraphModule) -> WholeGraphModule:
    return module


@pytest.fixture(params=[as_is, copy.copy, copy.deepcopy, pickled], ids=lambda way: way.__name__)
def through(request: pytest.FixtureRequest) -> Through:
    """The ways from a traced module to one that must be as whole."""
    return request.param


def test_the_state_dict_has_the_names_of_the_model_in_their_order(through: Through) -> None:
    model = Model()
    assert list(through(traced(model)).state_dict()) == list(model.state_dict())


def test_the_output_is_that_of_the_model_to_the_bit(through: Through) -> None:
    model = Model()
    assert torch.equal(through(traced(model))(example()), model(example()))


def test_a_forward_that_writes_in_place_computes_the_same(through: Through) -> None:
    model = InPlace()
    assert torch.equal(through(traced(model))(example()), model(example()))


def test_submodules_that_never_run_are_kept(through: Through) -> None:
    module = through(traced())
    assert isinstance(module.get_submodule("aux.1"), nn.Linear)
    assert isinstance(module.get_submodule("heads.unused"), nn.Linear)


def test_containers_keep_their_class_and_their_indexing(through: Through) -> None:
    module = through(traced())
    blocks = module.get_submodule("blocks")
    assert type(blocks) is nn.Sequential
    assert isinstance(blocks[0], nn.Linear)
    assert type(module.get_submodule("heads")) is nn.ModuleDict


def test_a_non_persistent_buffer_stays_one(through: Through) -> None:
    module = through(traced())
    assert "cache" in dict(module.named_buffers())
    assert "cache" not in module.state_dict()


def test_plain_attributes_are_kept(through: Through) -> None:
    assert through(traced()).labels == ["a", "b", "c"]


def test_training_flags_are_kept_one_by_one(through: Through) -> None:
    module = traced()
    module.get_submodule("blocks.1").eval()
    flags = {name: part.training for name, part in module.named_modules()}
    assert {name: part.training for name, part in through(module).named_modules()} == flags
    assert set(flags.values()) == {True, False}


def test_an_evaluated_model_stays_evaluated(through: Through) -> None:
    assert not any(part.training for part in through(traced(Model().eval())).modules())


def test_frozen_parameters_stay_frozen(through: Through) -> None:
    model = Model()
    model.blocks.requires_grad_(False)
    module = through(traced(model))
    frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
    assert frozen == {"blocks.0.weight", "blocks.0.bias", "blocks.1.weight", "blocks.1.bias"}


def test_the_class_name_is_that_of_the_model(through: Through) -> None:
    module = through(traced())
    assert isinstance(module, WholeGraphModule)
    assert type(module).__name__ == "Model"


def test_hooks_of_the_model_and_of_its_layers_are_called(through: Through) -> None:
    model = Model()
    for hooked in (model, model.blocks[0]):
        hooked.register_forward_hook(note_forward)
        hooked.register_forward_pre_hook(note_pre_forward, with_kwargs=True)
        hooked.register_full_backward_hook(note_backward)
        hooked.register_full_backward_pre_hook(note_pre_backward)
    module = through(traced(model))
    calls.clear()
    module(example().requires_grad_()).sum().backward()
    assert calls == [
        *("before Model []", "before Linear []", "forward Linear", "forward Model"),
        *("before backward Model", "before backward Linear", "backward Linear", "backward Model"),
    ]


def test_hooks_added_to_the_traced_module_go_along(through: Through) -> None:
    module = traced()
    module.register_forward_hook(note_forward)
    copied = through(module)
    calls.clear()
    copied(example())
    assert calls == ["forward Model"]


def test_a_hook_on_a_copy_is_not_a_hook_on_the_original() -> None:
    for way in (copy.copy, copy.deepcopy, pickled):
        module = traced()
        way(module).register_forward_hook(note_forward)
        calls.clear()
        module(example())
        assert calls == []


@pytest.mark.parametrize("way", [copy.deepcopy, pickled])
def test_a_deep_copy_shares_no_tensor(way: Through) -> None:
    module = traced()
    own = {tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    copied = way(module)
    assert own.isdisjoint(t.data_ptr() for t in (*copied.parameters(), *copied.buffers()))


def test_a_shallow_copy_shares_every_parameter_but_not_the_tables() -> None:
    module = traced()
    shallow = copy.copy(module)
    for one, other in zip(module.parameters(), shallow.parameters(), strict=True):
        assert one is other
    shallow.add_module("more", nn.Linear(1, 1))
    assert not hasattr(module, "more")


def test_tied_parameters_stay_tied(through: Through) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    module = through(traced(model))
    assert module.get_parameter("0.weight") is module.get_parameter("1.weight")


def test_the_graph_is_the_same_with_names_shapes_and_order(through: Through) -> None:
    module = traced()
    first = next(iter(module.graph.nodes))
    with module.graph.inserting_after(first):
        assert module.graph.call_method("add", (first, first)).name == "add_2"  # before "add"
    lines = [(node.name, node.op, str(node.args)) for node in module.graph.nodes]
    copied = through(module)
    assert [(node.name, node.op, str(node.args)) for node in copied.graph.nodes] == lines
    assert find_layers(copied) == find_layers(module)


def test_two_copies_made_one_from_the_other_are_as_whole_as_one() -> None:
    model = Model()
    module = pickled(copy.deepcopy(copy.copy(pickled(traced(model)))))
    assert list(module.state_dict()) == list(model.state_dict())
    assert torch.equal(module(example()), model(example()))


def test_functions_that_torch_wraps_are_pickled_by_their_names() -> None:
    class Pooled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            pooled = functional.max_pool2d(x, 2)
            return functional.adaptive_max_pool2d(pooled, 1)

    x = torch.randn(2, 3, 8, 8)
    module = n2nfx.trace(Pooled(), x).module
    again = pickle.loads(pickle.dumps(module))
    targets = [node.target for node in module.graph.nodes]
    assert [node.target for node in again.graph.nodes] == targets
    assert torch.equal(again(x), module(x))


def test_a_module_that_was_compiled_in_place_can_be_pickled() -> None:
    module = traced()
    module.compile(backend="eager")
    again = pickled(module)
    assert torch.equal(again(example()), module(example()))


def test_a_deep_network_can_be_pickled() -> None:
    deep = nn.Sequential(nn.Linear(4, 4), *(nn.ReLU() for _ in range(400)))
    module = traced(deep)
    assert torch.equal(pickled(module)(example()), deep(example()))


def test_a_copy_can_be_edited_without_the_original() -> None:
    for way in (copy.copy, copy.deepcopy, pickled):
        module = traced()
        nodes = len(module.graph.nodes)
        copied = way(module)
        (output,) = (node for node in copied.graph.nodes if node.op == "output")
        with copied.graph.inserting_before(output):
            output.args = (copied.graph.call_function(torch.neg, output.args),)
        copied.recompile()
        assert torch.equal(copied(example()), -module(example()))
        assert len(module.graph.nodes) == nodes


def test_the_batch_size_and_the_mode_are_free(through: Through) -> None:
    model = Model()
    module = through(traced(model))
    model(example())  # one step of running statistics for both
    module(example())
    one = torch.randn(1, 4)
    assert torch.equal(module.eval()(one), model.eval()(one))


def test_a_load_state_dict_hook_of_the_model_is_called(through: Through) -> None:
    model = Model()
    model.register_load_state_dict_pre_hook(rename_old_key)
    module = through(traced(model))
    old = model.state_dict()
    old["gain"] = old.pop("scale") + 1
    module.load_state_dict(old)
    assert torch.equal(module.get_parameter("scale"), model.scale + 1)


def rename_old_key(module: nn.Module, state_dict: dict[str, Any], *_args: Any) -> None:
    calls.append(type(module).__name__)
    if "gain" in state_dict:
        state_dict["scale"] = state_dict.pop("gain")
