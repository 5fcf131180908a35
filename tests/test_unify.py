"""Tapes written by hand: what several runs of one forward become, and when they cannot meet."""

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn

from n2nfx.errors import CannotOperate
from n2nfx.tracing.tape import Entry, InputDevice, Op, Ref, Spec, Tape
from n2nfx.tracing.unify import BatchNumber, Confounded, Run, Switched, unify
from n2nfx.tracing.writer import GraphWriter, ModeSwitch

FOUR = [Run(training, batch) for training in (False, True) for batch in (2, 3)]
SIX = [*FOUR, Run(False, 1), Run(False, 61)]


class Pair(NamedTuple):
    first: Any
    second: Any


def spec(*shape: int) -> Spec:
    return Spec(shape, torch.float32)


def step(
    target: Any, *args: Any, op: Op = "call_function", scope: str = "", **kwargs: Any
) -> Entry:
    return Entry(op, target, args, kwargs, None, scope)


def tape(run: Run, *steps: Entry) -> Tape:
    """An input of `run.batch` examples, the steps, and the last one's value as the output."""
    start = Entry("placeholder", "x", (), {}, spec(run.batch, 4), "")
    return Tape([start, *steps, step("output", Ref(len(steps)), op="output")])


def unified(steps: Callable[[Run], list[Entry]], runs: list[Run] = FOUR) -> Tape:
    return unify({run: tape(run, *steps(run)) for run in runs})


def argument(value: Callable[[Run], Any], runs: list[Run] = FOUR) -> Any:
    """What an argument becomes that has this value in each run."""
    return unified(lambda run: [step(torch.mul, value(run))], runs).entries[1].args[0]


def refused(steps: Callable[[Run], list[Entry]], runs: list[Run] = FOUR) -> str:
    with pytest.raises(CannotOperate) as caught:
        unified(steps, runs)
    return str(caught.value)


def refuses(value: Callable[[Run], Any], runs: list[Run] = FOUR) -> str:
    return refused(lambda run: [step(torch.mul, value(run))], runs)


def graph_module(written: Tape, root: nn.Module | None = None) -> fx.GraphModule:
    writer = GraphWriter(written)
    graph = writer.write()
    root = root or nn.Module()
    for path, switch in writer.switches.items():
        owner, _, name = path.rpartition(".")
        root.get_submodule(owner).add_module(name, switch)
    return fx.GraphModule(root, graph)


@pytest.mark.parametrize("constant", [1, 2.5, True, None, "same", torch.float16, ...])
def test_what_is_the_same_in_every_run_stays(constant: Any) -> None:
    assert argument(lambda _run: constant) == constant


@given(factor=st.integers(-9, 9).filter(bool), offset=st.integers(-99, 99))
def test_a_whole_number_of_the_batch_is_found_exactly(factor: int, offset: int) -> None:
    found = argument(lambda run: factor * run.batch + offset, SIX)
    assert found == BatchNumber(factor, offset)


@pytest.mark.parametrize(
    "of",
    [lambda b: b // 2, lambda b: b % 2, lambda b: min(b, 9), lambda b: b**2, lambda b: 1 / b],
    ids=["half", "odd", "at most nine", "square", "reciprocal"],
)
def test_a_number_of_the_batch_that_no_line_gives_is_refused(of: Callable[[int], float]) -> None:
    assert "the batch size" in refuses(lambda run: of(run.batch), SIX)


def test_a_value_of_the_mode_becomes_a_switch() -> None:
    assert argument(lambda run: 0.5 if run.training else 0.0) == Switched(train=0.5, eval=0.0)


@pytest.mark.parametrize(
    ("train", "eval"),
    [(None, [4, 4]), (True, 1), (1, 1.0), (float("nan"), 1.0), ([1], (2, 3))],
)
def test_a_switch_bridges_values_of_any_two_types(train: Any, eval: Any) -> None:
    found = argument(lambda run: train if run.training else eval)
    assert (repr(found.train), repr(found.eval)) == (repr(train), repr(eval))


def test_a_number_of_both_batch_and_mode_is_refused() -> None:
    refuses(lambda run: run.batch if run.training else 1)


def test_a_mode_is_told_from_a_batch_without_sharing_one_where_no_size_was_seen() -> None:
    runs = [Run(False, 1), Run(False, 61), Run(True, 2)]
    tapes = {run: tape(run, step(torch.mul, run.training)) for run in runs}
    assert unify(tapes).entries[1].args[0] == Switched(train=True, eval=False)
    tapes[runs[2]] = replace(tapes[runs[2]], asked=True)
    with pytest.raises(Confounded):
        unify(tapes)
    both = Run(True, 61)
    tapes[both] = tape(both, step(torch.mul, True))
    assert unify(tapes).entries[1].args[0] == Switched(train=True, eval=False)


def test_nan_is_the_same_as_nan() -> None:
    found = argument(lambda _run: float("nan"))
    assert found != found


def test_a_number_inside_a_slice_is_found() -> None:
    found = argument(lambda run: (slice(None, run.batch - 1), slice(0, 4, 2)))
    assert found == (slice(None, BatchNumber(1, -1), None), slice(0, 4, 2))


def test_a_number_deep_inside_is_found_and_every_container_keeps_its_type() -> None:
    found = argument(lambda run: Pair([run.batch], {"size": (run.batch, 7)}))
    assert found == Pair([BatchNumber(1, 0)], {"size": (BatchNumber(1, 0), 7)})
    assert isinstance(found, Pair)
    assert isinstance(found.first, list)
    assert isinstance(found.second["size"], tuple)


@pytest.mark.parametrize(
    "of",
    [lambda b: [0] * b, lambda b: (0,) * b, lambda b: {str(b): 0}, lambda b: Ref(0, (b,))],
    ids=["list", "tuple", "dict", "tensor"],
)
def test_another_number_of_elements_or_another_tensor_is_refused(of: Callable[[int], Any]) -> None:
    assert "gets other arguments" in refuses(lambda run: of(run.batch))


@pytest.mark.parametrize(
    "tensors", [Ref(0), [Ref(0)], {"a": (Ref(0),)}, slice(Ref(0)), InputDevice()]
)
def test_a_switch_never_holds_a_tensor_or_a_device(tensors: Any) -> None:
    assert "the mode" in refuses(lambda run: tensors if run.training else None)


def test_other_steps_in_the_two_modes_are_refused_with_both_modules() -> None:
    def steps(run: Run) -> list[Entry]:
        name = "head.aux" if run.training else "head.main"
        return [step(name, Ref(0), op="call_module", scope="head")]

    message = refused(steps)
    assert "the mode (train or eval)" in message
    assert "head.main" in message
    assert "head.aux" in message


def test_other_steps_for_another_batch_are_refused_with_both_calls_and_their_module() -> None:
    def steps(run: Run) -> list[Entry]:
        return [step(torch.relu if run.batch > 2 else torch.tanh, Ref(0), scope="layer1.0")]

    message = refused(steps)
    assert "the batch size" in message
    assert "tanh (in layer1.0) or relu (in layer1.0)" in message


@pytest.mark.parametrize("longer", [True, False])
def test_a_run_that_goes_on_longer_is_refused(longer: bool) -> None:
    more = step(torch.relu, Ref(1), scope="extra")
    message = refused(
        lambda run: [step(torch.tanh, Ref(0)), *([more] if run.training is longer else [])]
    )
    assert "relu (in extra)" in message


def test_values_keep_their_shape_at_the_smallest_and_the_largest_batch() -> None:
    batches = [run.batch for run in SIX]
    want = (spec(min(batches), 4), spec(max(batches), 4))
    assert unified(lambda _run: [], SIX).entries[0].value == want


def test_elements_that_only_one_batch_has_do_no_harm_unless_used() -> None:
    def rows(run: Run) -> list[Entry]:
        value = [spec(4) for _ in range(run.batch)]
        split = Entry("call_method", "unbind", (Ref(0),), {}, value, "")
        return [split, step(torch.relu, Ref(1, (0,)))]

    assert unified(rows).entries[1].value == [(spec(4), spec(4))] * 2


def test_numbers_of_the_batch_are_computed_from_the_first_input() -> None:
    written = unified(lambda run: [step(torch.zeros, 4 * run.batch - 1, run.batch, 3)])
    assert graph_module(written)(torch.ones(5, 4)).shape == (19, 5, 3)


def test_a_number_is_computed_once_however_often_it_is_used() -> None:
    written = unified(lambda run: [step(torch.zeros, 4 * run.batch, 4 * run.batch) for _ in "abc"])
    names = [
        getattr(node.target, "__name__", node.target) for node in GraphWriter(written).write().nodes
    ]
    assert names == ["x", "size", "mul", "zeros", "zeros", "zeros", "output"]


def test_the_device_is_that_of_the_first_input() -> None:
    module = graph_module(unified(lambda _run: [step(torch.zeros, 3, device=InputDevice())]))
    assert module(torch.ones(2, 4, device="meta")).device == torch.device("meta")


def test_a_switch_stands_in_the_module_whose_mode_it_looks_at() -> None:
    root = nn.Module()
    root.block = nn.Module()
    module = graph_module(
        unified(lambda run: [step(operator.mul, Ref(0), float(run.training), scope="block")]), root
    )
    assert module.train()(torch.ones(2)).tolist() == [1, 1]
    module.get_submodule("block").eval()
    assert module(torch.ones(2)).tolist() == [0, 0]


def test_a_switch_of_true_is_not_a_switch_of_one() -> None:
    def steps(run: Run) -> list[Entry]:
        return [step(list, (run.training, 1 if run.training else 0, float(run.training)))]

    module = graph_module(unified(steps))
    assert list(map(repr, module.train()(torch.ones(2, 4)))) == ["True", "1", "1.0"]


def test_switches_of_one_value_in_one_module_are_one() -> None:
    writer = GraphWriter(unified(lambda run: [step(torch.mul, run.training) for _ in range(3)]))
    writer.write()
    assert len(writer.switches) == 1


def test_a_mode_switch_follows_train_and_eval() -> None:
    switch = ModeSwitch(train="t", eval="e")
    assert (switch.train()(), switch.eval()()) == ("t", "e")


def test_elements_of_a_value_are_taken_once_and_by_their_path() -> None:
    def steps(_run: Run) -> list[Entry]:
        nested = Entry("call_function", list, (((1, 2), 3),), {}, None, "")
        return [nested, step(operator.add, Ref(1, (0, 1)), Ref(1, (0, 0)))]

    written = unified(steps)
    assert graph_module(written)(torch.ones(2, 4)) == 3
    made = [node for node in GraphWriter(written).write().nodes if node.target is operator.getitem]
    assert len(made) == 3  # [0], [0][1], [0][0]


def test_a_named_tuple_comes_out_as_one() -> None:
    def written(run: Run) -> Tape:
        out = step("output", Pair(Ref(0), run.batch), op="output")
        return Tape([tape(run).entries[0], out])

    module = graph_module(unify({run: written(run) for run in FOUR}))
    found = module(torch.ones(7, 4))
    assert isinstance(found, Pair)
    assert found.second == 7
