"""A plan under a right hash is still held against the masks, tensors and sums beside it."""

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import Tied
from torch import nn

import n2nfx
from n2nfx import artifact, recorded
from n2nfx.errors import DamagedFile
from n2nfx.outcome import Outcome
from n2nfx.passes import N2NSkip, RandomPruning, ResSkip, SmallInputStem
from n2nfx.pipeline import Pipeline
from n2nfx.plan import count

IMAGE = torch.zeros(1, 3, 16, 16)


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for into, out in ((3, 6), (6, 6), (6, 8), (8, 8)):
        layers += [nn.Conv2d(into, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


def outcome(*passes: Any) -> Outcome:
    return Pipeline(passes)(n2nfx.trace(chain(), IMAGE), seed=1)


PRUNED = RandomPruning(0.3)


@pytest.mark.parametrize(
    "passes",
    [
        [],
        [PRUNED],
        [PRUNED, N2NSkip(0.3, hops=(1, 2), wiring="joint", branch_norm="batch")],
        [PRUNED, ResSkip(hops=(2,))],
        [SmallInputStem(), PRUNED, N2NSkip(0.5, hops=(2,))],
        [RandomPruning(1.0)],
    ],
)
def test_what_is_saved_is_consistent_and_counts_as_the_network_does(
    passes: list[Any], tmp_path: Path
) -> None:
    made = outcome(*passes)
    made.save(tmp_path / "out")
    found = recorded.read(tmp_path / "out")
    assert count(found.network) == made.counts == found.plan.counts
    assert found.network.ledger() == made.network.ledger()
    assert found.network.skips == made.network.skips
    assert all(torch.equal(mask, made.network.masks[name]) for name, mask in found.masks.items())


def test_tied_weights_and_other_masks_than_the_steps_left_are_consistent(tmp_path: Path) -> None:
    n2nfx.transform(Tied(), density=0.5, example=torch.zeros(1, 6)).save(tmp_path / "tied")
    assert recorded.read(tmp_path / "tied").network.nnz == 18
    one, other = (outcome(RandomPruning(d), N2NSkip(0.3, hops=(2,))) for d in (0.2, 0.3))
    one.network.module.load_state_dict(other.network.module.state_dict())
    one.save(tmp_path / "out")
    assert recorded.read(tmp_path / "out").network.nnz == other.network.nnz


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with skips."""
    folder = tmp_path_factory.mktemp("recorded") / "out"
    outcome(PRUNED, N2NSkip(0.5, hops=(2,))).save(folder)
    return folder


def forged(whole: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy whose plan is changed and whose hashes are right."""
    folder.mkdir()
    plan = json.loads((whole / artifact.PLAN).read_text())
    change(plan)
    files = {
        artifact.PLAN: json.dumps(plan).encode(),
        artifact.WEIGHTS: (whole / artifact.WEIGHTS).read_bytes(),
    }
    lines = [f"{hashlib.sha256(data).hexdigest()}  {name}\n" for name, data in files.items()]
    for name, data in {**files, artifact.MANIFEST: "".join(lines).encode()}.items():
        (folder / name).write_bytes(data)
    return folder


def layer(plan: dict[str, Any]) -> dict[str, Any]:
    return plan["layers"][0]


def skip(plan: dict[str, Any]) -> dict[str, Any]:
    return plan["steps"][-1]["skips"][0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        # Types and keys
        (lambda plan: plan.pop("layers"), "layers: Field required"),
        (lambda plan: plan.update(extra=1), "extra: Extra inputs are not permitted"),
        (lambda plan: plan.update(count=plan.pop("counts")), "count: .*; did you mean counts?"),
        (lambda plan: layer(plan).update(use=layer(plan).pop("uses")), "use: .* did you mean uses"),
        (lambda plan: layer(plan).update(uses="1"), r"layers\.0\.uses: .*valid integer"),
        (lambda plan: layer(plan).update(uses=True), r"layers\.0\.uses: .*valid integer"),
        (lambda plan: plan["kept"].update({"0.weight": 1.5}), r"kept\.0\.weight: .*integer"),
        (lambda plan: plan["inputs"][0].update(dtype="float33"), "no dtype 'float33'"),
        (lambda plan: layer(plan).update(kind="cnv"), "'conv' or 'linear'"),
        # What cannot be
        (lambda plan: layer(plan).update(weight_shape=[-6, -3, 3, 3]), "layer '0' has a weight of"),
        (lambda plan: layer(plan).update(weight_shape=[10**4000] * 2), "layer '0' has a weight of"),
        (lambda plan: layer(plan).update(uses=-1), "layer '0' uses each weight -1 times"),
        (lambda plan: layer(plan).update(uses=10**4000), "layer '0' uses each weight 10"),
        (lambda plan: layer(plan).update(reads=[-3, 16, 16]), "layer '0' has an activation"),
        (lambda plan: skip(plan).update(places=[2**50]), "skip .* has an activation"),
        (lambda plan: layer(plan).update(weight="3.weight"), "'3' has a weight that another has"),
        (lambda plan: plan["inputs"][0].update(shape=[1, 3, 2**40]), "input 'input' has the shape"),
        (lambda plan: plan["origin"].update(input_shape=[2**40]), "origin: input_shape"),
        # Steps and skips
        (lambda plan: plan["steps"][-1].update(nnz=[9, 8]), "step 2 .* 9 weights before and 8"),
        (lambda plan: plan["steps"][0].update(nnz=[9, -1]), "step 1 .* 9 weights before and -1"),
        (lambda plan: skip(plan).update(source="inptu"), "no layer 'inptu'; did you mean input"),
        (lambda plan: skip(plan).update(target="nowhere"), "there is no layer 'nowhere'"),
        (lambda plan: skip(plan).update(target="input"), "bypasses nothing: 'input' to 'input'"),
        (lambda plan: skip(plan).update(source="9", target="0"), "bypasses nothing"),
        (lambda plan: skip(plan).update(hop=0), "bypasses nothing"),
        (lambda plan: skip(plan).update(calls=[]), "bypasses nothing"),
        (lambda plan: skip(plan).update(shrink=[2, 2, 2]), "shrinks places that it does not have"),
        (lambda plan: skip(plan).update(shrink=[0]), "shrinks places that it does not have"),
        (lambda plan: skip(plan).update(nnz=10**9), "keeps 1000000000 of"),
        (lambda plan: plan.update(steps=[]), "masks for weights that are not prunable"),
        (lambda plan: plan["layers"].pop(), "masks for weights|there is no layer"),
        (lambda plan: layer(plan).update(weight_shape=[3, 6, 3, 3]), "mask of 0.weight has shape"),
        # Counts and sums
        (lambda plan: plan["kept"].update({"0.weight": 9}), "'0.weight' keeps 9 by the plan"),
        (lambda plan: plan["kept"].pop("0.weight"), "'0.weight' keeps None by the plan"),
        (lambda plan: plan["kept"].update({"0.wight": 9}), "'0.wight'; did you mean 0.weight"),
        (lambda plan: layer(plan).update(uses=3), "counts: multiply_adds is"),
        (lambda plan: plan["counts"].update(reference=1), "counts: reference is 1, and 1"),
        (lambda plan: plan["counts"].update(kept=1), "counts: kept is 1, and"),
        (lambda plan: plan["counts"].update(skip=1), "counts: skip is 1, and"),
        (lambda plan: plan["counts"].update(sequential=1), "counts: sequential is 1, and"),
    ],
)
def test_a_plan_that_says_what_is_not_so_is_refused_by_name(
    whole: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    folder = forged(whole, tmp_path / "out", change)
    with pytest.raises(DamagedFile, match=words) as caught:
        recorded.read(folder)
    assert str(folder / artifact.PLAN) in str(caught.value)
    with pytest.raises(DamagedFile, match=words):
        n2nfx.load(folder, chain())


def test_a_forger_who_changes_nothing_is_believed(whole: Path, tmp_path: Path) -> None:
    folder = forged(whole, tmp_path / "out", copy.copy)
    assert recorded.read(folder).plan == recorded.read(whole).plan


@pytest.mark.parametrize("shape", [None, (6, 3, 9)])
def test_a_weight_without_a_mask_is_there_and_has_its_shape(
    tmp_path: Path, shape: tuple[int, ...] | None
) -> None:
    outcome().save(tmp_path / "whole")
    found = artifact.read(tmp_path / "whole")
    plan = {key: value for key, value in found.plan.items() if key not in artifact.RESERVED}
    weight = found.tensors.pop("0.weight")
    if shape is not None:
        found.tensors["0.weight"] = weight.reshape(shape)
    artifact.write(tmp_path / "out", plan, found.tensors, found.masks)
    with pytest.raises(DamagedFile, match=r"weights\.safetensors: '0.weight' is"):
        recorded.read(tmp_path / "out")
