"""A model that cannot be traced at all: its graph is one call of the model as it is."""

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from n2nfx.graphmodule import WholeModel
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
    refs = [tape.write(_entry("placeholder", name, value)) for name, value in inputs.items()]
    args, kwargs = ((), dict(zip(inputs, refs, strict=True))) if by_name else (tuple(refs), {})
    vars(model)["whole_model"] = WholeModel(model)
    value = _both(specs(alone.result))
    inner = tuple(call.per_example(batch) for call in alone.witness.calls)
    touched = frozenset(alone.witness.touched)
    call = Entry("call_module", "whole_model", args, kwargs, value, "", inner, touched)
    called = tape.write(call)
    tape.write(Entry("output", "output", (called,), {}, None, ""))
    return tape


def _entry(op: Any, name: str, value: Tensor) -> Entry:
    return Entry(op, name, (), {}, _both(specs(value)), "")


def _both(spec: Any) -> Any:
    """A spec as the pair of what it is at two batches; only one is known."""
    if isinstance(spec, Spec):
        return (spec, spec)
    if isinstance(spec, dict):
        return {key: _both(item) for key, item in spec.items()}
    return [_both(item) for _, item in items(spec)] if isinstance(spec, list) else None
