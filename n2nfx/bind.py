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
    for name, mask in network.masks.items():
        if bool(mask.all()):
            continue
        weight = network.module.get_parameter(name)
        acting = mask.to(weight.device)
        modules = list(_bind_modules(network.module, weight, acting))
        nodes = list(_bind_functions(network.module, name, weight, acting))
        if not modules and not nodes:
            raise CannotOperate(f"the mask of {name} would act nowhere: no layer uses it")
    network.module.recompile()


def _bind_modules(module: nn.Module, weight: Tensor, mask: Tensor) -> Iterator[nn.Module]:
    for layer in module.modules():
        if type(layer) in MASKED_CLASS and layer._parameters.get("weight") is weight:
            layer.__class__ = MASKED_CLASS[type(layer)]
            layer.register_buffer(MASK, mask)
            yield layer


def _bind_functions(
    module: fx.GraphModule, name: str, weight: Tensor, mask: Tensor
) -> Iterator[fx.Node]:
    masked = f"{name.replace('.', '_')}_masked"
    for node in _reads(module, weight):
        users = [user for user in node.users if weight_operand(user) is node]
        if not users:
            continue
        if masked not in module._modules:
            module.add_module(masked, MaskedWeight(mask))
        with module.graph.inserting_after(node):
            kept = module.graph.call_module(masked, (node,))
        kept.meta.update(node.meta)
        node.replace_all_uses_with(kept, delete_user_cb=lambda user: user in users)  # noqa: B023
        yield kept


def _reads(module: fx.GraphModule, weight: Tensor) -> list[fx.Node]:
    names = {name for name, p in module.named_parameters(remove_duplicate=False) if p is weight}
    return [n for n in module.graph.nodes if n.op == "get_attr" and n.target in names]


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
