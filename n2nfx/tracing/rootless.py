"""A model that cannot be traced at all: its graph is one call of the model as it is."""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from n2nfx.graphmodule import WHOLE_MODEL, WholeModel
from n2nfx.tracing.studio import Studio
from n2nfx.tracing.tape import Entry, Spec, Tape
from n2nfx.tracing.values import items, specs


def whole_root(studio: Studio, inputs: Mapping[str, Tensor]) -> Tape:
    """The tape of one call of the whole model, which the graph module keeps beside its graph.

    The model runs once on the inputs as they are, so that its layers are seen; raises what it
    raises.
    """
    model, by_name = studio.model, studio.call.by_name
    arguments = ((), dict(inputs)) if by_name else (tuple(inputs.values()), {})
    alone = studio.alone("", copy.deepcopy(arguments), training=False)
    batch = next(iter(inputs.values())).shape[0]
    tape = Tape()
    refs = {name: tape.write(_placeholder(name, (), value)) for name, value in inputs.items()}
    more = {
        name: tape.write(_placeholder(name, (default,), None))
        for name, default in _defaults(model).items()
        if name not in inputs
    }
    args, kwargs = ((), {**refs, **more}) if by_name else (tuple(refs.values()), more)
    vars(model)[WHOLE_MODEL] = WholeModel(model)
    seen = alone.witness.seen(batch).per_example()
    value = _both(specs(alone.result))
    called = tape.write(Entry("call_module", WHOLE_MODEL, args, kwargs, value, "", seen))
    tape.write(Entry("output", "output", (called,), {}, None, ""))
    return tape


def _placeholder(name: str, default: tuple[Any, ...], value: Tensor | None) -> Entry:
    return Entry("placeholder", name, default, {}, _both(specs(value)), "")


def _defaults(model: nn.Module) -> dict[str, Any]:
    """What forward takes besides, with plain defaults: targets, where it gives losses."""
    return {
        parameter.name: parameter.default
        for parameter in inspect.signature(model.forward).parameters.values()
        if parameter.kind is not parameter.POSITIONAL_ONLY
        and (parameter.default is None or isinstance(parameter.default, bool | int | float | str))
    }


def _both(spec: Any) -> Any:
    """A spec as the pair of what it is at two batches; only one is known."""
    if isinstance(spec, Spec):
        return (spec, spec)
    if isinstance(spec, dict):
        return {key: _both(item) for key, item in spec.items()}
    return [_both(item) for _, item in items(spec)] if isinstance(spec, list) else None
