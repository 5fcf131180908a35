"""Makes a network's masks act in its module, and takes them out again."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, fx, nn

from n2nfx.errors import CannotOperate
from n2nfx.masked import MASK, MASKED_CLASS, PLAIN_CLASS, MaskedWeight
from n2nfx.masks import Masks
from n2nfx.network import Network


def bind(network: Network) -> None:
    """Let the masks act in the network's module, in place.

    A layer becomes its masked class; between a weight that is read directly and those who read it
    comes a `MaskedWeight`. Weights with a full mask stay plain. Every name stays; a weight that
    is used where its mask cannot act is refused.
    """
    module, counts = network.module, network.masks.counts
    layers, reads = _layers_by_weight(module), _reads_by_weight(module)
    others = _others_by_weight(module)
    for name, mask in network.masks.items():
        weight = module.get_parameter(name)
        if counts[name] == weight.numel():
            continue
        at_layers, at_reads = layers.get(id(weight), []), reads.get(id(weight), [])
        if not at_layers and not at_reads:
            raise CannotOperate(f"the mask of {name} would act nowhere: no layer uses it")
        if id(weight) in others:
            raise CannotOperate(
                f"the mask of {name} cannot act in {others[id(weight)]}, which shares the weight; "
                "give each a weight of its own"
            )
        acting = mask.to(weight.device, copy=True)  # a loaded state must not reach the network's
        for layer in at_layers:
            layer.__class__ = MASKED_CLASS[type(layer)]
            layer.register_buffer(MASK, acting)
        if at_reads:
            _mask_reads(module, name, acting, at_reads)
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


def _others_by_weight(module: fx.GraphModule) -> dict[int, str]:
    """Which called module, if any, uses each parameter in a way that no mask can act on."""
    found: dict[int, str] = {}
    for node in module.graph.nodes:
        if node.op != "call_module":
            continue
        called = module.get_submodule(str(node.target))
        if type(called) not in MASKED_CLASS:
            told = f"{node.target} ({type(called).__name__})"
            found.update((id(parameter), told) for parameter in called.parameters())
    return found


def _mask_reads(module: fx.GraphModule, name: str, mask: Tensor, reads: list[fx.Node]) -> None:
    """Put one `MaskedWeight` between a weight that is read and all its readers."""
    masked = f"{name.replace('.', '_')}_masked"
    while hasattr(module, masked):
        masked += "_"
    module.add_module(masked, MaskedWeight(mask))
    for node in reads:
        with module.graph.inserting_after(node):
            kept = module.graph.call_module(masked, (node,))
        kept.meta.update(node.meta)
        node.replace_all_uses_with(kept, delete_user_cb=lambda user, kept=kept: user is not kept)


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
    acting, module = as_it_acts(network), copy.deepcopy(network.module)
    unbind(module)
    zero_masked(module, acting.masks)
    return replace(acting, module=module)


def as_it_acts(network: Network) -> Network:
    """The network with the masks that act in its module, and the counts of its skips by them.

    They are the network's own until a state with other masks is loaded into the module.
    """
    module = network.module
    acting = {
        id(layer.weight): layer.get_buffer(MASK)
        for layer in module.modules()
        if type(layer) in PLAIN_CLASS
    }
    for node in module.graph.nodes:
        masked = module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(masked, MaskedWeight):
            acting[id(module.get_parameter(str(node.args[0].target)))] = masked.mask
    masks = Masks(
        {
            name: acting.get(id(module.get_parameter(name)), mask).to(mask.device, copy=True)
            for name, mask in network.masks.items()
        }
    )
    skips = tuple(
        replace(skip, nnz=masks.counts.get(skip.weight, skip.nnz)) for skip in network.skips
    )
    return replace(network, masks=masks, skips=skips)


def zero_masked(module: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set every masked weight to zero, in place."""
    with torch.no_grad():
        for name, mask in masks.items():
            weight = module.get_parameter(name)
            torch.where(mask.to(weight.device), weight, weight.new_zeros(()), out=weight)


def plain_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module as without masks: its own tensors by name, tied ones once."""
    masks = {id(mask) for mask in _mask_buffers(module)}
    state: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise CannotOperate(f"{name} is no tensor, and only tensors can be saved")
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
