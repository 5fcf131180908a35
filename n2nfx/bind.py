"""Makes a network's masks act in its module, and takes them out again."""

import copy
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from n2nfx.errors import CannotOperate
from n2nfx.graphmodule import graphs_of, nodes_in, parts_of, recompile
from n2nfx.intact import require_intact
from n2nfx.masked import MASK, MASKED_CLASS, PLAIN_CLASS, MaskedStandardization, MaskedWeight
from n2nfx.masks import Masks
from n2nfx.network import Network
from n2nfx.tracing.layers import operand_of, prunable_read, taken_by_others
from n2nfx.tracing.weights import is_weighted

_IN_GRAPHS = (MaskedWeight, MaskedStandardization)


def bind(network: Network) -> None:
    """Let the masks act in the network's module, in place.

    A layer becomes its masked class; between a weight that is read directly and those who read it
    comes a `MaskedWeight`, and another before the layer where the weight is computed further.
    Weights with a full mask stay plain. Every name stays; a weight that is used where its mask
    cannot act is refused.
    """
    module, counts = network.module, network.masks.counts
    layers, reads = _layers_by_weight(module), _reads_by_weight(module)
    computed, others = _computed_by_weight(module), taken_by_others(module)
    for name, mask in network.masks.items():
        weight = module.get_parameter(name)
        if counts[name] == weight.numel():
            continue
        _require_unchanged(name, reads.get(id(weight), []))
        at_layers, at_reads = layers.get(id(weight), []), reads.get(id(weight), [])
        if not at_layers and not at_reads:
            raise CannotOperate(f"the mask of {name} would act nowhere: no layer uses it")
        if id(weight) in others:
            raise CannotOperate(
                f"the mask of {name} cannot act in {others[id(weight)]}, which shares the weight; "
                "give each a weight of its own"
            )
        acting = _like(weight, mask)
        for layer in at_layers:
            layer.__class__ = MASKED_CLASS[type(layer)]
            layer.register_buffer(MASK, acting)
        if at_reads:
            masked = _standardize(name, acting, computed.get(id(weight), []))
            _follow_with_mask(name, acting, [*at_reads, *masked])
    recompile(module)


def _require_unchanged(name: str, reads: Iterable[fx.Node]) -> None:
    """Raise `CannotOperate` where a forward writes into a weight: into what its mask leaves of it.

    That is a tensor of its own, and would be written in vain.
    """
    for node in reads:
        if writer := _writer(node):
            raise CannotOperate(
                f"the mask of {name} cannot act: forward changes the weight in place "
                f"({writer.name}); do that outside of forward, after the optimizer's step"
            )


def _writer(node: fx.Node) -> fx.Node | None:
    """The node that writes into a tensor, or into another name of it."""
    for user in node.users:
        if not user.args or user.args[0] is not node:
            continue
        called = str(getattr(user.target, "__name__", user.target))
        if user.target is operator.setitem or (called.endswith("_") and not called.endswith("__")):
            return user
        same = called == "detach" or (user.target is getattr and user.args[1] == "data")
        if same and (writer := _writer(user)):
            return writer
    return None


def _like(weight: Tensor, mask: Tensor) -> Tensor:
    """A mask of its own (a loaded state must not reach the network's), laid out as the weight is.

    What is selected by it then is laid out so too, and convolved by the same algorithm.
    """
    return torch.empty_like(weight, dtype=torch.bool, requires_grad=False).copy_(mask)


def _layers_by_weight(module: nn.Module) -> dict[int, list[nn.Module]]:
    found: dict[int, list[nn.Module]] = {}
    for layer in module.modules():
        if is_weighted(layer):
            found.setdefault(id(layer.weight), []).append(layer)
    return found


def _reads_by_weight(module: fx.GraphModule) -> dict[int, list[fx.Node]]:
    """The nodes that read each parameter directly."""
    found: dict[int, list[fx.Node]] = {}
    for part, node in nodes_in(module):
        read = operator.attrgetter(str(node.target))(part) if node.op == "get_attr" else None
        if isinstance(read, nn.Parameter):
            found.setdefault(id(read), []).append(node)
    return found


def _computed_by_weight(module: fx.GraphModule) -> dict[int, list[fx.Node]]:
    """The nodes that give what a layer uses for a weight, where that is computed from it."""
    found: dict[int, list[fx.Node]] = {}
    for part, node in nodes_in(module):
        operand = operand_of(part, node)
        if operand is None or operand.viewed:
            continue
        read = prunable_read(part, operand)
        if read is not None:
            weight = id(part.get_parameter(str(read.target)))
            found.setdefault(weight, []).append(operand.node)
    return {weight: list(dict.fromkeys(nodes)) for weight, nodes in found.items()}


def computed_weights(module: fx.GraphModule) -> set[str]:
    """The names of the weights that some layer does not use as they are."""
    computed = _computed_by_weight(module)
    return {name for name, weight in module.named_parameters() if id(weight) in computed}


def _follow_with_mask(name: str, mask: Tensor, nodes: list[fx.Node]) -> None:
    """Put one `MaskedWeight` between each of the nodes and all its readers."""
    for part, inside in _by_part(nodes).items():
        masked = _add(part, f"{name.replace('.', '_')}_masked", MaskedWeight(mask))
        for node in inside:
            with node.graph.inserting_after(node):
                kept = node.graph.call_module(masked, (node,))
            kept.meta.update(node.meta)
            node.replace_all_uses_with(
                kept, delete_user_cb=lambda user, kept=kept: user is not kept
            )


def _by_part(nodes: Iterable[fx.Node]) -> dict[fx.GraphModule, list[fx.Node]]:
    """The nodes by the graph module that they are in."""
    found: dict[fx.GraphModule, list[fx.Node]] = {}
    for node in nodes:
        part = node.graph.owning_module
        assert part is not None
        found.setdefault(part, []).append(node)
    return found


def _standardize(name: str, mask: Tensor, operands: list[fx.Node]) -> list[fx.Node]:
    """Let weight standardization see the kept weights only; gives the operands without one."""
    norms = {operand: list(_standardizations(operand)) for operand in operands}
    for part, inside in _by_part(norm for found in norms.values() for norm in found).items():
        masked = _add(part, f"{name.replace('.', '_')}_standard", MaskedStandardization(mask))
        for norm in inside:
            norm.op, norm.target = "call_module", masked
    return [operand for operand, found in norms.items() if not found]


def _standardizations(operand: fx.Node) -> Iterator[fx.Node]:
    """Batch norms of a weight's own statistics among the steps to what a layer uses."""
    at = operand
    while at.op != "get_attr" and at.all_input_nodes:
        own_statistics = at.kwargs.get("training") is True and at.args[1:3] == (None, None)
        if at.target is functional.batch_norm and own_statistics:
            yield at
        at = at.all_input_nodes[0]


def _add(module: fx.GraphModule, name: str, part: nn.Module) -> str:
    """Give a module a part, under a name that is free."""
    while hasattr(module, name):
        name += "_"
    module.add_module(name, part)
    return name


def unbind(module: fx.GraphModule) -> None:
    """Give plain layers back and forget the masks, in place; the weights stay as they are."""
    _unbind_layers(module)
    for _, part in parts_of(module):
        _unbind_graphs(part, {name for name, child in part.named_children() if _in_graphs(child)})


def _in_graphs(part: nn.Module) -> bool:
    return isinstance(part, _IN_GRAPHS)


def _unbind_layers(module: nn.Module) -> None:
    for layer in module.modules():
        if type(layer) in PLAIN_CLASS:
            layer.__class__ = PLAIN_CLASS[type(layer)]
            del layer._buffers[MASK]


def _unbind_graphs(module: fx.GraphModule, names: set[str]) -> None:
    for graph in graphs_of(module):
        for node in [n for n in graph.nodes if n.op == "call_module" and n.target in names]:
            if isinstance(module.get_submodule(str(node.target)), MaskedStandardization):
                node.op, node.target = "call_function", functional.batch_norm
            else:
                node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
                graph.erase_node(node)
    for name in names:
        module.delete_submodule(name)
    module.recompile()


def bake(network: Network) -> Network:
    """A copy of the network with the masked weights zero and every module plain again.

    Where a layer computes the weight that it uses, as weight standardization does, a zero would
    not stay one: there the mask stays at work.
    """
    acting, module = as_it_acts(network), copy.deepcopy(network.module)
    _unbind_layers(module)
    for _, part in parts_of(module):
        _unbind_graphs(part, _needed_no_more(part))
    zero_masked(module, acting.masks)
    return replace(acting, module=module)


def _needed_no_more(module: fx.GraphModule) -> set[str]:
    """The masks in the graphs that act on nothing but parameters, as layers use them."""
    at: dict[str, set[bool]] = {}
    for node in (node for graph in graphs_of(module) for node in graph.nodes):
        if node.op == "call_module" and _in_graphs(module.get_submodule(str(node.target))):
            plain = node.args[0].op == "get_attr"
            at.setdefault(str(node.target), set()).add(plain)
    return {name for name, plain in at.items() if plain == {True}}


def as_it_acts(network: Network) -> Network:
    """`with_acting_masks`, where no weight would be lost by them.

    Raises `CannotOperate` where a layer or a part was replaced, and where a weight that no mask
    acts on any more is not zero where the network's mask drops it.
    """
    require_intact(network)
    acting = masks_at_work(network.module)
    were_at_work = bool(acting or network.history)
    for name, mask in network.masks.items() if were_at_work else ():
        weight = network.module.get_parameter(name)
        if id(weight) not in acting:
            _require_dropped(name, weight, mask)
    return _with_those(network, acting)


def with_acting_masks(network: Network) -> Network:
    """The network with the masks that act in its module, and the counts of its skips by them.

    They are the network's own until it is rewired, or a state with other masks is loaded into the
    module, and where none act. Raises `CannotOperate` where a layer or a part was replaced.
    """
    require_intact(network)
    return _with_those(network, masks_at_work(network.module))


def _with_those(network: Network, acting: Mapping[int, list[Tensor]]) -> Network:
    """The network with the masks that `masks_at_work` found."""
    masks = {
        name: _as_acting(mask, acting.get(id(network.module.get_parameter(name)), ()))
        for name, mask in network.masks.items()
    }
    return with_masks(network, Masks(masks))


def with_masks(network: Network, masks: Masks) -> Network:
    """The network with other masks, and the counts of its skips by them; the module stays."""
    skips = tuple(
        replace(skip, nnz=masks.counts.get(skip.weight, skip.nnz)) for skip in network.skips
    )
    return replace(network, masks=masks, skips=skips)


def _require_dropped(name: str, weight: Tensor, mask: Tensor) -> None:
    """Raise `CannotOperate` where a weight has numbers that the mask says it has not."""
    lost = int(weight.detach()[~mask.to(weight.device)].count_nonzero())
    if lost:
        raise CannotOperate(
            f"the mask of {name} is not at work in its layer, where {lost:,} weights that it drops "
            "are not zero: the layer was replaced, or what was baked has been trained or loaded "
            "since; set these weights to zero, or trace the module anew"
        )


def _as_acting(mask: Tensor, acting: Sequence[Tensor]) -> Tensor:
    """The mask, or else a copy of the one that acts in its place, which can change."""
    if not acting or torch.equal(acting[0].to(mask.device), mask):
        return mask
    return acting[0].to(mask.device, copy=True)


def is_bound(network: Network) -> bool:
    """Whether exactly the network's masks are at work in its module."""
    at_work, counts = masks_at_work(network.module), network.masks.counts
    for name, mask in network.masks.items():
        weight = network.module.get_parameter(name)
        acting = at_work.pop(id(weight), [])
        partial = counts[name] < weight.numel()
        if bool(acting) != partial or not all(torch.equal(one.cpu(), mask.cpu()) for one in acting):
            return False
    return not at_work


def masks_at_work(module: fx.GraphModule) -> dict[int, list[Tensor]]:
    """The buffers that mask each parameter, by the parameter's id: all of them say the same.

    Bound, they are one tensor; a module that was moved to another device has several.
    """
    found: dict[int, list[Tensor]] = {}
    for layer in module.modules():
        if type(layer) in PLAIN_CLASS:
            found.setdefault(id(layer.weight), []).append(layer.get_buffer(MASK))
    for part, node in nodes_in(module):
        called = part.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(called, _IN_GRAPHS):
            weight = _masked_by(part, node, called.mask)
            found.setdefault(id(weight), []).append(called.mask)
    return found


def _masked_by(part: fx.GraphModule, node: fx.Node, mask: Tensor) -> nn.Parameter:
    """The weight that a mask in a graph acts on, where it is read or further on.

    Of what a layer computes its weight from, no other has its shape.
    """
    ahead = [node]
    for at in ahead:
        read = operator.attrgetter(str(at.target))(part) if at.op == "get_attr" else None
        if isinstance(read, nn.Parameter) and read.shape == mask.shape:
            return read
        ahead += at.all_input_nodes
    raise AssertionError(f"{node.name} masks no weight")


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
        elif isinstance(layer, _IN_GRAPHS):
            yield layer.mask
