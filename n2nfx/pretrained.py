"""Trained weights of the zoos, where this machine has them: nothing is ever downloaded.

They are where torchvision and timm themselves keep them: in the cache of torch.hub (TORCH_HOME),
and in that of the Hugging Face hub (HF_HOME).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from textwrap import shorten
from traceback import extract_tb
from typing import Any, Literal

import torch
from torch import nn

from n2nfx.errors import CannotOperate, DamagedFile, UsageError

# Whether a model gets trained weights. `unfilled` is for what gets its state from elsewhere later:
# the modules are those of the model with trained weights, their numbers are not.
Pretrained = Literal["no", "yes", "unfilled"]

_HUB_FILES = ("model.safetensors", "pytorch_model.bin")

# The functions of the zoos and of torch in which weights are read, or put into a model.
_LOADING = {"get_state_dict", "load_pretrained", "load_state_dict"}
_TOLD = 400  # characters of a reason: torch lists every weight of a model that is another


@contextmanager
def torchvision_options(name: str, pretrained: Pretrained) -> Iterator[dict[str, Any]]:
    """What a builder of torchvision is called with for the weights that it takes by default.

    Detection and segmentation models are made of other modules with trained weights than without.
    Raises `CannotOperate` where there are none, here or at all, and `DamagedFile` for a file of
    weights that cannot be loaded.
    """
    if pretrained == "no":
        yield {"weights": None}
        return
    with _unfilled() if pretrained == "unfilled" else _from_torch_hub(name):
        yield {"weights": "DEFAULT"}


def classes_of_torchvision(name: str) -> int:
    """How many classes the weights are for. Raises `CannotOperate` where there are none at all."""
    return len(_default_of_torchvision(name).meta["categories"])


def _default_of_torchvision(name: str) -> Any:
    weights: Any = import_module("torchvision.models").get_model_weights(name)
    default = getattr(weights, "DEFAULT", None)
    if default is None:
        raise CannotOperate(f"torchvision:{name} has no trained weights")
    return default.meta.get("unquantized", default)  # ours are not quantized


@contextmanager
def _from_torch_hub(name: str) -> Iterator[None]:
    """Let torchvision's builders read its file of weights, which must be there."""
    url = _default_of_torchvision(name).url
    path = _in_torch_hub(url)
    fetch = f"curl --create-dirs -Lo {path} {url}"
    if not path.is_file():
        raise CannotOperate(
            f"torchvision:{name}: its trained weights are not here, and nothing is downloaded; "
            f"they would be in {path}: {fetch}"
        )
    with _blaming(path, f"torchvision:{name}", fetch):
        yield


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


@contextmanager
def timm_options(name: str, pretrained: Pretrained) -> Iterator[dict[str, Any]]:
    """What `timm.create_model` is called with for the weights of a name's tag, or the default one.

    Raises `CannotOperate` where there are none, here or at all, and `DamagedFile` for a file of
    weights that cannot be loaded.
    """
    if pretrained != "yes":
        yield {"pretrained": False}
        return
    timm: Any = import_module("timm.models")
    current = timm.get_deprecated_models().get(name) or name
    config = timm.get_pretrained_cfg(current, allow_unregistered=True)
    if config is None or not (config.url or config.hf_hub_id):
        raise CannotOperate(f"timm:{name} has no trained weights")
    fetch = f"python -c 'import timm; timm.create_model(\"{name}\", pretrained=True)'"
    path = next((path for path in _of_timm(config) if path.is_file()), None)
    if path is None:
        raise CannotOperate(
            f"timm:{name}: its trained weights are not here, and nothing is downloaded; to have "
            f"them: {fetch}"
        )
    # The model itself reads google's own files, whose weights have other names and layouts.
    file = {"file": str(path), "custom_load": path.suffix == ".npz"}
    with _blaming(path, f"timm:{name}", fetch):
        yield {"pretrained": True, "pretrained_cfg_overlay": file}


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


@contextmanager
def _blaming(path: Path, name: str, fetch: str) -> Iterator[None]:
    """Raise `DamagedFile` for what is raised where weights are read, or put into the model."""
    try:
        yield
    except (OSError, MemoryError, ImportError):  # the machine's fault, not the file's
        raise
    except Exception as error:
        if not any(frame.name in _LOADING for frame in extract_tb(error.__traceback__)):
            raise
        reason = shorten(f"{type(error).__name__}: {error}", _TOLD, placeholder=" ...")
        # The Hugging Face hub's files are links, and it would link what they lead to again.
        raise DamagedFile(
            f"{path}: cannot be loaded as weights of {name}: {reason}; "
            f"delete {path.resolve()} and fetch it again: {fetch}"
        ) from error


def refuse(name: str, pretrained: Pretrained) -> None:
    """Raise `UsageError` where trained weights are asked of a model that nobody trained."""
    if pretrained == "yes":
        raise UsageError(f"{name} has no trained weights; pretrained is for torchvision and timm")
