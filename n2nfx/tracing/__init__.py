"""A module and an example input made a Network: traced, generic in the batch, nothing touched."""

from n2nfx.tracing.tracer import record, trace

__all__ = ["record", "trace"]
