"""The CIFAR form of an ImageNet network: a 3x3 stride-1 stem without max-pool."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import fx, nn

from n2nfx.errors import CannotOperate
from n2nfx.graphmodule import graphs_of
from n2nfx.network import Network, Probe, blank_inputs
from n2nfx.precision import precision_of
from n2nfx.seeds import generator
from n2nfx.tracing import record
from n2nfx.tracing.ops import name_of

_MAX_POOL = {"max_pool2d", "_max_pool2d"}


@dataclass(frozen=True)
class SmallInputStem:
    """Replace the first convolution by a 3x3 one with stride 1, and drop the max-pool behind it.

    The new convolution keeps its name, channels, groups and whether it has a bias, and is
    initialized as He et al. 2015 (fan out), a bias to zero. The rest of the network sees a larger
    map, so trace it on the small input first.
    """

    name: ClassVar[str] = "small-input-stem"
    keeps: ClassVar[frozenset[str]] = frozenset()

    def __call__(self, network: Network, probe: Probe) -> Network:
        if network.masks or network.skips:
            raise CannotOperate("change the stem before pruning: its weights are others then")
        first = next((layer.name for layer in network.layers), "none")
        stem = dict(network.module.named_modules()).get(first)
        if not isinstance(stem, nn.Conv2d):
            raise CannotOperate(f"the first layer ({first}) is not a 2-d convolution module")
        small = _small(stem, probe.seed, network.layers[0].weight)
        network.module.set_submodule(first, small)
        _drop_pool(network.module)
        precision = precision_of(network.module)
        blanks = blank_inputs(network.inputs, None, small.weight.device, precision)
        changed = record(network.module, blanks)
        return replace(
            changed, inputs=network.inputs, origin=network.origin, notes=network.notes,
            history=network.history,
        )  # fmt: skip


def _small(stem: nn.Conv2d, seed: int, name: str) -> nn.Conv2d:
    like = stem.weight
    small = nn.Conv2d(
        stem.in_channels, stem.out_channels, 3, padding=1, groups=stem.groups,
        bias=stem.bias is not None, padding_mode=stem.padding_mode, device="meta", dtype=like.dtype,
    ).to_empty(device=like.device)  # fmt: skip
    drawn = generator(seed, "init", name).standard_normal(small.weight.shape)
    with torch.no_grad():
        small.weight.copy_(torch.from_numpy(drawn) * (2.0 / (stem.out_channels * 9)) ** 0.5)
        if small.bias is not None:
            small.bias.zero_()
    for parameter, before in zip(small.parameters(), stem.parameters(), strict=True):
        parameter.requires_grad_(before.requires_grad)
    return small.train(stem.training)


def _drop_pool(module: fx.GraphModule) -> None:
    """Take the max-pool out that comes before the second layer, if there is one."""
    for graph in graphs_of(module):
        pool = _pool_of_stem(module, graph)
        if pool is not None:
            pool.replace_all_uses_with(pool.all_input_nodes[0])
            graph.erase_node(pool)
    module.recompile()


def _pool_of_stem(module: fx.GraphModule, graph: fx.Graph) -> fx.Node | None:
    convolutions = 0
    for node in graph.nodes:
        called = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        convolutions += isinstance(called, nn.Conv2d)
        if convolutions > 1:
            return None
        if convolutions and (isinstance(called, nn.MaxPool2d) or name_of(node) in _MAX_POOL):
            return node
    return None
