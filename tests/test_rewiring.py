"""Rewiring keeps the total, changes masks as the papers define it, and touches nothing else."""

import copy
import itertools
import math
import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rewiring_samples import RANKS, batch, outcome, run_rank, same, sgd, state, train_on_share
from samples import Net
from test_computed import LAYERS, pruned
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

import n2nfx
from n2nfx.bind import as_it_acts, bind, masks_at_work, unbind, zero_masked
from n2nfx.connectivity import count_effective
from n2nfx.masked import MASKED_CLASS, MaskedStandardization, dense_gradients
from n2nfx.masks import Masks
from n2nfx.network import Network
from n2nfx.training.rewiring import Rewiring

METHODS: list[Literal["rigl", "set"]] = ["rigl", "set"]
SCOPES: list[Literal["layer", "global"]] = ["layer", "global"]
every_kind = pytest.mark.parametrize(
    ("method", "scope"), [(method, scope) for method in METHODS for scope in SCOPES]
)


def loss_of(module: Callable[[Tensor], Tensor], seed: int, size: int = 16) -> Tensor:
    images, labels = batch(seed, size)
    return functional.cross_entropy(module(images), labels)


def adam(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=2e-3, amsgrad=True)


def train(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    rewiring: Rewiring | None,
    steps: range,
) -> Iterator[int]:
    """Train on one batch a step; gives how many weights grew in each."""
    for step in steps:
        optimizer.zero_grad()
        loss_of(module, step).backward()
        optimizer.step()
        if rewiring is None:
            yield 0
        else:
            yield rewiring.step(lambda step=step: loss_of(module, step))


def counts(network: Network) -> dict[str, int]:
    return dict(as_it_acts(network).masks.counts)


# Gradients of what is dropped.


@pytest.mark.parametrize("kind", list(MASKED_CLASS), ids=lambda kind: kind.__name__)
def test_dropped_weights_have_the_gradients_of_zeros_in_a_dense_layer(kind: Any) -> None:
    torch.manual_seed(0)
    layer = kind(4, 5, *([3] if kind is not nn.Linear else [])).double()
    x = torch.randn(2, 4, *(6,) * (layer.weight.dim() - 2), dtype=torch.float64)
    mask = torch.rand(layer.weight.shape) < 0.4
    network = n2nfx.trace(nn.Sequential(layer), x)
    network = replace(network, masks=Masks({"0.weight": mask}))
    zero_masked(network.module, network.masks)
    dense = copy.deepcopy(network.module)
    bind(network)

    def gradient(module: nn.Module) -> Tensor:
        (found,) = torch.autograd.grad(module(x).square().sum(), [module.get_parameter("0.weight")])
        return found

    with dense_gradients(network.module):
        assert torch.equal(gradient(network.module), gradient(dense))
    assert gradient(network.module)[~mask].eq(0).all()


@pytest.mark.parametrize("loud", [1e3, float("inf"), float("nan")])
def test_dense_gradients_change_no_bit_of_the_outputs_whatever_is_masked(loud: float) -> None:
    network = outcome().network
    module, (x, _) = network.module, batch(0)
    quiet = module(x)
    with torch.no_grad():
        for name, mask in network.masks.items():
            module.get_parameter(name)[~mask] = loud
    with dense_gradients(module):
        assert torch.equal(module(x), quiet)
    assert not [part for part in module.modules() if "gradients_pass" in vars(part)]


class _Operand(TorchFunctionMode):
    """Keeps the weight that a convolution is given, as a tensor with a gradient of its own."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") == "conv2d" and args[1].shape[1] == 6:
            self.weight = args[1]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["standardized", "scaled"])
def test_behind_a_standardization_it_is_the_operand_s_by_the_scale_of_its_channel(
    name: str,
) -> None:
    network = pruned(LAYERS[name])[1]
    module = network.module.double()
    (weight_name,) = [name for name, mask in network.masks.items() if mask.shape[1] == 6]
    weight, mask = module.get_parameter(weight_name), network.masks[weight_name]
    x = torch.rand(2, 3, 5, 5, dtype=torch.float64)
    with dense_gradients(module), _Operand() as operand:
        loss = module(x).square().sum()
        of_weight, of_operand = torch.autograd.grad(loss, [weight, operand.weight])
    with torch.no_grad():
        for channel in range(len(weight)):
            kept = weight[channel][mask[channel]]
            centred = kept - kept.mean()
            scale = operand.weight[channel][mask[channel]] / centred
            dropped = ~mask[channel]
            assert dropped.any()
            torch.testing.assert_close(
                of_weight[channel][dropped], of_operand[channel][dropped] * scale[0]
            )


# What is dropped and grown, against a second implementation on lists.


def chain(sizes: list[int], masks: list[Tensor], weights: list[Tensor]) -> Network:
    """Linear layers in a row with these masks and weights, dropped ones included.

    A full mask is not bound.
    """
    layers = [nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(sizes)]
    network = n2nfx.trace(nn.Sequential(*layers).double(), torch.zeros(1, sizes[0]).double())
    names = [layer.weight for layer in network.layers]
    network = replace(network, masks=Masks(dict(zip(names, masks, strict=True))))
    with torch.no_grad():
        for name, weight in zip(names, weights, strict=True):
            network.module.get_parameter(name).copy_(weight)
    bind(network)
    return network


@st.composite
def chains(draw: st.DrawFn) -> Network:
    """Small ones, with whole numbers for weights, so that there are ties and no rounding."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    shapes = [(b, a) for a, b in itertools.pairwise(sizes)]

    def filled(shape: tuple[int, int], values: st.SearchStrategy[Any]) -> Tensor:
        count = shape[0] * shape[1]
        return torch.tensor(draw(st.lists(values, min_size=count, max_size=count))).reshape(shape)

    masks = [filled(shape, st.booleans()) for shape in shapes]
    weights = [filled(shape, st.integers(-3, 3)).double() for shape in shapes]
    if all(mask.all() for mask in masks):
        masks[0][0, 0] = False
    return chain(sizes, masks, weights)


def gradients(network: Network, x: Tensor) -> dict[str, Tensor]:
    """Those of the dense network with zeros."""
    module = copy.deepcopy(network.module)
    unbind(module)
    zero_masked(module, network.masks)
    module(x).sum().backward()
    return {name: p.grad.abs() for name, p in module.named_parameters() if p.grad is not None}


def by_hand(
    network: Network, appeals: dict[str, Tensor], share: float, scope: str
) -> dict[str, list[bool]]:
    """The masks after one rewiring, by sorting lists of (weight name, index)."""
    masks = {name: mask.flatten().tolist() for name, mask in network.masks.items()}
    takes_part = [name for name in masks if not all(masks[name])]
    strength = {name: network.module.get_parameter(name).abs().flatten().tolist() for name in masks}
    appeal = {name: appeals[name].flatten().tolist() for name in masks}
    for pool in [takes_part] if scope == "global" else [[name] for name in takes_part]:
        places = [(name, i) for name in pool for i in range(len(masks[name]))]
        kept = [(name, i) for name, i in places if masks[name][i]]
        safe = []
        for name in pool:
            mine = [i for of, i in kept if of == name]
            if mine:
                best = max(strength[name][i] for i in mine)
                safe.append((name, next(i for i in mine if strength[name][i] == best)))
        loose = [place for place in reversed(kept) if place not in safe]
        loose.sort(key=lambda place: strength[place[0]][place[1]])
        wanted = [p for p in places if p not in kept and appeal[p[0]][p[1]] > 0]
        count = min(int(share * len(kept)), len(loose), len(wanted))
        remain = [place for place in kept if place not in loose[:count]]
        others = [place for place in places if place not in remain]
        others.sort(key=lambda place: -appeal[place[0]][place[1]])
        after = {*remain, *others[:count]}
        for name, i in places:
            masks[name][i] = (name, i) in after
    return masks


@given(
    chains(),
    st.sampled_from(SCOPES),
    st.sampled_from([0.3, 0.5, 1.0]),
    st.integers(1, 9),
    st.data(),
)
@settings(deadline=None)
def test_rigl_drops_the_weakest_and_grows_where_the_gradient_is_largest(
    network: Network, scope: Any, fraction: float, late: int, data: st.DataObject
) -> None:
    module = network.module
    into = module.get_parameter(network.layers[0].weight).shape[1]
    values = data.draw(st.lists(st.integers(-2, 2), min_size=into, max_size=into))
    x = torch.tensor([values]).double()
    rewiring = Rewiring(network, sgd(module), until=10, every=late, fraction=fraction, scope=scope)
    share = fraction / 2 * (1 + math.cos(math.pi * late / 10))
    expected = by_hand(network, gradients(network, x), share, scope)
    before, weights = dict(network.masks), state(module)
    grown = [rewiring.step(lambda: module(x).sum()) for _ in range(late)]
    after = as_it_acts(network).masks
    assert {name: mask.flatten().tolist() for name, mask in after.items()} == expected
    assert grown[:-1] == [0] * (late - 1)
    assert grown[-1] == sum(int((after[name] & ~before[name]).sum()) for name in before)
    assert after.nnz == network.masks.nnz
    for name, mask in after.items():
        now = weights[name].masked_fill(mask ^ before[name], 0)
        assert torch.equal(module.get_parameter(name), now)


@given(chains(), st.sampled_from(SCOPES), st.integers(0, 99))
@settings(deadline=None)
def test_set_drops_the_weakest_and_grows_others_by_seed_step_and_name(
    network: Network, scope: Any, seed: int
) -> None:
    again = replace(network, module=copy.deepcopy(network.module))
    expected = {name: mask.sum() for name, mask in network.masks.items()}
    found = []
    for one in (network, again):
        rewiring = Rewiring(
            one, sgd(one.module), until=9, every=1, fraction=1, method="set", scope=scope, seed=seed
        )
        rewiring.step()
        found.append(as_it_acts(one).masks)
    assert found[0].nnz == network.masks.nnz
    assert scope == "global" or found[0].counts == network.masks.counts
    for name in expected:
        assert torch.equal(found[0][name], found[1][name])
        kept = network.masks[name]
        if kept.any() and not kept.all():
            strength = network.module.get_parameter(name).abs().masked_fill(~kept, -1)
            assert found[0][name].flatten()[strength.flatten().argmax()]


def test_set_draws_evenly_and_anew_for_every_seed_step_and_weight() -> None:
    shape = (40, 40)
    mask = torch.zeros(shape, dtype=torch.bool)
    mask[:2] = True
    drawn = []
    for seed in range(20):
        network = chain([40, 40, 40], [mask, mask], [torch.ones(shape)] * 2)
        rewiring = Rewiring(
            network, sgd(network.module), until=10**6, every=1, fraction=1, method="set", seed=seed
        )
        for _ in range(2):
            rewiring.step()
            drawn += [one.clone() for one in as_it_acts(network).masks.values()]
    assert len({tuple(one.flatten().tolist()) for one in drawn}) == len(drawn)
    total = torch.stack(drawn).double().sum(0).flatten()[1:]  # the first is the strongest: it stays
    expected = total.mean()
    chi_square = ((total - expected) ** 2 / expected).sum().item()
    assert chi_square < 1600 + 6 * (2 * 1600) ** 0.5


def test_nothing_is_grown_where_no_gradient_reaches() -> None:
    network = outcome().network
    before = state(network.module)
    rewiring = Rewiring(network, sgd(network.module), until=9, every=1)
    one = network.module.get_parameter("classifier.bias")
    assert rewiring.step(lambda: one.sum()) == 0
    assert same(state(network.module), before)


def test_the_share_falls_as_a_cosine_from_the_fraction_to_nothing() -> None:
    network = outcome().network
    rules = Rewiring(network, sgd(network.module), until=90, every=10, fraction=0.4).rules
    assert rules.share(0) == 0.4
    assert math.isclose(rules.share(30), 0.3)
    assert math.isclose(rules.share(45), 0.2)
    assert rules.share(90) == 0
    assert [step for step in range(1, 120) if rules.due(step)] == list(range(10, 90, 10))


# Totals, and who exchanges with whom.


@every_kind
def test_the_total_stays_at_every_step(method: Any, scope: Any) -> None:
    network = outcome().network
    optimizer = sgd(network.module)
    rewiring = Rewiring(
        network, optimizer, until=9, every=2, fraction=0.5, method=method, scope=scope
    )
    before = as_it_acts(network)
    grown = []
    for number in train(network.module, optimizer, rewiring, range(10)):
        grown.append(number)
        now = as_it_acts(network)
        assert now.nnz == before.nnz
        assert min(now.masks.counts.values()) >= 1
        assert scope == "global" or now.masks.counts == before.masks.counts
    assert [bool(number) for number in grown] == [False, True] * 4 + [False] * 2
    assert grown[1] > grown[3] > grown[5] > grown[7]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("weak", ["skips", "layers"])
def test_skips_and_layers_exchange_weights_in_global_scope(method: Any, weak: str) -> None:
    network = outcome().network
    skips = {skip.weight for skip in network.skips}
    with torch.no_grad():
        for name in network.masks:
            if (name in skips) == (weak == "skips"):
                network.module.get_parameter(name).mul_(1e-6)
    before = sum(skip.nnz for skip in network.skips)
    rewiring = Rewiring(
        network, sgd(network.module), until=9, every=1, scope="global", method=method
    )
    assert rewiring.step(lambda: loss_of(network.module, 0))
    after = as_it_acts(network)
    share = sum(skip.nnz for skip in after.skips)
    assert share < before if weak == "skips" else share > before
    assert after.nnz == network.nnz
    assert share == sum(after.masks.counts[name] for name in skips)


# Nothing else changes.


@every_kind
@pytest.mark.parametrize("make", [sgd, adam])
def test_only_what_came_or_went_changes(method: Any, scope: Any, make: Any) -> None:
    network = outcome().network
    module = network.module
    optimizer = make(module)
    rewiring = Rewiring(network, optimizer, until=99, every=4, method=method, scope=scope)
    list(train(module, optimizer, None, range(3)))
    old, masks = state(module), as_it_acts(network).masks
    memory = {p: copy.deepcopy(optimizer.state[p]) for p in module.parameters()}
    grads = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    random = torch.get_rng_state()
    rewiring.steps = 3
    assert rewiring.step(lambda: loss_of(module, 3))

    new, masks_now = state(module), as_it_acts(network).masks
    changed = {name: masks[name] ^ masks_now[name] for name in masks}
    parameters = dict(module.named_parameters())
    bits = {id(buffer) for found in masks_at_work(module).values() for buffer in found}
    acting = {name for name, buffer in module.named_buffers() if id(buffer) in bits}
    for name, tensor in old.items():
        if name in changed:
            assert torch.equal(new[name], tensor.masked_fill(changed[name], 0)), name
        elif name not in acting:
            assert torch.equal(new[name], tensor), name
    for name, parameter in parameters.items():
        moved = changed.get(name, torch.zeros(parameter.shape, dtype=torch.bool))
        for key, value in memory[parameter].items():
            whole = isinstance(value, Tensor) and value.shape == parameter.shape
            cleared = value.masked_fill(moved, 0) if whole else value
            assert torch.equal(optimizer.state[parameter][key], cleared), (name, key)
            assert not whole or value.any()
    assert all(torch.equal(parameters[name].grad, grad) for name, grad in grads.items())  # type: ignore[arg-type]
    assert all(parameter.requires_grad for parameter in parameters.values())
    assert module.training
    assert torch.equal(torch.get_rng_state(), random)


def test_a_buffer_that_a_forward_replaces_is_put_back() -> None:
    network = outcome().network
    norm: Any = network.module.get_submodule("features.1")
    own, values = norm.running_mean, norm.running_mean.clone()

    def loss() -> Tensor:
        norm.running_mean = own + 1
        return loss_of(network.module, 0)

    assert Rewiring(network, sgd(network.module), until=9, every=1).step(loss)
    assert norm.running_mean is own
    assert torch.equal(own, values)


def test_a_weight_that_the_optimizer_does_not_train_takes_no_part() -> None:
    network = outcome().network
    frozen, left_out, *rest = network.masks
    network.module.get_parameter(frozen).requires_grad_(False)
    own = [network.module.get_parameter(name) for name in [frozen, *rest]]
    optimizer = torch.optim.SGD(own, lr=0.1)
    rewiring = Rewiring(network, optimizer, until=9, every=1, fraction=0.9)
    rewiring.step(lambda: loss_of(network.module, 0))
    after = as_it_acts(network).masks
    assert torch.equal(after[frozen], network.masks[frozen])
    assert torch.equal(after[left_out], network.masks[left_out])
    assert not all(torch.equal(after[name], network.masks[name]) for name in rest)


# All kinds of masks.


@pytest.mark.parametrize("name", LAYERS)
@every_kind
def test_weights_that_a_layer_computes_are_rewired_where_they_are_read_and_where_they_are_used(
    name: str, method: Any, scope: Any
) -> None:
    network = pruned(LAYERS[name])[1]
    module = network.module
    x = torch.rand(2, 3, 5, 5)
    rewiring = Rewiring(network, sgd(module), until=9, every=1, method=method, scope=scope)
    assert rewiring.step(lambda: module(x).square().sum())
    after = as_it_acts(network)
    assert after.nnz == network.nnz
    module.eval()
    output, baked = module(x), n2nfx.bake(network)
    assert torch.equal(baked.module(x), output)
    assert same(dict(as_it_acts(baked).masks), dict(after.masks))
    for weight, mask in after.masks.items():
        for buffer in masks_at_work(module)[id(module.get_parameter(weight))]:
            assert torch.equal(buffer, mask)
        with torch.no_grad():
            module.get_parameter(weight)[~mask] = 1e3
    assert torch.equal(module(x), output)


def test_every_copy_of_a_mask_is_rewired_after_the_module_was_moved() -> None:
    network = pruned(LAYERS["standardized"])[1]
    module = network.module
    rewiring = Rewiring(network, sgd(module), until=9, every=1)
    module._apply(torch.clone)  # as a move to another device does
    (weight,) = [name for name, mask in network.masks.items() if mask.shape[1] == 6]
    found = masks_at_work(module)[id(module.get_parameter(weight))]
    assert len({id(mask) for mask in found}) > 1
    assert any(isinstance(part, MaskedStandardization) for part in module.modules())
    assert rewiring.step(lambda: module(torch.rand(2, 3, 5, 5)).square().sum())
    assert all(torch.equal(mask, found[0]) for mask in found)
    assert not torch.equal(found[0], network.masks[weight])


def test_a_weight_in_another_memory_format_is_rewired_by_its_indices() -> None:
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        network = outcome().network
        network.module.to(memory_format=layout)  # type: ignore[call-overload]
        rewiring = Rewiring(network, sgd(network.module), until=9, every=1, method="set")
        rewiring.step()
        found.append(state(network.module))
    assert same(*found)


def test_a_compiled_network_is_rewired_without_a_break() -> None:
    torch._dynamo.reset()
    network = outcome().network
    fast: Any = torch.compile(network.module, backend="aot_eager", fullgraph=True)
    slow = outcome().network
    for one, call in ((network, fast), (slow, slow.module)):
        rewiring = Rewiring(one, sgd(one.module), until=9, every=1)
        assert rewiring.step(lambda call=call: loss_of(call, 0))
    assert same(dict(as_it_acts(network).masks), dict(as_it_acts(slow).masks))
    x, _ = batch(1)
    torch.testing.assert_close(fast(x), network.module(x))
    torch._dynamo.reset()


# Resume, save and load, ranks.


@every_kind
@pytest.mark.parametrize("make", [sgd, adam])
def test_a_resumed_run_is_the_run_that_was_not_interrupted(
    method: Any, scope: Any, make: Any, tmp_path: Path
) -> None:
    def started() -> tuple[Network, torch.optim.Optimizer, Rewiring]:
        network = outcome().network
        optimizer = make(network.module)
        rules: dict[str, Any] = {"until": 9, "every": 2, "method": method, "scope": scope}
        return network, optimizer, Rewiring(network, optimizer, **rules)

    network, optimizer, rewiring = started()
    list(train(network.module, optimizer, rewiring, range(5)))
    states = [part.state_dict() for part in (network.module, optimizer, rewiring)]
    torch.save(states, tmp_path / "checkpoint.pt")
    list(train(network.module, optimizer, rewiring, range(5, 10)))

    resumed = again, again_optimizer, again_rewiring = started()
    for part, one in zip(
        (again.module, *resumed[1:]), torch.load(tmp_path / "checkpoint.pt"), strict=True
    ):
        part.load_state_dict(one)
    assert again_rewiring.steps == 5
    list(train(again.module, again_optimizer, again_rewiring, range(5, 10)))
    assert same(state(again.module), state(network.module))


def test_counts_graphs_and_paths_are_those_of_the_network_as_it_is_now() -> None:
    found = outcome()
    module = found.network.module
    optimizer = sgd(module)
    rewiring = Rewiring(found.network, optimizer, until=20, every=1, scope="global", fraction=0.5)
    before = found.counts
    list(train(module, optimizer, rewiring, range(10)))
    now = as_it_acts(found.network)
    assert before != found.counts == replace(found, network=now).counts
    assert found.plan.kept == replace(found, network=now).plan.kept
    ours, theirs = n2nfx.channel_graph(found.network), n2nfx.channel_graph(now)
    assert ours.edges == theirs.edges
    assert ours.effective_density == theirs.effective_density
    assert count_effective(found.network) == count_effective(now)
    assert (ours.degrees == theirs.degrees).all()


@every_kind
def test_a_rewired_network_is_saved_and_loaded(method: Any, scope: Any, tmp_path: Path) -> None:
    found = outcome()
    network, optimizer = found.network, sgd(found.network.module)
    rewiring = Rewiring(network, optimizer, until=9, every=1, method=method, scope=scope)
    list(train(network.module, optimizer, rewiring, range(4)))
    network.module.eval()
    found.save(tmp_path / "out")
    loaded = n2nfx.load(tmp_path / "out", Net())
    now = as_it_acts(network)
    assert same(dict(loaded.masks), dict(now.masks))
    assert not same(dict(loaded.masks), dict(network.masks))
    assert loaded.skips == now.skips
    x, _ = batch(0)
    assert torch.equal(loaded.module.eval()(x), network.module(x))
    assert torch.equal(n2nfx.bake(network).module.eval()(x), network.module(x))


@pytest.mark.parametrize(("method", "scope"), [("rigl", "global"), ("set", "layer")])
def test_all_ranks_choose_the_same_as_one_process_with_the_whole_batch(
    method: Any, scope: Any, tmp_path: Path
) -> None:
    ranks = [
        multiprocessing.get_context("spawn").Process(
            target=run_rank, args=(rank, tmp_path, method, scope)
        )
        for rank in range(RANKS)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(600)
    assert [rank.exitcode for rank in ranks] == [0] * RANKS
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS))
    assert same(one, other)

    alone = state(train_on_share(method, scope, slice(None)))
    for name, tensor in alone.items():
        torch.testing.assert_close(one[name], tensor)


# Training.


@every_kind
def test_the_loss_of_a_rewired_network_goes_down(method: Any, scope: Any) -> None:
    network = outcome().network
    module, optimizer = network.module, sgd(network.module)
    rewiring = Rewiring(network, optimizer, until=90, every=10, method=method, scope=scope)

    def loss() -> float:
        with torch.no_grad():
            return loss_of(module.eval(), 1000, 256).item()

    before = loss()
    module.train()
    list(train(module, optimizer, rewiring, range(120)))
    assert loss() < before / 2
    after = as_it_acts(network).masks
    assert after.nnz == network.masks.nnz
    moved = sum(int((mask & ~network.masks[name]).sum()) for name, mask in after.items())
    assert moved > after.nnz / 10


# Bad input.


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        ({"method": "rigel"}, "method must be rigl or set, not 'rigel'; did you mean rigl?"),
        ({"scope": "all"}, "scope must be layer or global, not 'all'"),
        ({"every": 0}, "every is a number of steps, at least 1, not 0"),
        ({"until": 7.5}, "until is a number of steps, at least 1, not 7.5"),
        ({"fraction": 0}, "fraction must be above 0 and at most 1, not 0"),
        ({"fraction": 1.5}, "fraction must be above 0 and at most 1, not 1.5"),
        ({"fraction": float("nan")}, "fraction must be above 0 and at most 1, not nan"),
        ({"seed": "0"}, "a seed must be a whole number"),
    ],
)
def test_rules_that_nobody_could_follow_are_refused(rules: dict[str, Any], told: str) -> None:
    network = outcome().network
    with pytest.raises(n2nfx.UsageError, match=told.replace("?", r"\?")):
        Rewiring(network, sgd(network.module), **{"until": 9, **rules})


def test_an_optimizer_of_another_network_is_refused() -> None:
    network, other = outcome().network, outcome().network
    with pytest.raises(n2nfx.UsageError, match=r"outcome\.network\.module\.parameters"):
        Rewiring(network, sgd(other.module), until=9)
    reference = n2nfx.trace(Net(), torch.zeros(1, 3, 8, 8))
    with pytest.raises(n2nfx.UsageError, match="no weight that a mask of the network acts on"):
        Rewiring(reference, sgd(reference.module), until=9)


def test_what_is_no_network_or_optimizer_is_refused() -> None:
    found: Any = outcome()
    optimizer: Any = sgd(found.network.module)
    with pytest.raises(n2nfx.UsageError, match=r"outcome's .network, not Outcome"):
        Rewiring(found, optimizer, until=9)
    optimizer = found.network.module.parameters()
    with pytest.raises(n2nfx.UsageError, match=r"one of torch.optim, not generator"):
        Rewiring(found.network, optimizer, until=9)


def test_a_closure_that_goes_backward_is_told_not_to() -> None:
    network = outcome().network
    rewiring = Rewiring(network, sgd(network.module), until=9, every=1)

    def closure() -> Tensor:
        loss = loss_of(network.module, 0)
        loss.backward()
        return loss

    with pytest.raises(n2nfx.UsageError, match=r"leave loss.backward\(\) out"):
        rewiring.step(closure)


def test_rigl_needs_a_closure_that_gives_a_loss() -> None:
    network = outcome().network
    rewiring = Rewiring(network, sgd(network.module), until=9, every=1)
    bad: list[Any] = [lambda: 1.5, lambda: torch.ones(()), lambda: network.module(batch(0)[0])]
    with pytest.raises(n2nfx.UsageError, match="rigl needs a closure"):
        rewiring.step()
    for closure in bad:
        with pytest.raises(n2nfx.UsageError, match="one number with a gradient"):
            rewiring.step(closure)
    assert rewiring.steps == 0


@pytest.mark.parametrize("what", ["weights", "gradients"])
def test_what_is_not_finite_is_told_by_name_and_nothing_is_changed(what: str) -> None:
    network = outcome().network
    module = network.module
    rewiring = Rewiring(network, sgd(module), until=9, every=1)
    name = "features.3.weight"
    weight, mask = module.get_parameter(name), network.masks[name]
    if what == "weights":
        with torch.no_grad():
            weight[mask] = float("nan")
        method = "set"
        rewiring = Rewiring(network, sgd(module), until=9, every=1, method=method)
    before = state(module)
    with pytest.raises(n2nfx.CannotOperate, match=f"step 1: the {what} of "):
        rewiring.step(lambda: loss_of(module, 0) * float("inf"))
    after = state(module)
    assert all(torch.equal(after[one], before[one].nan_to_num(7)) for one in before if one != name)
    assert rewiring.steps == 0


def test_a_state_of_other_rules_is_refused() -> None:
    network = outcome().network
    saved = Rewiring(network, sgd(network.module), until=9).state_dict()
    other = Rewiring(network, sgd(network.module), until=9, every=50)
    with pytest.raises(
        n2nfx.UsageError, match="the state was made with every=100, and here it is 50"
    ):
        other.load_state_dict(saved)
    with pytest.raises(n2nfx.UsageError, match="has steps and rules, not"):
        other.load_state_dict({"step": 3})
    nothing: Any = None
    with pytest.raises(n2nfx.UsageError, match="has steps and rules, not NoneType"):
        other.load_state_dict(nothing)
