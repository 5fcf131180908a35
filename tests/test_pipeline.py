"""The pipeline: it copies once, checks every promise on the result, and records what was done."""

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import n2nfx
from n2nfx.errors import CannotOperate, UsageError
from n2nfx.masks import Masks
from n2nfx.network import Network, Probe
from n2nfx.passes import N2NSkip, RandomPruning, ResSkip, SmallInputStem
from n2nfx.pipeline import BrokenInvariant, Pass, Pipeline
from n2nfx.spec import to_text

EVERYTHING = frozenset({"graph", "nnz", "outputs"})


def chain(training: bool = True) -> Network:
    """Four convolutions with norms, and a linear layer; N = 2,292."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for into, out in ((3, 8), (8, 8), (8, 8), (8, 12)):
        layers += [
            nn.Conv2d(into, out, 3, padding=1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(inplace=True),
        ]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))
    return n2nfx.trace(model.train(training), torch.zeros(2, 3, 8, 8))


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Equal to the bit, and under the same names in the same order."""
    return [*one] == [*other] and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name])
        for name, tensor in one.items()
    )


def looks(module: nn.Module) -> list[tuple[str, type, bool]]:
    """Every part's name, class and mode."""
    return [(name, type(part), part.training) for name, part in module.named_modules()]


def prune_and_skip(**options: Any) -> list[Pass]:
    return [RandomPruning(density=0.4), N2NSkip(ratio=0.3, **options)]


# What comes out, and what goes in


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("wiring", ["paper", "linear", "joint"])
def test_the_network_given_is_left_as_it_was_to_the_bit(wiring: str, training: bool) -> None:
    network = chain(training)
    before = state(network.module), network.text(), looks(network.module), network.nnz
    outcome = Pipeline(prune_and_skip(wiring=wiring, branch_norm="batch"))(network)
    with torch.no_grad():
        for parameter in outcome.network.module.parameters():
            parameter.add_(1.0)
    assert same(before[0], state(network.module))
    assert before[1:] == (network.text(), looks(network.module), network.nnz)


def test_an_outcomes_network_is_left_as_it_was_by_the_next_pipeline() -> None:
    pruned = Pipeline([RandomPruning(density=0.4)])(chain()).network
    before = state(pruned.module), pruned.text(), looks(pruned.module), dict(pruned.masks)
    Pipeline([N2NSkip(ratio=0.3)])(pruned)
    assert same(before[0], state(pruned.module))
    assert same(before[3], dict(pruned.masks))
    assert before[1:3] == (pruned.text(), looks(pruned.module))


def test_a_pass_that_fails_leaves_the_network_as_it_was() -> None:
    network = chain()
    before = state(network.module), network.text()
    with pytest.raises(CannotOperate):
        Pipeline([RandomPruning(density=0.9), N2NSkip(ratio=0.99)])(network)
    assert same(before[0], state(network.module))
    assert network.text() == before[1]


def test_no_passes_change_nothing() -> None:
    network = chain()
    outcome = Pipeline([])(network)
    assert outcome.record == ()
    assert outcome.network.text() == network.text()
    assert outcome.network.nnz == network.nnz == network.size
    assert same(state(outcome.network.module), state(network.module))
    inputs = torch.randn(2, 3, 8, 8)
    assert torch.equal(outcome.network.module(inputs), network.module(inputs))


def test_no_passes_change_nothing_of_an_outcome_either() -> None:
    network = Pipeline(prune_and_skip())(chain()).network
    again = Pipeline([])(network).network
    assert again.text() == network.text()
    assert same(dict(again.masks), dict(network.masks))
    assert same(state(again.module), state(network.module))


def test_the_same_pipeline_twice_gives_the_same_bits() -> None:
    pipeline, network = Pipeline(prune_and_skip()), chain()
    one, other = pipeline(network, seed=3).network, pipeline(network, seed=3).network
    assert one.text() == other.text()
    assert same(dict(one.masks), dict(other.masks))
    assert same(state(one.module), state(other.module))


@pytest.mark.parametrize("skips", [N2NSkip(0.3), N2NSkip(0.3, wiring="joint", init="zero")])
def test_two_pipelines_one_after_the_other_equal_one_with_both(skips: Pass) -> None:
    prune, network = RandomPruning(density=0.4), chain()
    both = Pipeline([prune, skips])(network)
    first = Pipeline([prune])(network)
    second = Pipeline([skips])(first.network)
    assert second.network.text() == both.network.text()
    assert second.graph_sha256 == both.graph_sha256
    assert second.network.skips == both.network.skips
    assert same(dict(second.network.masks), dict(both.network.masks))
    assert same(state(second.network.module), state(both.network.module))
    told = [replace(step, seconds=0.0) for step in (*first.record, *second.record)]
    assert told == [replace(step, seconds=0.0) for step in both.record]


def test_masked_weights_are_zero_and_the_others_are_the_given_networks() -> None:
    network = chain()
    outcome = Pipeline([RandomPruning(density=0.4)])(network)
    for name, mask in outcome.network.masks.items():
        given = network.module.get_parameter(name)
        assert torch.equal(outcome.network.module.get_parameter(name), given * mask)


def test_the_seed_of_a_probe_is_that_of_its_steps() -> None:
    with_probe = Pipeline([RandomPruning(density=0.4)])(chain(), Probe(seed=5))
    with_seed = Pipeline([RandomPruning(density=0.4)])(chain(), seed=5)
    assert with_probe.record[0].seed == with_seed.record[0].seed == 5
    assert same(dict(with_probe.network.masks), dict(with_seed.network.masks))


# The record


def test_the_record_has_every_pass_with_its_numbers() -> None:
    passes = [RandomPruning(density=0.25), N2NSkip(ratio=0.5, hops=(2,))]
    network = chain()
    outcome = Pipeline(passes)(network)
    prune, skip = outcome.record
    assert [step.spec for step in outcome.record] == [to_text(each) for each in passes]
    assert prune.nnz == (2292, 573)
    assert skip.nnz == (573, 573)
    nodes = len(network.module.graph.nodes)
    assert prune.nodes == (nodes, nodes)
    assert skip.nodes == (nodes, len(outcome.network.module.graph.nodes))
    assert (prune.keeps, skip.keeps) == (("graph", "outputs"), ("graph", "nnz", "outputs"))
    assert (prune.skips, skip.skips) == ((), outcome.network.skips)
    assert all(0 < step.seconds < 60 for step in outcome.record)


def test_a_step_tells_the_skips_that_it_added_not_those_that_were_there() -> None:
    passes = [N2NSkip(ratio=0.1), Toy(lambda network: network)]
    one, two = Pipeline(passes)(chain()).record
    assert len(one.skips) > 0
    assert two.skips == ()


def test_the_counts_are_those_of_the_masks() -> None:
    counts = Pipeline([RandomPruning(density=0.25), N2NSkip(ratio=0.5)])(chain()).counts
    assert (counts.reference, counts.kept) == (2292, 573)
    assert (counts.sequential, counts.skip) == (287, 286)


def test_the_graphs_name_is_that_of_the_graph_and_of_nothing_else() -> None:
    network = chain()
    plain = Pipeline([])(network)
    pruned = Pipeline([RandomPruning(density=0.25)])(network, seed=4)
    skipped = Pipeline([N2NSkip(ratio=0.1)])(network)
    assert plain.graph_sha256 == pruned.graph_sha256 != skipped.graph_sha256


# Promises, and toys that break them


@dataclass(frozen=True)
class Toy:
    """A pass that does what it is told and promises everything that can be promised."""

    name: ClassVar[str] = "toy"
    keeps: ClassVar[frozenset[str]] = EVERYTHING

    work: Callable[[Network], Network]

    def __call__(self, network: Network, probe: Probe) -> Network:
        return self.work(network)


def broken(work: Callable[[Network], Network], *before: Pass) -> str:
    """What the pipeline says of a toy that works so."""
    with pytest.raises(BrokenInvariant) as caught:
        Pipeline([*before, Toy(work)])(chain())
    return str(caught.value)


def drop_three_weights(network: Network) -> Network:
    mask = torch.ones(8, 8, 3, 3, dtype=torch.bool)
    mask.view(-1)[:3] = False
    return replace(network, masks=Masks({**network.masks, "3.weight": mask}))


def square_the_output(network: Network) -> Network:
    graph = network.module.graph
    (result,) = graph.output_node().all_input_nodes
    with graph.inserting_after(result):
        squared = graph.call_function(operator.mul, (result, result))
    graph.output_node().args = (squared,)
    return network


def add_a_class(network: Network) -> Network:
    graph = network.module.graph
    (result,) = graph.output_node().all_input_nodes
    with graph.inserting_after(result):
        wider = graph.call_function(functional.pad, (result, (0, 1)))
    graph.output_node().args = (wider,)
    return network


def widen_a_weight(network: Network) -> Network:
    network.module.get_submodule("3").weight = nn.Parameter(torch.zeros(8, 8, 5, 5))
    return network


def cut_the_classifier(network: Network) -> Network:
    network.module.get_submodule("14").weight = nn.Parameter(torch.zeros(5, 11))
    return square_the_output(network)


def lose_a_weight(network: Network) -> Network:
    network.module.set_submodule("3", nn.Identity())
    return network


def name_what_is_not_there(network: Network) -> Network:
    next(node for node in network.module.graph.nodes if node.target == "3").target = "nowhere"
    return network


def misuse_a_later_value(network: Network) -> Network:
    first, *_, last = [n for n in network.module.graph.nodes if n.op == "call_module"]
    first.args = (last,)
    return network


def delete_a_weight(network: Network) -> Network:
    del network.module.get_submodule("3").weight
    return network


def miscount_a_skip(network: Network) -> Network:
    first, *others = network.skips
    return replace(network, skips=(replace(first, nnz=first.nnz + 1), *others))


def test_a_lost_weight_breaks_nnz_and_is_told_with_both_numbers_and_its_name() -> None:
    assert broken(drop_three_weights) == (
        "toy promised to keep nnz: 2292 before, 2289 after (-3; most in 3.weight)"
    )


def test_another_output_shape_breaks_outputs_and_is_told_with_both_shapes() -> None:
    @dataclass(frozen=True)
    class Careless(Toy):
        keeps: ClassVar[frozenset[str]] = frozenset({"outputs"})

    with pytest.raises(BrokenInvariant) as caught:
        Pipeline([Careless(add_a_class)])(chain())
    assert str(caught.value) == (
        "toy promised to keep outputs: shapes ((1, 5),) before, ((1, 6),) after"
    )


def test_another_graph_breaks_graph_and_is_told_with_both_numbers_of_nodes() -> None:
    nodes = len(chain().module.graph.nodes)
    assert broken(square_the_output) == (
        f"toy promised to keep graph: {nodes} nodes before, {nodes + 1} after, "
        "and no skip was added"
    )


def test_a_skip_whose_count_is_not_its_masks_is_told_with_both_numbers() -> None:
    @dataclass(frozen=True)
    class Careless(Toy):
        keeps: ClassVar[frozenset[str]] = frozenset()

    passes = [RandomPruning(0.25), N2NSkip(0.5), Careless(miscount_a_skip)]
    skip = Pipeline(passes[:2])(chain()).network.skips[0]
    with pytest.raises(BrokenInvariant) as caught:
        Pipeline(passes)(chain())
    assert str(caught.value) == (
        f"toy gives {skip.name} {skip.nnz + 1} weights; its mask keeps {skip.nnz}"
    )


def test_a_weight_of_another_shape_is_told_with_both_shapes() -> None:
    assert broken(widen_a_weight) == ("toy left 3.weight with shape (8, 8, 5, 5), not (8, 8, 3, 3)")


def test_a_graph_that_cannot_run_is_told_with_the_reason() -> None:
    assert broken(cut_the_classifier).startswith("toy left a network that cannot run: ")


@pytest.mark.parametrize(
    "work",
    [
        lose_a_weight,
        delete_a_weight,
        name_what_is_not_there,
        misuse_a_later_value,
    ],
)
def test_a_graph_that_is_no_graph_of_this_module_is_told_as_the_passs_fault(
    work: Callable[[Network], Network],
) -> None:
    assert broken(work).startswith("toy ")


def test_outputs_are_compared_though_the_graphs_text_is_the_same() -> None:
    def stride(network: Network) -> Network:
        convolution = network.module.get_submodule("0")
        assert isinstance(convolution, nn.Conv2d)
        convolution.stride = (2, 2)
        return network

    @dataclass(frozen=True)
    class Reshaper(Toy):
        keeps: ClassVar[frozenset[str]] = frozenset({"outputs"})

    network = n2nfx.trace(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1)), torch.zeros(2, 3, 8, 8))
    with pytest.raises(BrokenInvariant, match="promised to keep outputs"):
        Pipeline([Reshaper(stride)])(network)
    with pytest.raises(BrokenInvariant, match="promised to keep graph"):
        Pipeline([Toy(stride)])(network)


def test_a_promise_that_is_not_made_is_not_checked() -> None:
    @dataclass(frozen=True)
    class Careless(Toy):
        keeps: ClassVar[frozenset[str]] = frozenset()

    outcome = Pipeline([Careless(drop_three_weights), Careless(add_a_class)])(chain())
    assert outcome.record[0].nnz == (2292, 2289)
    assert outcome.network.module(torch.zeros(2, 3, 8, 8)).shape == (2, 6)


def test_a_promise_that_nobody_knows_is_refused_before_anything_is_done() -> None:
    @dataclass(frozen=True)
    class Boastful(Toy):
        keeps: ClassVar[frozenset[str]] = frozenset({"nnz", "accuracy"})

    def fail(network: Network) -> Network:
        raise AssertionError("it ran")

    with pytest.raises(UsageError) as caught:
        Pipeline([Toy(fail), Boastful(fail)])(chain())
    assert str(caught.value) == (
        "toy promises accuracy; what can be promised is nnz, outputs, graph"
    )


@pytest.mark.parametrize(
    "last",
    [
        nn.ReLU(),
        nn.Identity(),
        nn.Dropout(0.5),
    ],
)
def test_several_outputs_in_a_nest_keep_their_shapes_though_one_comes_twice(
    last: nn.Module,
) -> None:
    class Nest(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(
                nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)
            )
            self.head, self.last = nn.Linear(8, 4), last

        def forward(self, x: Tensor) -> dict[str, Any]:
            hidden = self.body(x)
            return {"z": hidden, "a": (self.head(hidden), hidden, self.last(hidden))}

    outcome = Pipeline(prune_and_skip(hops=(2,)))(n2nfx.trace(Nest(), torch.zeros(2, 8)))
    found = outcome.network.module(torch.randn(5, 8))
    assert [part.shape for part in (found["z"], *found["a"])] == [(5, 8), (5, 4), (5, 8), (5, 8)]


@pytest.mark.parametrize("added", [N2NSkip(0.2, hops=(1,)), ResSkip(hops=(2,)), SmallInputStem()])
def test_every_step_of_the_library_leaves_a_network_that_runs_for_any_batch(added: Pass) -> None:
    outcome = Pipeline([added])(chain())
    for batch in (2, 7):
        assert outcome.network.module(torch.randn(batch, 3, 8, 8)).shape == (batch, 5)


def test_two_seeds_are_refused() -> None:
    with pytest.raises(UsageError, match="one or the other"):
        Pipeline([RandomPruning(0.5)])(chain(), Probe(seed=1), seed=1)


def test_what_was_dropped_does_not_come_back_as_zeros() -> None:
    pruned = Pipeline([RandomPruning(0.2)])(chain()).network
    assert Pipeline([RandomPruning(0.1)])(pruned).network.nnz == round(0.1 * pruned.size)
    for again in (RandomPruning(0.5), RandomPruning(0.15, allocation="erk")):
        with pytest.raises(CannotOperate, match="cannot come back"):
            Pipeline([again])(pruned)
    with pytest.raises(CannotOperate, match="cannot come back"):
        Pipeline([RandomPruning(0.1)])(pruned, seed=1)


def test_branches_are_in_the_mode_of_their_network() -> None:
    network = n2nfx.trace(nn.Sequential(*(nn.Linear(4, 4) for _ in range(3))), torch.zeros(2, 4))
    network.module.eval()
    skipped = Pipeline(prune_and_skip(hops=(2,)))(network).network
    assert not any(part.training for part in skipped.module.modules())


@pytest.mark.parametrize("seed", [1.5, "a", None, True])
def test_a_seed_that_is_no_whole_number_is_refused(seed: Any) -> None:
    with pytest.raises(UsageError, match="whole number"):
        Probe(seed=seed)


def test_what_is_no_probe_is_refused() -> None:
    wrong: Any = 3
    with pytest.raises(UsageError, match=r"a probe is an n2nfx\.Probe, not int"):
        Pipeline([RandomPruning(0.5)])(chain(), wrong)
    with pytest.raises(UsageError, match=r"batches are a list of \(inputs, targets\), not int"):
        Probe(batches=wrong)
    with pytest.raises(UsageError, match=r"a loss must be a function of .*, not 3"):
        Probe(loss=wrong)


@pytest.mark.parametrize("passes", [RandomPruning(0.5), [RandomPruning], ["random"], RandomPruning])
def test_what_is_no_list_of_passes_is_refused(passes: Any) -> None:
    with pytest.raises(UsageError, match="list of passes"):
        Pipeline(passes)


def test_a_module_is_not_a_network() -> None:
    with pytest.raises(UsageError, match=r"n2nfx\.trace"):
        Pipeline([])(nn.ReLU())  # type: ignore[arg-type]


def test_a_module_with_masks_at_work_is_not_traced_again() -> None:
    pruned = Pipeline([RandomPruning(0.5)])(chain()).network
    with pytest.raises(CannotOperate, match="bake"):
        n2nfx.trace(pruned.module, torch.zeros(2, 3, 8, 8))
    assert n2nfx.trace(n2nfx.bake(pruned).module, torch.zeros(2, 3, 8, 8)).size == pruned.size


def test_a_network_without_data_is_refused() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    network = n2nfx.trace(model, torch.randn(1, 8))
    with pytest.raises(CannotOperate, match=r"0.weight has no data"):
        Pipeline([RandomPruning(density=0.5)])(network)
