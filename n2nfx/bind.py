"""Makes a network's masks act in its module, and takes them out again."""

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from n2nfx.errors import CannotOperate
from n2nfx.masked import MASK, MASKED_CLASS, PLAIN_CLASS, MaskedWeight, keep
from n2nfx.masks import Masks
from n2nfx.network import Network
from n2nfx.tracing.layers import weight_operand


def bind(network: Network) -> None:
    """Let the masks act in the network's module, in place.

    A layer becomes its masked class; between a weight and the function that uses it directly
    comes a `MaskedWeight`. Weights with a full mask stay plain. Every name stays; a weight that
    is not used where its mask can act is refused.
    """
    module, counts = network.module, network.masks.counts
    layers, reads = _layers_by_weight(module), _reads_by_weight(module)
    for name, mask in network.masks.items():
        weight = module.get_parameter(name)
        if counts[name] == weight.numel():
            continue
        acting = mask.to(weight.device)
        at_layers = layers.get(id(weight), [])
        at_reads = [node for node in reads.get(id(weight), []) if _operand_of(node)]
        if not at_layers and not at_reads:
            raise CannotOperate(f"the mask of {name} would act nowhere: no layer uses it")
        for layer in at_layers:
            layer.__class__ = MASKED_CLASS[type(layer)]
            layer.register_buffer(MASK, acting)
        if at_reads:
            _mask_reads(module, f"{name.replace('.', '_')}_masked", acting, at_reads)
    module.recompile()


def _layers_by_weight(module: nn.Module) -> dict[int, list[nn.Module]]:
    found: dict[int, list[nn.Module]] = {}
    for layer in module.modules():
        if type(layer) in MASKED_CLASS:
            found.setdefault(id(layer._parameters["weight"]), []).append(layer)
    return found


def _reads_by_weight(module: fx.GraphModule) -> dict[int, list[fx.Node]]:
    """The nodes that read each parameter directly."""
    weights = {name: id(p) for name, p in module.named_parameters(remove_duplicate=False)}
    found: dict[int, list[fx.Node]] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr" and node.target in weights:
            found.setdefault(weights[str(node.target)], []).append(node)
    return found


def _operand_of(node: fx.Node) -> list[fx.Node]:
    """The calls that use a node's value as their weight."""
    return [user for user in node.users if weight_operand(user) is node]


def _mask_reads(module: fx.GraphModule, name: str, mask: Tensor, nodes: list[fx.Node]) -> None:
    """Put a `MaskedWeight` between a weight that is read and the calls that it is for."""
    module.add_module(name, MaskedWeight(mask))
    for node in nodes:
        users = _operand_of(node)
        with module.graph.inserting_after(node):
            kept = module.graph.call_module(name, (node,))
        kept.meta.update(node.meta)
        for user in users:
            user.replace_input_with(node, kept)


def unbind(module: fx.GraphModule) -> None:
    """Give plain layers back and forget the masks, in place; the weights stay as they are."""
    for layer in module.modules():
        if type(layer) in PLAIN_CLASS:
            layer.__class__ = PLAIN_CLASS[type(layer)]
            del layer._buffers[MASK]
    for name in [name for name, part in module.named_children() if isinstance(part, MaskedWeight)]:
        for node in [n for n in module.graph.nodes if n.target == name]:
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
            module.graph.erase_node(node)
        module.delete_submodule(name)
    module.recompile()


def bake(network: Network) -> Network:
    """A copy of the network with the masked weights zero and every module plain again."""
    module = copy.deepcopy(network.module)
    unbind(module)
    zero_masked(module, network.masks)
    return replace(network, module=module)


def zero_masked(module: nn.Module, masks: Masks) -> None:
    """Set every masked weight to zero, in place."""
    with torch.no_grad():
        for name, mask in masks.items():
            weight = module.get_parameter(name)
            weight.copy_(keep(weight, mask.to(weight.device)))


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module as without masks: its own tensors by name, tied ones once."""
    masks = {id(mask) for mask in _mask_buffers(module)}
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if id(tensor) not in masks and id(tensor) not in seen:
            seen.add(id(tensor))
            state[name] = tensor.detach()
    return state


def _mask_buffers(module: nn.Module) -> Iterator[Tensor]:
    for layer in module.modules():
        if type(layer) in PLAIN_CLASS:
            yield layer.get_buffer(MASK)
        elif isinstance(layer, MaskedWeight):
            yield layer.mask
