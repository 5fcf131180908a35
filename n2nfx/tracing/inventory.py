"""What every run of a model finds: its modules, which of them are leaves, and its tensors."""

from dataclasses import dataclass

from torch import Tensor, nn

from n2nfx.tracing.leaves import is_leaf


@dataclass(frozen=True, eq=False)
class Inventory:
    """A model's modules and tensors by path, looked for once for many runs.

    `leaves` are the ids of the modules that are recorded as one call. `tensors` are parameters,
    buffers and plain tensor attributes, tied ones under their first path; `saved` are the ids of
    those that a state dict has.
    """

    modules: tuple[tuple[str, nn.Module], ...]
    leaves: frozenset[int]
    tensors: tuple[tuple[str, Tensor], ...]
    saved: frozenset[int]

    @classmethod
    def of(cls, model: nn.Module) -> "Inventory":
        modules = tuple(model.named_modules())
        leaves = frozenset(id(module) for _, module in modules if is_leaf(module))
        saved = frozenset(map(id, model.state_dict(keep_vars=True).values()))
        return cls(modules, leaves, tuple(_tensors(modules)), saved)


def _tensors(modules: tuple[tuple[str, nn.Module], ...]) -> list[tuple[str, Tensor]]:
    found: dict[int, tuple[str, Tensor]] = {}
    for prefix, module in modules:
        for table in (module._parameters, module._buffers, vars(module)):
            for name, value in table.items():
                if isinstance(value, Tensor) and id(value) not in found:
                    found[id(value)] = f"{prefix}.{name}" if prefix else name, value
    return list(found.values())
