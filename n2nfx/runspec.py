"""One run, said completely: which network is trained, on what and how; and its name."""

import hashlib
import json
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import PurePath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from n2nfx import ownfile

_DIGITS = 8


class Part(BaseModel):
    """What a run is said with: no unknown keys, no infinities, never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def canonical(part: Part, without: Iterable[str] = ()) -> str:
    """What is said, as JSON: its keys sorted, and nothing that is at its default."""
    said = part.model_dump(mode="json", exclude_defaults=True, exclude=set(without))
    return json.dumps(said, sort_keys=True, separators=(",", ":"))


def name_of(words: Iterable[str], text: str) -> str:
    """A slug for people of the words, and eight hex digits of the hash of the canonical text."""
    slug = re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")
    return f"{slug}-{hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]}"


class Training(Part):
    """How a network is trained; the defaults are the paper's (section 4).

    `schedule` lowers the learning rate by `step_factor` every `step_every` epochs (`step`), along
    a cosine (`cosine`) or up and down once (`one-cycle`); `warmup` epochs rise linearly to it.
    `images` are the first so many training images, 0 for all. `ema` is the decay of an average of
    the weights, 0 for none; it is then what is measured and kept. Each of `accumulate`
    micro-batches has `batch_size` images, on all devices together. `momentum` is AdamW's beta1.
    """

    epochs: Annotated[int, Field(ge=1)] = 300
    batch_size: Annotated[int, Field(ge=1)] = 128
    accumulate: Annotated[int, Field(ge=1)] = 1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0)] = 0.05
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    schedule: Literal["step", "cosine", "one-cycle"] = "step"
    step_every: Annotated[int, Field(ge=1)] = 30
    step_factor: Annotated[float, Field(gt=0, le=1)] = 0.5
    warmup: Annotated[int, Field(ge=0)] = 0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    compile: bool = False
    images: Annotated[int, Field(ge=0)] = 0
    augment: bool = True
    rewiring: Literal["none", "set", "rigl"] = "none"

    @field_validator("warmup")
    @classmethod
    def _warmup_ends(cls, warmup: int, others: ValidationInfo) -> int:
        epochs = others.data.get("epochs")
        if epochs is not None and warmup > epochs:
            raise ValueError(f"{warmup} epochs of warmup are more than all {epochs} of training")
        return warmup

    @model_validator(mode="after")
    def _steps_are_taken(self) -> "Training":
        for key in ("step_every", "step_factor"):
            given = getattr(self, key) != Training.model_fields[key].default
            if given and self.schedule != "step":
                raise ValueError(f'{key} is of schedule="step"')
        return self

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> "Training":
        if self.nesterov and self.optimizer != "sgd":
            raise ValueError('nesterov=true is of optimizer="sgd"')
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov=true needs a momentum above 0")
        return self


class RunSpec(Part):
    """One run. `passes` are the texts of the passes that make the network of the reference.

    `model` is a name as `n2nfx transform` takes it, `data` one as `n2nfx data ls` lists it. The
    pruners that look at data see the first `scoring_images` training images as one batch. Where
    model or data are functions in files of one's own, `files` are the files' SHA-256, in that
    order: an edited file is another run, and one that only lies elsewhere is the same.
    """

    model: str
    data: str
    files: tuple[str, ...] = ()
    passes: tuple[str, ...] = ()
    seed: Annotated[int, Field(ge=0)] = 0
    scoring_images: Annotated[int, Field(ge=1)] = 256
    training: Training = Training()

    @cached_property
    def canonical(self) -> str:
        """The run as JSON without what is at its default: what the name's digits stand for."""
        named = {"model": self.model, "data": self.data} if self.files else {}
        wherever = {k: PurePath(name).name for k, name in named.items() if ownfile.is_file(name)}
        return canonical(self.model_copy(update=wherever))

    @cached_property
    def name(self) -> str:
        """A slug for people and eight hex digits of the hash of the canonical form."""
        passes = [text.partition("{")[0] for text in self.passes] or ["dense"]
        densities = [f"d{text}" for text in re.findall(r"\bdensity=([\w.]+)", str(self.passes))]
        words = [
            *(one.rpartition(":")[2] for one in (self.model, self.data)),
            *passes,
            *densities,
            f"s{self.seed}",
        ]
        return name_of(words, self.canonical)
