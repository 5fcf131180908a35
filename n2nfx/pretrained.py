"""Trained weights of the zoos, where this machine has them: nothing is ever downloaded.

They are where torchvision and timm themselves keep them: in the cache of torch.hub (TORCH_HOME),
and in that of the Hugging Face hub (HF_HOME).
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from n2nfx.errors import CannotOperate, UsageError

# Whether a model gets trained weights. `unfilled` is for what gets its state from elsewhere later:
# the modules are those of the model with trained weights, their numbers are not.
Pretrained = Literal["no", "yes", "unfilled"]

_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


@contextmanager
def torchvision_options(name: str, pretrained: Pretrained) -> Iterator[dict[str, Any]]:
    """What a builder of torchvision is called with for the weights that it takes by default.

    Detection and segmentation models are made of other modules with trained weights than without.
    Raises `CannotOperate` where there are none, here or at all.
    """
    if pretrained == "no":
        yield {"weights": None}
        return
    if pretrained == "yes":
        _require_of_torchvision(name)
    with _unfilled() if pretrained == "unfilled" else nullcontext():
        yield {"weights": "DEFAULT"}


def _require_of_torchvision(name: str) -> None:
    weights: Any = import_module("torchvision.models").get_model_weights(name)
    default = getattr(weights, "DEFAULT", None)
    if default is None:
        raise CannotOperate(f"torchvision:{name} has no trained weights")
    url = default.meta.get("unquantized", default).url  # ours are not quantized
    path = _in_torch_hub(url)
    if not path.is_file():
        raise CannotOperate(
            f"torchvision:{name}: its trained weights are not here, and nothing is downloaded; "
            f"they would be in {path}: curl --create-dirs -Lo {path} {url}"
        )


def _in_torch_hub(url: str) -> Path:
    return Path(torch.hub.get_dir(), "checkpoints", url.rpartition("/")[2])


@contextmanager
def _unfilled() -> Iterator[None]:
    """Let torchvision's builders load no weights where they would."""
    weights: Any = import_module("torchvision.models").WeightsEnum
    read, load = weights.get_state_dict, nn.Module.load_state_dict
    nothing: dict[str, Any] = {}

    def load_state_dict(module: nn.Module, state: Any, *args: Any, **kwargs: Any) -> Any:
        return None if state is nothing else load(module, state, *args, **kwargs)

    weights.get_state_dict = lambda *_, **__: nothing
    nn.Module.load_state_dict = load_state_dict  # type: ignore[method-assign]
    try:
        yield
    finally:
        weights.get_state_dict = read
        nn.Module.load_state_dict = load  # type: ignore[method-assign]


def timm_options(name: str, pretrained: Pretrained) -> dict[str, Any]:
    """What `timm.create_model` is called with for the weights of a name's tag, or the default one.

    Raises `CannotOperate` where there are none, here or at all.
    """
    if pretrained != "yes":
        return {"pretrained": False}
    config = import_module("timm.models").get_pretrained_cfg(name, allow_unregistered=True)
    if config is None or not (config.url or config.hf_hub_id):
        raise CannotOperate(f"timm:{name} has no trained weights")
    path = next((path for path in _of_timm(config) if path.is_file()), None)
    if path is None:
        raise CannotOperate(
            f"timm:{name}: its trained weights are not here, and nothing is downloaded; to have "
            f"them: python -c 'import timm; timm.create_model(\"{name}\", pretrained=True)'"
        )
    return {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}


def _of_timm(config: Any) -> Iterator[Path]:
    """Where the files of a model may be."""
    if config.hf_hub_id:
        look = import_module("huggingface_hub").try_to_load_from_cache
        for file in (config.hf_hub_filename,) if config.hf_hub_filename else _HUB_FILES:
            found = look(config.hf_hub_id, file)
            if isinstance(found, str):
                yield Path(found)
    if config.url:
        yield _in_torch_hub(config.url)


def refuse(name: str, pretrained: Pretrained) -> None:
    """Raise `UsageError` where trained weights are asked of a model that nobody trained."""
    if pretrained == "yes":
        raise UsageError(f"{name} has no trained weights; pretrained is for torchvision and timm")
