"""A reference network from a model's name or from a module, and how to find it again."""

import logging
from dataclasses import replace

from torch import nn

from n2nfx import models
from n2nfx.errors import UsageError, require_kind
from n2nfx.network import Network, Origin
from n2nfx.pretrained import Pretrained
from n2nfx.tracing import record, trace
from n2nfx.tracing.tracer import Example

_log = logging.getLogger(__name__)


def network_of(
    model: str | nn.Module,
    *,
    example: Example | None = None,
    seed: int = 0,
    num_classes: int | None = None,
    input_shape: tuple[int, ...] | None = None,
    pretrained: Pretrained = "no",
) -> Network:
    """The reference network of a named model or of a module, its origin written down.

    `pretrained` is for a name: see `models.build`. Raises `UsageError` where a module comes
    without the example input that it needs.
    """
    if isinstance(model, str):
        return from_model(
            models.build(
                model,
                seed=seed,
                num_classes=num_classes,
                input_shape=input_shape,
                pretrained=pretrained,
            ),
            example,
            Origin(
                seed=seed,
                num_classes=num_classes,
                input_shape=None if input_shape is None else tuple(input_shape),
                pretrained=pretrained != "no",
            ),
        )
    require_kind(model, nn.Module, "a model is a name or an nn.Module")
    if pretrained != "no":
        raise UsageError("a module has the weights that it has; pretrained is for a model's name")
    if num_classes is not None or input_shape is not None:
        raise UsageError("num_classes and input_shape are for a model's name; a module is as it is")
    if example is None:
        raise UsageError("a module needs an example input: example=torch.randn(1, 3, 224, 224)")
    made_of = f"{type(model).__module__}.{type(model).__qualname__}"
    return replace(trace(model, example), origin=Origin(module_class=made_of))


def from_model(built: models.Model, example: Example | None, origin: Origin) -> Network:
    """The reference network of a model that was just built, which nobody else holds."""
    for note in built.notes:
        _log.info("%s", note)
    _log.info("tracing %s", built.name)
    network = record(built.module, built.example if example is None else example)
    for note in network.notes:
        _log.info("%s", note)
    notes = (*built.notes, *network.notes)
    return replace(network, origin=replace(origin, name=built.name), notes=notes)
