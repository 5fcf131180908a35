"""Parts: where forward cannot be a graph, the largest modules inside that can are graphs."""

import copy
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import part_samples
import pytest
import samples
import torch
from part_samples import Detector, detector, pictures
from torch import Tensor, nn
from torch.nn import functional

import n2nfx
from n2nfx.connectivity import count_effective, find_collapse
from n2nfx.errors import CannotOperate
from n2nfx.graphmodule import parts_of
from n2nfx.masks import Masks
from n2nfx.network import Network, Probe
from n2nfx.outcome import Outcome
from n2nfx.passes import N2NSkip, RandomPruning, SynFlow
from n2nfx.rehearsal import misfits

SIZES = ((16, 20), (17, 23), (30, 25))  # of the example, and two others, odd and even


def flat(value: Any, name: str = "") -> dict[str, Tensor]:
    """The tensors in a value by where they are."""
    if isinstance(value, Tensor):
        return {name: value}
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
    found: dict[str, Tensor] = {}
    for key, item in pairs:
        found |= flat(item, f"{name}.{key}")
    return found


def assert_equal(one: Any, other: Any) -> None:
    one, other = flat(one), flat(other)
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def evaluated(module: nn.Module, size: tuple[int, int]) -> Any:
    with torch.no_grad():
        return module.eval()(list(pictures(2, *size)))


def trained(module: nn.Module, size: tuple[int, int]) -> Any:
    """The losses, the gradients and what batch norm remembers."""
    module.train().zero_grad()
    losses = module(pictures(3, *size), torch.tensor([0.5, -0.5, 1.0]))
    torch.stack(list(losses.values())).sum().backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return {**losses, "gradients": gradients, "buffers": dict(module.named_buffers())}


def parts(network: Network) -> list[str]:
    return [path for path, _ in parts_of(network.module) if path]


@pytest.fixture(scope="module")
def network() -> Network:
    return n2nfx.trace(detector(), pictures(1, *SIZES[0]))


@pytest.fixture
def outcome(network: Network) -> Outcome:
    passes = [RandomPruning(0.5), N2NSkip(ratio=0.3, hops=(1, 2, 3))]
    return n2nfx.Pipeline(passes)(network, seed=3)


def test_the_largest_traceable_modules_are_graphs_and_all_weights_are_layers(
    network: Network,
) -> None:
    assert parts(network) == ["backbone", "head", "judge"]
    weights = [name for name, weight in detector().named_parameters() if weight.dim() > 1]
    assert sorted(layer.weight for layer in network.layers) == sorted(weights)
    assert "in backbone:" in network.text()
    (note,) = network.notes
    assert "skips inside of backbone, head, judge only" in note
    assert "looks at the values" in note


@pytest.mark.parametrize("size", SIZES)
def test_pictures_of_any_size_give_the_models_own_numbers(
    network: Network, size: tuple[int, int]
) -> None:
    for module in (network.module, pickle.loads(pickle.dumps(network.module))):
        own = detector()
        assert_equal(evaluated(copy.deepcopy(module), size), evaluated(own, size))
        assert_equal(trained(copy.deepcopy(module), size), trained(own, size))


def test_names_stay_and_a_checkpoint_of_the_model_loads(network: Network) -> None:
    assert list(network.module.state_dict()) == list(detector().state_dict())
    other = Detector()
    module = copy.deepcopy(network.module)
    module.load_state_dict(other.state_dict())
    assert_equal(evaluated(module, SIZES[1]), evaluated(other, SIZES[1]))


def test_how_often_a_weight_is_used_counts_what_its_part_gets(network: Network) -> None:
    uses = {layer.name: layer.uses for layer in network.layers}
    assert uses["backbone.stem.0"] == 16 * 20
    assert uses["head.second"] == 8 * 10 + 4 * 5  # on both maps
    found = evaluated(detector(), SIZES[0])[0]["scores"]
    assert uses["judge.0"] == uses["judge.2"] > 0
    assert len(found) > 0


def test_the_budget_is_exact_over_all_parts_and_skips_stay_inside(outcome: Outcome) -> None:
    network, counts = outcome.network, outcome.counts
    assert counts.kept == network.nnz == round(0.5 * network.size)
    assert counts.skip == round(0.3 * counts.kept)
    assert {skip.name.partition(".")[0] for skip in network.skips} == {"backbone", "head", "judge"}
    assert "backbone.input" in {skip.source for skip in network.skips}
    for skip in network.skips:
        path = skip.name.partition(".")[0]
        assert skip.source.startswith(f"{path}.")
        assert skip.target.startswith(f"{path}.")


@pytest.mark.parametrize("size", SIZES)
def test_branches_whose_weights_are_zero_change_nothing_at_any_size(
    network: Network, outcome: Outcome, size: tuple[int, int]
) -> None:
    spliced = outcome.network
    with torch.no_grad():
        for skip in spliced.skips:
            spliced.module.get_parameter(skip.weight).zero_()
    masks = {layer.weight: spliced.masks[layer.weight] for layer in network.layers}
    plain = copy.deepcopy(network.module)
    n2nfx.bind.zero_masked(plain, Masks(masks))
    assert_equal(evaluated(spliced.module, size), evaluated(plain, size))
    spliced.module.train()
    plain.train()
    targets = torch.tensor([0.5, -0.5, 1.0])
    assert_equal(*(one(pictures(3, *size), targets) for one in (spliced.module, plain)))


@pytest.mark.parametrize("size", SIZES)
def test_branches_with_weights_meet_at_any_size(outcome: Outcome, size: tuple[int, int]) -> None:
    before = evaluated(outcome.network.module, size)
    with torch.no_grad():
        for skip in outcome.network.skips:
            outcome.network.module.get_parameter(skip.weight).zero_()
    after = evaluated(outcome.network.module, size)
    assert not torch.equal(before[0]["scores"], after[0]["scores"])


def test_what_is_saved_is_loaded_and_gives_the_same(outcome: Outcome, tmp_path: Path) -> None:
    outcome.save(tmp_path / "out")
    again = n2nfx.load(tmp_path / "out", detector())
    assert again.text() == outcome.network.text()
    assert list(misfits(again)) == []
    for size in SIZES:
        assert_equal(evaluated(again.module, size), evaluated(outcome.network.module, size))
        baked = n2nfx.bake(again).module
        assert_equal(evaluated(baked, size), evaluated(again.module, size))


def test_the_whole_is_a_hub_of_the_channel_graph_between_its_parts(outcome: Outcome) -> None:
    graph = n2nfx.channel_graph(outcome.network)
    called = [group for group in graph.groups if group.kind == "layer"]
    layers = {group.name.partition(" (")[0]: group.size for group in called}  # (2) the second time
    assert layers == {layer.name: layer.weight_shape[0] for layer in outcome.network.layers}
    assert graph.hubs == ("whole_model",)
    effective = count_effective(outcome.network)
    assert [row.channels for row in effective.layers] == list(layers.values())


def without(network: Network, *names: str) -> Network:
    """The network with nothing kept of some layers."""
    masks = {
        layer.weight: torch.full(layer.weight_shape, layer.name not in names)
        for layer in network.layers
    }
    made = Network(copy.deepcopy(network.module), network.layers, network.inputs, Masks(masks))
    n2nfx.bind.bind(made)
    return made


def test_a_part_whose_output_does_not_move_is_dead(network: Network) -> None:
    assert find_collapse(without(network)) is None
    collapse = find_collapse(without(network, "judge.2"))
    assert collapse is not None
    assert str(collapse).startswith("judge is dead")
    assert collapse.layers == ("judge.2",)


# What parts can be, and what they refuse.


def looks(model: Any, x: Tensor) -> Tensor:
    return model.inner(x) * (2 if x.sum() > 0 else 1)


def looking(inner: nn.Module, body: Callable[..., Any] = looks, **parts: Any) -> nn.Module:
    return samples.Model(body, inner=inner, **parts)


def block(channels: int = 4) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels), nn.ReLU()
    )


def test_a_module_inside_of_one_that_is_kept_whole_in_a_graph_is_a_part_too() -> None:
    model = nn.Sequential(nn.Linear(4, 4), looking(block()), nn.Linear(4, 4))
    network = n2nfx.trace(model, torch.rand(1, 4))
    assert parts(network) == ["1.inner"]
    assert "1 (Model) is kept as it is" in network.notes[0]
    assert [layer.name for layer in network.layers] == ["0", "1.inner.0", "1.inner.2", "2"]
    outcome = n2nfx.Pipeline([RandomPruning(0.5), N2NSkip(ratio=0.2, hops=(1,))])(network)
    homes = {skip.name.rpartition("skips.")[0] for skip in outcome.network.skips}
    assert homes == {"", "1.inner."}
    x = torch.randn(5, 4)
    assert torch.equal(network.module(x), model(x))


def test_a_part_has_parts_of_its_own_in_what_it_keeps_whole() -> None:
    inner = nn.Sequential(block(), looking(block()))
    model = looking(nn.Sequential(inner, nn.Linear(4, 4)))
    network = n2nfx.trace(model, torch.rand(1, 4))
    assert parts(network) == ["inner", "inner.0.1.inner"]
    assert len(network.layers) == 5
    outcome = n2nfx.Pipeline([RandomPruning(0.5), N2NSkip(ratio=0.2, hops=(1,))])(network)
    homes = {skip.name.rpartition(".skips.")[0] for skip in outcome.network.skips}
    assert homes == {"inner", "inner.0.1.inner"}
    x = torch.randn(5, 4)
    assert torch.equal(network.module(x), model(x))


class Standardized(nn.Conv2d):
    """A convolution whose weight is standardized, so that no class of ours can mask it."""

    def forward(self, input: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        return functional.conv2d(input, self.weight - mean, self.bias, padding=1)


class Attending(nn.Module):
    """Attention, whose weights functions use directly."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize(
    ("inner", "shape", "weight"),
    [
        (nn.Sequential(Standardized(3, 4, 3), nn.ReLU()), (3, 6, 6), "inner.0.weight"),
        (Attending(), (5, 8), "inner.attention.in_proj_weight"),
    ],
)
def test_weights_that_functions_use_are_prunable_in_a_part(
    inner: nn.Module, shape: tuple[int, ...], weight: str
) -> None:
    model = looking(inner)
    network = n2nfx.trace(model, torch.rand(1, *shape))
    assert parts(network) == ["inner"]
    assert weight in {layer.weight for layer in network.layers}
    pruned = n2nfx.Pipeline([RandomPruning(0.5)])(network).network
    x = torch.rand(3, *shape)
    before = pruned.module.eval()(x)
    with torch.no_grad():
        pruned.module.get_parameter(weight)[~pruned.masks[weight]] = 1e3
    assert torch.equal(pruned.module(x), before)
    assert n2nfx.bake(pruned).nnz == pruned.nnz


class Sized(nn.Module):
    """Halves its input by a number that no value has for a size."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(x)[..., : x.shape[-1] // 2 + 1]


def test_a_module_that_would_be_written_for_one_size_is_no_part_but_those_inside_are() -> None:
    model = looking(Sized())
    network = n2nfx.trace(model, torch.rand(1, 3, 8, 8))
    assert parts(network) == ["inner.convolution"]
    for size in (8, 13, 20):
        x = torch.randn(2, 3, size, size)
        assert torch.equal(network.module(x), model(x))


def test_a_module_that_takes_one_size_only_is_a_part_and_says_so() -> None:
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 4))
    network = n2nfx.trace(looking(inner), torch.rand(1, 3, 8, 8))
    assert parts(network) == ["inner"]
    with pytest.raises(CannotOperate, match="traced with 3x8x8"):
        network.module(torch.rand(2, 3, 9, 8))


def test_a_part_refuses_what_its_graph_would_leave_out(network: Network) -> None:
    part = network.module.get_submodule("head")
    maps = [torch.rand(1, 8, 4, 4) for _ in range(3)]
    with pytest.raises(CannotOperate, match=r"maps of a part is \[4d, 4d, 4d\]"):
        part(maps)
    with pytest.raises(CannotOperate, match="scaled of a part is True"):
        part(maps[:2], True)
    assert part(maps[:2], scaled=False).shape == (1, 64, 3)


def test_a_module_that_is_kept_elsewhere_too_is_no_part() -> None:
    model: Any = looking(block(), lambda m, x: m.hidden[0](x) * (2 if x.sum() > 0 else 1))
    model.hidden = [model.inner]
    network = n2nfx.trace(model, torch.rand(1, 4))
    assert parts(network) == []
    assert [layer.name for layer in network.layers] == ["inner.0", "inner.2"]


def test_a_module_that_is_called_in_two_ways_is_no_part() -> None:
    def both(model: Any, x: Tensor) -> Tensor:
        return model.inner([x]) + model.inner([x, x]) * (2 if x.sum() > 0 else 1)

    inner = samples.Model(lambda m, xs: m.block(sum(xs)), block=block())
    network = n2nfx.trace(looking(inner, both), torch.rand(1, 4))
    assert parts(network) == ["inner.block"]


def test_a_shared_module_is_one_part_under_all_its_names() -> None:
    shared = block()
    model = looking(shared, again=nn.ModuleList([shared]))
    network = n2nfx.trace(model, torch.rand(1, 4))
    assert parts(network) == ["inner"]
    module: Any = network.module
    assert module.again[0] is module.inner


def test_a_list_of_pictures_is_an_example() -> None:
    example = list(pictures(2, *SIZES[0]))
    network = n2nfx.trace(detector(), example)
    assert [spec.shape for spec in network.inputs] == [(2, 3, *SIZES[0])]
    assert_equal(evaluated(network.module, SIZES[1]), evaluated(detector(), SIZES[1]))
    with pytest.raises(CannotOperate, match="of one size"):
        n2nfx.trace(detector(), [torch.rand(3, 8, 8), torch.rand(3, 9, 9)])


@pytest.mark.parametrize("by_name", [False, True])
def test_a_list_of_pictures_can_be_one_argument_of_several(by_name: bool) -> None:
    example: Any = [*pictures(2, *SIZES[0])]
    example = {"images": example} if by_name else (example,)
    (spec,) = n2nfx.trace(detector(), example).inputs
    assert (spec.name, spec.shape, spec.by_name) == ("images", (2, 3, *SIZES[0]), by_name)


@pytest.mark.parametrize(
    ("example", "told"),
    [
        ([[torch.rand(3, 8, 8)]], "the example images must be tensors of one size"),
        ([{"boxes": torch.rand(1, 4)}], "the example images must be tensors of one size"),
        ([3], "the example images must be tensors of one size"),
        ([torch.tensor(1.0)], "the example images must be tensors of one size"),
        ([], "the example images must be tensors of one size"),
        (3, "images must be a tensor with a batch dimension, not int$"),
        (
            (pictures(1, 8, 8), [{"boxes": torch.rand(1, 4)}]),
            "targets must be a tensor .*, not list; it can be left out",
        ),
    ],
)
def test_what_is_no_example_is_told(example: Any, told: str) -> None:
    with pytest.raises(CannotOperate, match=told):
        n2nfx.trace(detector(), example)


def test_part_samples_are_data_dependent() -> None:
    """The models of these tests could otherwise be graphs whole, and show nothing."""
    counts = {len(evaluated(part_samples.detector(), size)[0]["boxes"]) for size in SIZES}
    assert len(counts) > 1


class Last(nn.Module):
    """Linear layers over maps whose channels come last."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


def test_maps_with_their_channels_last_can_have_any_size_too() -> None:
    model = looking(Last())
    network = n2nfx.trace(model, torch.rand(1, 5, 6, 4))
    assert parts(network) == ["inner"]
    x = torch.randn(2, 9, 3, 4)
    assert torch.equal(network.module(x), model(x))


def test_a_hook_on_a_part_is_called_by_what_calls_the_part() -> None:
    model: Any = looking(block())
    calls: list[nn.Module] = []
    model.inner.register_forward_hook(lambda module, *_: calls.append(module))
    network = n2nfx.trace(model, torch.rand(1, 4))
    assert parts(network) == ["inner"]
    assert calls == []
    network.module(torch.rand(2, 4))
    assert calls == [network.module.get_submodule("inner")]


@pytest.mark.filterwarnings("ignore::FutureWarning")  # TorchScript is deprecated, and still met
def test_what_was_made_of_its_parts_before_gets_no_others() -> None:
    scripted: Any = torch.jit.trace(block(), torch.rand(1, 4))
    assert parts(n2nfx.trace(looking(scripted), torch.rand(1, 4))) == []


class Heads(nn.Module):
    """A backbone and two heads, whose outputs are selected; one reads what the other selected."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold
        self.backbone, self.first, self.second = (
            nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU()) for _ in range(3)
        )

    def forward(self, x: Tensor) -> list[float]:
        features = self.backbone(x)
        chosen = self.first(features).detach() < self.threshold
        return self.second(features[chosen.all(1)]).flatten().tolist()


def test_the_flow_of_a_model_that_is_kept_whole_is_what_its_last_parts_give() -> None:
    torch.manual_seed(0)
    network = n2nfx.trace(Heads(torch.inf), torch.rand(2, 4))
    scores = SynFlow(density=1.0, rounds=1).score(network, Probe())
    backbone, first, second = (weight.abs().double() for weight in network.module.parameters())
    features = functional.relu(torch.ones(1, 4, dtype=torch.float64) @ backbone.T)
    expected = [(first.sum(0) + second.sum(0))[:, None] * backbone, features * first]
    for weight, one in zip(("backbone.0", "first.0"), expected, strict=True):
        order = scores[f"{weight}.weight"].flatten().argsort(stable=True)
        assert torch.equal(order, one.flatten().argsort(stable=True))


def test_the_flow_of_parts_that_read_each_other_is_what_the_model_gives() -> None:
    def rounds(own: Any, x: Tensor) -> Tensor:
        for _ in range(2 if x.sum() > 0 else 1):
            x = own.other(own.inner(x))
        return x

    network = n2nfx.trace(looking(block(), rounds, other=block()), torch.rand(1, 4))
    scores = SynFlow(density=1.0, rounds=1).score(network, Probe())
    assert all(own.unique().numel() == own.numel() for own in scores.values())
    module = copy.deepcopy(network.module).double()
    for name, weight in module.named_parameters():
        weight.data = torch.zeros_like(weight) if name.endswith("bias") else weight.abs()
    module(torch.ones(1, 4, dtype=torch.float64)).sum().backward()
    for name, own in scores.items():
        weight = module.get_parameter(name)
        assert weight.grad is not None
        order = (weight * weight.grad).flatten().argsort(stable=True)
        assert torch.equal(own.flatten().argsort(stable=True), order)


def test_synflow_is_refused_where_a_part_has_nothing_to_work_on() -> None:
    network = n2nfx.trace(Heads(0.0), torch.rand(2, 4))
    with pytest.raises(CannotOperate, match="no flow leads through second: for an input of ones"):
        SynFlow(density=0.5).score(network, Probe())


@pytest.mark.parametrize("pruner", ["synflow", "snip", "grasp"])
def test_weights_in_parts_are_scored(pruner: str) -> None:
    torch.manual_seed(0)
    inner = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip
    outcome = n2nfx.transform(
        looking(inner), density=0.4, skip_ratio=0.3, hops=(1, 2), pruner=pruner,
        pattern="scored", share="global", example=torch.rand(1, 3, 8, 8),
        batch=(torch.rand(6, 3, 8, 8), torch.arange(6) % 4),
    )  # fmt: skip
    assert outcome.counts.kept == round(0.4 * outcome.counts.reference)
    assert outcome.counts.skip == round(0.3 * outcome.counts.kept)


def save(network: Network, to: Path) -> None:
    Outcome(network, (), "").save(to / "out")


USES: dict[str, Callable[[Network, Path], object]] = {
    "save": save,
    "bake": lambda network, _: n2nfx.bake(network),
    "transform again": lambda network, _: n2nfx.Pipeline([])(network),
    "channel_graph": lambda network, _: n2nfx.channel_graph(network),
    "count_effective": lambda network, _: count_effective(network),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
@pytest.mark.parametrize(
    ("path", "new", "told"),
    [
        ("head", nn.Identity(), "^head was a part with a graph of its own, and is Identity now"),
        (
            "backbone.body",
            nn.Identity(),
            r"body.0.weight is gone: backbone.body \(Identity\) has no",
        ),
        ("judge.0", nn.Linear(3, 7), "^judge.0.weight was 5x3, and is 7x3"),
    ],
    ids=["part", "in a part", "layer"],
)
def test_what_was_replaced_after_tracing_is_told(
    outcome: Outcome, path: str, new: nn.Module, told: str, use: Any, tmp_path: Path
) -> None:
    outcome.network.module.set_submodule(path, new)
    told = f"{told}.*; replace modules before tracing, and trace again"
    with pytest.raises(CannotOperate, match=told):
        use(outcome.network, tmp_path)


def test_a_part_is_told_to_be_gone_with_what_it_was_in() -> None:
    network = n2nfx.trace(looking(looking(block())), torch.rand(1, 4))
    assert parts(network) == ["inner.inner"]
    network.module.set_submodule("inner", nn.Identity())
    told = r"^inner\.inner was a part.*, and inner \(Identity\) has no inner; replace"
    with pytest.raises(CannotOperate, match=told):
        network.text()
    del network.module.inner
    told = r"^inner\.inner was a part.*, and the model \(Model\) has no inner; replace"
    with pytest.raises(CannotOperate, match=told):
        network.text()
