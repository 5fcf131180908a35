"""What one run of a forward writes down, what it refuses, and what it leaves behind."""

import functools
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from samples import Model
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from n2nfx.errors import CannotOperate
from n2nfx.tracing.inventory import Inventory
from n2nfx.tracing.recorder import Recorder
from n2nfx.tracing.tape import Entry, InputDevice, Ref, Spec, Tape

Forward = Callable[..., Any]


@pytest.fixture(autouse=True)
def _fake() -> Iterator[None]:
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield


def recorded(model: nn.Module, *shapes: tuple[int, ...]) -> Tape:
    inputs = {f"x{index}": torch.empty(shape) for index, shape in enumerate(shapes or [(2, 4)])}
    return Recorder(model, Inventory.of(model)).run(inputs)


def steps(body: Forward, *shapes: tuple[int, ...], **parts: Any) -> list[Entry]:
    """The entries between inputs and output."""
    entries = recorded(Model(body, **parts), *shapes).entries
    return [entry for entry in entries if entry.op not in ("placeholder", "output")]


def names(entries: list[Entry]) -> list[str]:
    return [getattr(entry.target, "__name__", entry.target) for entry in entries]


def refusal(body: Forward, **parts: Any) -> str:
    with pytest.raises(CannotOperate) as caught:
        recorded(Model(body, **parts))
    return str(caught.value)


# What is written.


def test_a_layer_is_one_step_with_its_path_and_its_output_shape() -> None:
    (step,) = steps(lambda m, x: m.layers(x), layers=nn.Sequential(nn.Linear(4, 3)))
    assert (step.op, step.target, step.args) == ("call_module", "layers.0", (Ref(0),))
    assert step.value == Spec((2, 3), torch.float32)
    assert step.scope == "layers"  # the module that calls it


def test_a_layer_that_is_called_by_its_forward_is_one_step_too() -> None:
    assert names(steps(lambda m, x: m.layer.forward(x), layer=nn.Linear(4, 3))) == ["layer"]


@pytest.mark.parametrize(
    ("call", "op", "target"),
    [
        (lambda _m, x: torch.relu(x), "call_function", torch.relu),
        (lambda _m, x: x.relu(), "call_method", "relu"),
        (lambda _m, x: x + 1, "call_method", "add"),
        (lambda _m, x: x[0], "call_function", operator.getitem),
        (lambda _m, x: 1 - x, "call_method", "__rsub__"),
        (lambda _m, x: x.T, "call_function", getattr),
        (lambda _m, x: torch.ones(4), "call_function", torch.ones),
    ],
    ids=["function", "method", "operator", "item", "reflected", "attribute", "factory"],
)
def test_a_call_is_written_as_fx_would_make_it(call: Forward, op: str, target: Any) -> None:
    (step,) = steps(call)
    assert (step.op, step.target) == (op, target)


def test_what_gives_no_tensor_is_not_written() -> None:
    def body(_model: nn.Module, x: Tensor) -> Tensor:
        assert isinstance(x, Tensor)
        assert len(x) + x.dim() + x.size(0) + x.shape[1] + x.numel() == 18
        assert x.is_floating_point()
        return x

    assert steps(body) == []


def test_a_parameter_is_read_once_and_by_its_first_name() -> None:
    weight = nn.Parameter(torch.empty(4, 4))
    found = steps(
        lambda m, x: functional.linear(functional.linear(x, m.weight), m.tied),
        weight=weight,
        tied=weight,
    )
    assert names(found) == ["weight", "linear", "linear"]
    assert {entry.args[1] for entry in found[1:]} == {Ref(1)}


def test_a_plain_attribute_that_is_a_tensor_is_read_by_its_name() -> None:
    model = Model(lambda m, x: x + m.inner.scale, inner=nn.Module())
    model.inner.scale = torch.ones(4)  # type: ignore[union-attr]
    assert [entry.target for entry in recorded(model).entries if entry.op == "get_attr"] == [
        "inner.scale"
    ]


def test_a_tensor_that_was_changed_is_known_by_the_step_that_changed_it() -> None:
    def body(_model: nn.Module, x: Tensor) -> Tensor:
        x.relu_()
        x += 1
        return x * 2

    assert [entry.args[0] for entry in steps(body)] == [Ref(0), Ref(1), Ref(2)]


def test_a_buffer_that_was_changed_is_known_by_the_step_that_changed_it() -> None:
    def body(model: Any, x: Tensor) -> Tensor:
        model.count.add_(1)
        return x * model.count

    _get, add, mul = steps(body, count=torch.zeros(()))
    assert (add.args[0], mul.args[1]) == (Ref(1), Ref(2))


@pytest.mark.parametrize(
    "drop",
    [
        lambda m, x: m.drop(x),
        lambda m, x: functional.dropout(x, 0.5, m.training),
        lambda m, x: functional.dropout2d(x, 0.5, training=m.training),
    ],
    ids=["module", "function", "dropout2d"],
)
def test_the_two_modes_name_the_same_tensors_though_dropout_hands_its_input_on(
    drop: Forward,
) -> None:
    model = Model(lambda m, x: x + drop(m, x), drop=nn.Dropout(0.5))
    trained, evaluated = (recorded(model.train(mode), (2, 4, 3, 3)) for mode in (True, False))
    assert trained.entries[-2].args == evaluated.entries[-2].args == (Ref(0), Ref(1))


def test_setting_items_is_a_step_and_slices_hold_references() -> None:
    def body(_model: nn.Module, x: Tensor) -> Tensor:
        x[:, 1:] = 0
        return x[x.argmax(1), None, ..., ::2]

    setting, argmax, getting = steps(body)
    assert setting.args == (Ref(0), (slice(None), slice(1, None, None)), 0)
    assert argmax.args[0] == Ref(0)
    assert getting.args == (Ref(0), (Ref(2), None, ..., slice(None, None, 2)))


def test_the_device_of_the_input_is_no_constant_and_another_is() -> None:
    def body(_model: nn.Module, x: Tensor) -> Any:
        return torch.ones(3, device=x.device), torch.ones(3, device=torch.device("meta"))

    assert [entry.kwargs["device"] for entry in steps(body)] == [
        InputDevice(),
        torch.device("meta"),
    ]


def test_numbers_of_numpy_become_numbers_of_python() -> None:
    found = steps(lambda _m, x: x.view(np.prod([2, 4])) * np.sqrt(2.0))
    assert [type(entry.args[1]) for entry in found] == [int, float]


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: x.shape[0],
        lambda x: x.size(0),
        lambda x: x.size(),
        lambda x: len(x),
        lambda x: x.numel(),
        lambda x: torch.numel(x),
        lambda x: x.nbytes,
        lambda x: x.T.shape,
        lambda x: x.stride(),
        lambda x: x.is_contiguous(),
        lambda x: x.untyped_storage(),
        lambda x: torch.broadcast_shapes(x.shape, (1, 1)),
        lambda x: x.unbind(0),
        lambda x: list(x),
        lambda x: x.split(1),
        lambda x: functional.pad(x, (0, x.shape[1])),
        lambda x: repr(x),
    ],
)
def test_a_forward_that_sees_a_size_is_known(ask: Forward) -> None:
    tape = recorded(Model(lambda m, x: (ask(x), x + 1)[1]))
    assert tape.asked


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: x.flatten(1).relu(),
        lambda m, x: m.layer(x) if x.dim() == 2 and x.ndim == 2 else x,
        lambda m, x: x + torch.ones(4, dtype=x.dtype, device=x.device),
        lambda m, x: functional.adaptive_avg_pool1d(x[None], 1) if x.is_floating_point() else x,
        lambda m, x: x.clone().__setitem__((slice(None), 0), 1.0) or x * 2,
    ],
)
def test_a_forward_that_sees_no_size_is_known_too(body: Forward) -> None:
    assert not recorded(Model(body, layer=nn.Linear(4, 4))).asked


def test_elements_of_nested_results_are_known_by_their_path() -> None:
    def body(model: Any, x: Tensor) -> Tensor:
        _sequence, (_hidden, cell) = model.lstm(x)
        return cell.relu()

    _lstm, relu = steps(body, (2, 5, 4), lstm=nn.LSTM(4, 3))
    assert relu.args == (Ref(1, (1, 1)),)


def test_the_projections_of_attention_are_seen() -> None:
    found = steps(lambda m, x: m.a(x, x, x), (2, 5, 4), a=nn.MultiheadAttention(4, 2))
    assert [entry.target for entry in found if entry.op == "get_attr"] == [
        "a.in_proj_weight",
        "a.in_proj_bias",
        "a.out_proj.weight",
        "a.out_proj.bias",
    ]


def test_inputs_can_go_by_name() -> None:
    model = Model(lambda _m, *, left, right: left - right)
    inputs = {"right": torch.empty(2), "left": torch.empty(2)}
    sub = Recorder(model, Inventory.of(model)).run(inputs, by_name=True).entries[2]
    assert sub.args == (Ref(1), Ref(0))


# What is refused.


class Doubled(torch.autograd.Function):
    """A custom function, whose backward no mode sees."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * 3


def within(context: Callable[[], Any], call: Forward) -> Forward:
    def body(model: nn.Module, x: Tensor) -> Tensor:
        with context():
            return call(model, x)

    return body


def assign(model: Any, x: Tensor) -> Tensor:
    x.requires_grad = True
    return x


def replace(model: Any, x: Tensor) -> Tensor:
    model.mean = 0.9 * model.mean + x.mean()
    return x - model.mean


OUTSIDE = torch.ones(4)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (within(torch.inference_mode, lambda m, x: m.layer(x)), "torch.inference_mode"),
        (within(torch.inference_mode, lambda m, x: x * 2), "torch.inference_mode"),
        (
            within(functools.partial(torch.autocast, "cpu"), lambda m, x: m.layer(x)),
            "torch.autocast",
        ),
        (within(functools.partial(torch.autocast, "cpu"), lambda m, x: x @ x.T), "torch.autocast"),
        (lambda m, x: x + OUTSIDE, "comes from outside the model"),
        (assign, "requires_grad"),
        (replace, "in the place of mean"),
        (lambda m, x: m.layer(x).register_hook(print), "hook"),
        (lambda m, x: (x * 2, object()), "a object among"),
    ],
    ids=[
        "inference, layer",
        "inference, function",
        "autocast, layer",
        "autocast, function",
        "tensor from outside",
        "attribute set",
        "buffer replaced",
        "tensor hook",
        "unknown output",
    ],
)
def test_what_a_graph_would_lose_is_refused(body: Forward, reason: str) -> None:
    assert reason in refusal(body, layer=nn.Linear(4, 4), mean=torch.zeros(()))


@pytest.mark.parametrize(
    "context", [torch.no_grad, functools.partial(torch.autocast, "cpu", enabled=False)]
)
def test_a_context_that_changes_nothing_is_not_refused(context: Callable[[], Any]) -> None:
    layer = nn.Linear(4, 4).requires_grad_(False)
    assert names(steps(within(context, lambda m, x: m.layer(x) * 2), layer=layer)) == [
        "layer",
        "mul",
    ]


def test_a_cache_may_be_made_anew() -> None:
    def body(model: Any, x: Tensor) -> Tensor:
        model.grid = torch.arange(4)
        return x + model.grid

    model = Model(body)
    model.register_buffer("grid", torch.zeros(1), persistent=False)
    assert names(recorded(model).entries[1:-1]) == ["arange", "add"]


# What is left behind.


class Broken(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("half-way")


@contextmanager
def broken(model: nn.Module) -> Iterator[Recorder]:
    recorder = Recorder(model, Inventory.of(model))
    with pytest.raises(ValueError, match="half-way"):
        recorder.run({"x": torch.empty(2, 5, 4)})
    yield recorder


def test_a_failing_run_says_which_module_it_was_in() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), Broken()))
    with broken(model) as recorder:
        assert recorder.fault is not None
        assert recorder.fault.scope == ("", "", "1", "1.1")


@pytest.mark.parametrize("last", [nn.Identity, Broken])
def test_the_modules_forwards_are_their_own_again(last: type[nn.Module]) -> None:
    first = nn.Linear(4, 4)
    own = functools.partial(nn.Linear.forward, first)
    first.forward = own
    model = nn.Sequential(first, last())
    if last is Broken:
        with broken(model):
            pass
    else:
        recorded(model)
    assert vars(first)["forward"] is own
    assert "forward" not in vars(model)
    assert "forward" not in vars(model[1])


def test_torch_is_itself_again_after_a_failing_run() -> None:
    apply = torch.autograd.Function.__dict__["apply"]
    guard = vars(functional)["has_torch_function"]
    model = Model(lambda m, x: m.attention(x, x, x[:, 1:]), attention=nn.MultiheadAttention(4, 2))
    with pytest.raises(AssertionError):
        recorded(model, (2, 5, 4))
    assert torch.autograd.Function.__dict__["apply"] is apply
    assert vars(functional)["has_torch_function"] is guard
