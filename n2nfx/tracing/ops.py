"""What the nodes of a traced graph are, as far as wiring has to know."""

import operator
from typing import Literal

import torch
from torch import fx, nn
from torch.nn import functional

from n2nfx.tracing.sizes import add

Kind = Literal["norm", "fused", "activation", "passing", "add", "other"]

_ACTIVATIONS = (
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.Hardshrink,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.Mish,
    nn.PReLU,
    nn.ReLU,
    nn.RReLU,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softshrink,
    nn.Softsign,
    nn.Tanh,
    nn.Tanhshrink,
    nn.Threshold,
)
_ACTIVATION_NAMES = {
    *("relu", "relu6", "gelu", "silu", "hardswish", "hardsigmoid", "leaky_relu", "elu", "selu"),
    *("celu", "mish", "tanh", "sigmoid", "softplus", "prelu", "rrelu", "hardtanh", "logsigmoid"),
    *("softsign", "clamp_min"),
}
_NORMS = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.LocalResponseNorm,
)
_NORM_NAMES = {"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"}
_PASSING = (nn.Identity, nn.modules.dropout._DropoutNd)
_PASSING_CLASS_NAMES = {"DropPath", "StochasticDepth", "DropBlock2d"}
_PASSING_NAMES = {"dropout", "dropout2d", "dropout3d", "contiguous", "clone"}
_ADDS = {operator.add, operator.iadd, torch.add, add}
# Calls whose result may share memory with their input.
_VIEW_NAMES = {
    *("view", "reshape", "flatten", "unflatten", "transpose", "permute", "squeeze", "unsqueeze"),
    *("chunk", "split", "unbind", "expand", "narrow", "select", "detach", "contiguous", "getitem"),
    *("t", "swapaxes", "swapdims", "movedim", "view_as", "expand_as", "to", "float", "half"),
    *("getattr", "adaptive_avg_pool2d", "dropout", "dropout2d", "dropout3d", "pad"),
}
_VIEWS = (nn.Flatten, nn.Unflatten, nn.Identity, nn.modules.dropout._DropoutNd)

_OUT_OF_PLACE = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


def kind_of(module: fx.GraphModule, node: fx.Node) -> Kind:
    """What a node does to the activation it reads; `fused` is a norm with its activation inside."""
    if node.meta.get("is_activation"):  # whatever its class
        return "activation"
    if node.op == "call_module":
        return _kind_of_module(module.get_submodule(str(node.target)))
    name = name_of(node)
    if name in _ACTIVATION_NAMES:
        return "activation"
    if name in _NORM_NAMES:
        return "norm"
    if name in _PASSING_NAMES:
        return "passing"
    if node.target in _ADDS or (node.op == "call_method" and name == "add"):
        return "add" if len(node.all_input_nodes) == 2 else "other"
    return "other"


def _kind_of_module(called: nn.Module) -> Kind:
    if isinstance(called, _NORMS) or "Norm" in type(called).__name__:
        inner = getattr(called, "act", None)
        has_activation = isinstance(inner, nn.Module) and not isinstance(inner, nn.Identity)
        return "fused" if has_activation else "norm"
    if isinstance(called, _ACTIVATIONS):
        return "activation"
    if isinstance(called, _PASSING) or type(called).__name__ in _PASSING_CLASS_NAMES:
        return "passing"
    return "other"


def name_of(node: fx.Node) -> str:
    """The plain name of the function or method of a node, without an in-place underscore."""
    target = node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    return name[:-1] if is_method_in_place(name) else name


def first_tensor(graph: fx.Graph) -> fx.Node:
    """The node of a graph's first input that is a tensor, alone or in a list: it has the batch.

    Where nothing is known of any, the first input.
    """
    nodes = [*graph.nodes]
    return next((node for node in nodes if isinstance(node.meta.get("spec"), tuple)), nodes[0])


def is_size(node: fx.Node) -> bool:
    """Whether a node asks for a size, which is the same whatever is added to a value."""
    return node.op == "call_method" and node.target == "size"


def is_method_in_place(name: str) -> bool:
    """Whether torch names its in-place calls so."""
    return name.endswith("_") and not name.endswith("__")


def is_in_place(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node changes the tensor that is its first argument."""
    if node.op == "call_module":
        return bool(getattr(module.get_submodule(str(node.target)), "inplace", False))
    if node.op not in ("call_function", "call_method"):
        return False
    if node.target in _OUT_OF_PLACE or node.target is operator.setitem:
        return True
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    return is_method_in_place(name) or node.kwargs.get("inplace") is True


def is_view(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node's value may share memory with its input."""
    if node.op == "call_module":
        return isinstance(module.get_submodule(str(node.target)), _VIEWS)
    return node.op in ("call_function", "call_method") and name_of(node) in _VIEW_NAMES


def make_out_of_place(module: fx.GraphModule, node: fx.Node) -> bool:
    """Let an in-place node give a new tensor instead; False where that cannot be written."""
    if node.op == "call_module":
        module.get_submodule(str(node.target)).inplace = False  # type: ignore[assignment]
        return True
    if node.kwargs.get("inplace") is True:
        node.kwargs = {**node.kwargs, "inplace": False}
        return True
    if node.target in _OUT_OF_PLACE:
        node.target = _OUT_OF_PLACE[node.target]  # type: ignore[index]
        return True
    if node.op == "call_method":
        node.target = name_of(node)
        return True
    plain = getattr(functional, name_of(node), None) or getattr(torch, name_of(node), None)
    if plain is None:
        return False
    node.target = plain
    return True
