"""Whether a network's module still has what was found in it when it was traced."""

from collections.abc import Sequence

from n2nfx.errors import CannotOperate, require_kind
from n2nfx.graphmodule import REPLACED, missing, parts_of
from n2nfx.network import Network


def require_intact(network: Network) -> None:
    """Raise `CannotOperate` where a part, a layer or a branch was replaced by another since.

    Raises `UsageError` for what is no network.
    """
    require_kind(network, Network, "a network is n2nfx.trace(...) or an outcome's .network")
    module = network.module
    list(parts_of(module))  # raises for parts
    for item in (*network.layers, *(skip for skip in network.skips if skip.size)):
        name, shape = item.weight, item.weight_shape
        try:
            weight = module.get_parameter(name)
        except AttributeError as error:
            raise CannotOperate(f"{name} is gone: {missing(module, name)}{REPLACED}") from error
        if tuple(weight.shape) != shape:
            raise CannotOperate(
                f"{name} was {_times(shape)}, and is {_times(weight.shape)} now{REPLACED}"
            )


def _times(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
