"""From a name to a network to operate on: three zoos, or a function in a file of one's own."""

import importlib
import importlib.util
import inspect
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from n2nfx import ownfile
from n2nfx import zoo as n2nfx_zoo
from n2nfx.errors import (
    CannotOperate,
    N2nfxError,
    UsageError,
    described,
    did_you_mean,
    first_line,
    kinds,
    require_kind,
)
from n2nfx.pretrained import (
    Pretrained,
    classes_of_torchvision,
    refuse,
    timm_options,
    torchvision_options,
)
from n2nfx.seeds import derive, require_seed
from n2nfx.tracing.example import Example, call_of

Shape: TypeAlias = tuple[int, ...]

ZOOS = ("torchvision", "timm", "n2nfx")  # in the order in which a bare name is looked up

_IMAGE: Shape = (3, 224, 224)

# What torchvision's models take where it is not an image of 224x224, by the module they are in.
# Shapes are without the batch; a video is (channels, frames, height, width).
_TORCHVISION_INPUTS: dict[str, tuple[Shape, ...]] = {
    "torchvision.models.inception": ((3, 299, 299),),
    "torchvision.models.quantization.inception": ((3, 299, 299),),
    "torchvision.models.video.resnet": ((3, 16, 112, 112),),
    "torchvision.models.video.s3d": ((3, 16, 224, 224),),
    "torchvision.models.video.mvit": ((3, 16, 224, 224),),
    "torchvision.models.video.swin_transformer": ((3, 16, 224, 224),),
    "torchvision.models.optical_flow.raft": ((3, 128, 128), (3, 128, 128)),  # its least size
}

# A function registered as a model: in timm "@register_model", in torchvision
# "@register_model()" or '@register_model(name="quantized_resnet50")', then maybe more decorators.
_REGISTERED = re.compile(
    r'^@register_model(?:\((?:name="(\w+)")?\))?[ \t]*\n(?:.*\n)*?def (\w+)', re.MULTILINE
)


@dataclass(frozen=True, eq=False)
class Model:
    """A module to operate on, and how to call it.

    `name` is canonical ("torchvision:resnet50", "timm:...", "n2nfx:...", "path/net.py:build").
    `example` is a real input with batch 1, a tensor, or a tuple of several; a file's own example
    is as it is: whatever can be traced. `notes` are sentences for a person. The module
    is in training mode, as its builder made it.
    """

    name: str
    module: nn.Module
    example: Example
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Built:
    """A module, and either a real example or the shapes of its inputs without the batch."""

    module: nn.Module
    shapes: tuple[Shape, ...] = ()
    example: Example | None = None
    notes: tuple[str, ...] = ()


def build(
    name: str,
    *,
    seed: int = 0,
    num_classes: int | None = None,
    input_shape: tuple[int, ...] | None = None,
    pretrained: Pretrained = "no",
) -> Model:
    """Build a model from its name, on the CPU and without any network, randomly initialized.

    A bare name is torchvision's where torchvision has it, else timm's, else n2nfx's; a prefix
    ("timm:resnet50") or a tag ("resnet50.a1_in1k") chooses; "net.py:build" calls that function
    without arguments, which returns a module, or (module, example). The same seed gives the same
    weights and the same example; the caller's random state stays as it was. `num_classes` None is
    the zoo's own number; `input_shape` is without the batch, (3, 32, 32), and replaces the
    example's; timm's and our models are built for its channels. `pretrained` "yes" gives a zoo's
    model the trained weights that are on this machine. Raises UsageError for a name that
    nobody has, CannotOperate for a model that cannot be built here or operated on, and
    DamagedFile for weights that cannot be loaded.
    """
    require_kind(name, str, "a model's name is text")
    require_seed(seed)
    _check_numbers(num_classes, input_shape)
    with _quietly() as caught, _own_random_state(derive(seed, "model")):
        if ownfile.is_file(name):
            canonical, notes = ownfile.canonical(name), ()
            refuse(canonical, pretrained)
            built = _from_file(canonical, num_classes, input_shape)
        else:
            canonical, notes = _resolve(name)
            built = _from_zoo(canonical, num_classes, input_shape, pretrained)
    return Model(
        name=canonical,
        module=built.module,
        example=_example(built, seed, input_shape),
        notes=(*notes, *built.notes, *_as_notes(caught)),
    )


def require_known(name: str) -> None:
    """Raise `UsageError` where nobody has a model of that name; nothing is built.

    Raises `CannotOperate` where it is one of a file that is no Python.
    """
    with _quietly():
        if not ownfile.is_file(name):
            _resolve(name)
            return
    ownfile.require_function(ownfile.canonical(name))


def names(pattern: str = "") -> list[str]:
    """The canonical names of every installed zoo's models, sorted; this imports the zoos.

    `pattern` is a substring, or a glob (with *, ? or [) over the name with or without its prefix.
    """
    with _quietly():
        known = [f"{zoo}:{name}" for zoo in ZOOS if _is_installed(zoo) for name in _registry(zoo)]
    return sorted(name for name in known if _matches(name, pattern))


def _matches(canonical: str, pattern: str) -> bool:
    if not any(sign in pattern for sign in "*?["):
        return pattern in canonical
    bare = canonical.partition(":")[2]
    return fnmatchcase(canonical, pattern) or fnmatchcase(bare, pattern)


def _check_numbers(num_classes: int | None, input_shape: tuple[int, ...] | None) -> None:
    if num_classes is not None and not _is_count(num_classes):
        raise UsageError(f"num_classes is {num_classes!r}, and must be a whole number, 1 or more")
    if input_shape is None:
        return
    listed = isinstance(input_shape, tuple | list)
    if not listed or not input_shape or not all(map(_is_count, input_shape)):
        raise UsageError(
            f"input_shape is {input_shape!r}, and must be positive sizes without the batch, "
            "such as (3, 32, 32)"
        )


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


# --- what surrounds every construction ---------------------------------------------------------


@contextmanager
def _quietly() -> Iterator[list[warnings.WarningMessage]]:
    """Collect warnings instead of showing them, and keep what is printed off stdout.

    Stdout is for data; what a zoo or a person's file prints while it builds is narration.
    """
    with warnings.catch_warnings(record=True) as caught, redirect_stdout(sys.stderr):
        warnings.simplefilter("always")
        yield caught


def _as_notes(caught: list[warnings.WarningMessage]) -> tuple[str, ...]:
    # Deprecations speak to whoever maintains the zoo; what remains is about the model.
    for_maintainers = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
    texts = [first_line(w.message) for w in caught if not issubclass(w.category, for_maintainers)]
    return tuple(dict.fromkeys(texts))


@contextmanager
def _own_random_state(seed: int) -> Iterator[None]:
    # Only the CPU's generator is seeded (torch.manual_seed would reseed the caller's CUDA too),
    # and so everything is made on the CPU, whatever the caller's default device is.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        yield


def _example(built: _Built, seed: int, input_shape: Shape | None) -> Example:
    if built.example is not None:
        return built.example
    shapes = built.shapes if input_shape is None else (tuple(input_shape),) * len(built.shapes)
    generator = torch.Generator().manual_seed(derive(seed, "example"))
    inputs = tuple(torch.randn((1, *s), generator=generator, device="cpu") for s in shapes)
    return inputs[0] if len(inputs) == 1 else inputs


# --- names of the zoos -------------------------------------------------------------------------


def _resolve(name: str) -> tuple[str, tuple[str, ...]]:
    """The canonical name, and notes where another zoo has the name too."""
    prefix, colon, bare = name.partition(":")
    if not colon:
        return _resolve_bare(name)
    if prefix not in ZOOS:
        raise UsageError(
            f"{name!r}: there is no zoo {prefix!r}{did_you_mean(prefix, ZOOS)} "
            f"(zoos: {', '.join(ZOOS)}; or a file.py:function)"
        )
    if not _has(prefix, bare):
        raise UsageError(f"{prefix} has no model {bare!r}{_nearest_in(prefix, bare)}")
    if prefix == "timm":
        _check_tag(bare)
    return name, ()


def _resolve_bare(name: str) -> tuple[str, tuple[str, ...]]:
    architecture, dot, _ = name.partition(".")
    zoos = ("timm",) if dot else ZOOS  # only timm's names have tags
    # Reading the sources first means that only the zoo that is needed is imported; the
    # registries know more only where somebody registered a model of their own.
    holders = [zoo for zoo in zoos if architecture in _written(zoo)]
    if not holders:
        holders = [z for z in zoos if _is_installed(z) and architecture in _registry(z)]
    if not holders:
        raise UsageError(f"no zoo has a model {name!r}{_nearest(architecture)}{_missing_zoos()}")
    _check_tag(name)
    first, *others = holders
    if not others:
        return f"{first}:{name}", ()
    other_names = " or ".join(f"{other}:{name}" for other in others)
    note = f"{name} is in {' and '.join(holders)}; taking {first}'s ({other_names} for the other)"
    return f"{first}:{name}", (note,)


def _check_tag(name: str) -> None:
    architecture, dot, tag = name.partition(".")
    if not dot:
        return
    tagged = _imported("timm").list_models(architecture, include_tags=True)
    if name not in tagged:
        near = did_you_mean(name, tagged if tag else [architecture, *tagged])
        raise UsageError(f"timm's {architecture} has no tag {tag!r}{near}")


def _nearest(word: str) -> str:
    return did_you_mean(word, {name.partition(":")[2] for name in names()})


def _nearest_in(zoo: str, word: str) -> str:
    """The same name in another zoo, else the near names of this one."""
    elsewhere = [name for name in names(word) if name.endswith(f":{word}")]
    if elsewhere:
        return f"; did you mean {' or '.join(elsewhere)}?"
    return did_you_mean(word, _registry(zoo))


def _missing_zoos() -> str:
    missing = [zoo for zoo in ZOOS if not _is_installed(zoo)]
    return "".join(f"; {zoo}, not installed, may have it: pip install {zoo}" for zoo in missing)


def _has(zoo: str, name: str) -> bool:
    if zoo == "timm":  # its registry knows tags and deprecated names, which its list leaves out
        return _imported("timm").is_model(name)
    return name in _registry(zoo)


def _registry(zoo: str) -> list[str]:
    """The names that a zoo lists, by importing it."""
    if zoo == "n2nfx":
        return list(n2nfx_zoo.NETWORKS)
    return _imported("timm" if zoo == "timm" else "torchvision.models").list_models()


@cache
def _written(zoo: str) -> frozenset[str]:
    """The names that a zoo's sources register, found without importing it."""
    if zoo == "n2nfx":
        return frozenset(n2nfx_zoo.NETWORKS)
    spec = importlib.util.find_spec(zoo)
    if spec is None or not spec.submodule_search_locations:
        return frozenset()
    files = Path(spec.submodule_search_locations[0], "models").rglob("*.py")
    found = (_REGISTERED.findall(file.read_text(encoding="utf-8")) for file in files)
    return frozenset(named or function for matches in found for named, function in matches)


def _is_installed(zoo: str) -> bool:
    return importlib.util.find_spec(zoo) is not None


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise _import_failure(name.partition(".")[0], error) from error


def _import_failure(package: str, error: Exception) -> CannotOperate:
    if isinstance(error, ModuleNotFoundError) and error.name == package:
        return CannotOperate(f"{package} is not installed: pip install {package}")
    return CannotOperate(
        f"{package} is installed but cannot be imported ({described(error)}); "
        f"install the release that belongs to torch {torch.__version__}: "
        f"pip install --upgrade {package}"
    )


# --- building from a zoo -----------------------------------------------------------------------


def _channels(input_shape: Shape | None) -> int:
    """The channels of an image of that shape; 3 where it is none."""
    return input_shape[0] if input_shape is not None and len(input_shape) == len(_IMAGE) else 3


def _from_zoo(
    canonical: str, num_classes: int | None, input_shape: Shape | None, pretrained: Pretrained
) -> _Built:
    zoo, _, name = canonical.partition(":")
    classes = {} if num_classes is None else {"num_classes": num_classes}
    return _BUILDERS[zoo](name, classes, input_shape, pretrained)


def _from_torchvision(
    name: str, classes: dict[str, int], input_shape: Shape | None, pretrained: Pretrained
) -> _Built:
    builder = _imported("torchvision.models").get_model_builder(name)
    shapes = _TORCHVISION_INPUTS.get(builder.__module__, (_IMAGE,))
    if (channels := _channels(input_shape)) != 3:
        raise UsageError(
            f"torchvision:{name} takes images of 3 channels, not of {channels}; "
            "models of timm and n2nfx take others"
        )
    if classes and builder.__module__.startswith("torchvision.models.optical_flow."):
        raise UsageError(f"torchvision:{name} estimates optical flow and takes no num_classes")
    if pretrained == "yes" and classes:
        _check_classes_of_weights(name, classes["num_classes"])
    options: dict[str, Any] = {**classes}
    if "weights_backbone" in inspect.signature(builder).parameters:
        options["weights_backbone"] = None  # segmentation and detection would download one
    if pretrained == "no" and name.removeprefix("quantized_") in ("googlenet", "inception_v3"):
        options["init_weights"] = True  # today's default, which warns unless it is said
    weights = torchvision_options(name, pretrained)
    return _Built(_constructed(f"torchvision:{name}", builder, options, weights), shapes)


def _check_classes_of_weights(name: str, asked: int) -> None:
    """Torchvision gives a model with trained weights no other head; timm does."""
    own = classes_of_torchvision(name)
    if asked != own:
        both = _is_installed("timm") and _imported("timm").is_model_pretrained(name)
        raise UsageError(
            f"the trained weights of torchvision:{name} have {own} classes, not {asked}: pass "
            f"--num-classes {own}, or no --pretrained (num_classes, pretrained in Python)"
            + (f"; timm:{name} takes both" if both else "")
        )


def _from_timm(
    name: str, classes: dict[str, int], input_shape: Shape | None, pretrained: Pretrained
) -> _Built:
    channels = _channels(input_shape)
    others = {} if channels == 3 else {"in_chans": channels}
    options = {"model_name": name, **classes, **others}
    weights = timm_options(name, pretrained)
    module = _constructed(f"timm:{name}", _imported("timm").create_model, options, weights)
    config = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", {})
    return _Built(module, (tuple(config.get("input_size") or _IMAGE),))


def _from_n2nfx(
    name: str, classes: dict[str, int], input_shape: Shape | None, pretrained: Pretrained
) -> _Built:
    refuse(f"n2nfx:{name}", pretrained)
    entry, channels = n2nfx_zoo.NETWORKS[name], _channels(input_shape)
    options = classes if channels == 3 else {**classes, "in_channels": channels}
    if input_shape is not None and len(input_shape) == 1:
        options = {**classes, "in_features": input_shape[0]}
    for option in options:
        if option not in inspect.signature(entry.builder).parameters:
            raise UsageError(f"n2nfx:{name} takes no {option}")
    module = _constructed(f"n2nfx:{name}", entry.builder, options, nullcontext({}))
    return _Built(module, (entry.input_shape,))


_BUILDERS: dict[str, Callable[[str, dict[str, int], Shape | None, Pretrained], _Built]] = {
    "torchvision": _from_torchvision,
    "timm": _from_timm,
    "n2nfx": _from_n2nfx,
}


def _constructed(
    canonical: str,
    builder: Callable[..., nn.Module],
    options: dict[str, Any],
    weights: AbstractContextManager[dict[str, Any]],
) -> nn.Module:
    try:
        with weights as of_weights:
            return builder(**options, **of_weights)
    except N2nfxError:  # what there is to say of weights is said
        raise
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        raise CannotOperate(
            f"{canonical} needs the package {package}: pip install {package}"
        ) from error
    except Exception as error:
        raise CannotOperate(f"{canonical} cannot be built here: {described(error)}") from error


# --- building from a file ----------------------------------------------------------------------


def _from_file(canonical: str, num_classes: int | None, input_shape: Shape | None) -> _Built:
    function = ownfile.load(canonical)
    options, notes = _file_options(canonical, function, num_classes)
    result = function(**options)
    module, example = _module_and_example(canonical, result)
    if input_shape is not None:
        if example is not None:
            _check_one_input(canonical, module, example)
        return _Built(module, (input_shape,), notes=notes)
    if example is None:
        raise UsageError(
            f"{canonical} returned a module and no example input: "
            "return (module, example), or pass --input (input_shape in Python)"
        )
    return _Built(module, example=example, notes=notes)


def _file_options(
    canonical: str, function: Callable[..., object], num_classes: int | None
) -> tuple[dict[str, int], tuple[str, ...]]:
    if num_classes is None:
        return {}, ()
    parameters = inspect.signature(function).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if "num_classes" in parameters or takes_any:
        return {"num_classes": num_classes}, ()
    return {}, (f"{canonical} takes no num_classes; it was called without",)


def _module_and_example(canonical: str, result: object) -> tuple[nn.Module, Example | None]:
    if isinstance(result, nn.Module):
        return result, None
    match result:
        case (nn.Module() as module, Tensor() | tuple() | list() | Mapping() as example):
            return module, example
    raise CannotOperate(
        f"{canonical} returned {kinds(result)}; it must return an nn.Module, or (module, example) "
        "with a tensor, several, or a mapping of tensors by name as the example"
    )


def _check_one_input(canonical: str, module: nn.Module, example: Example) -> None:
    count = len(call_of(module, example).inputs)
    if count != 1:
        raise UsageError(
            f"input_shape gives one input, and the example of {canonical} has {count}; "
            "leave input_shape out"
        )
