"""Saved and loaded: the same network to the last bit, or an error that names the file."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import Model, Tied
from torch import Tensor, nn

import n2nfx
from n2nfx import artifact
from n2nfx.errors import DamagedFile, N2nfxError, UsageError
from n2nfx.network import Network
from n2nfx.outcome import Outcome
from n2nfx.passes import N2NSkip, RandomPruning, Reinit, ResSkip, SmallInputStem
from n2nfx.pipeline import Pipeline

IMAGE = torch.zeros(1, 3, 32, 32)


def chain() -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for into, out in ((3, 8), (8, 8), (8, 12), (12, 12)):
        layers += [nn.Conv2d(into, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))


def small() -> Outcome:
    return n2nfx.transform(chain(), density=0.3, skip_ratio=0.5, hops=(2,), example=IMAGE)


def same(one: Network, other: Network) -> None:
    """Equal in every way that can be seen: text, names, masks, outputs in both modes, buffers."""
    assert one.text() == other.text()
    assert one.layers == other.layers
    assert one.skips == other.skips
    assert one.nnz == other.nnz
    assert list(one.masks) == list(other.masks)
    for name, mask in one.masks.items():
        assert torch.equal(mask, other.masks[name])
    x = torch.randn(2, *one.inputs[0].shape[1:])
    for training in (False, True):
        seen = []
        for network in (one, other):
            torch.manual_seed(0)
            seen.append(network.module.train(training)(x))
        assert torch.equal(*seen)
    state = other.module.state_dict()
    for name, value in one.module.state_dict().items():
        assert torch.equal(value, state[name]), name


@pytest.mark.parametrize(
    "operation",
    [
        N2NSkip(ratio=0.5, hops=(2,)),
        N2NSkip(ratio=0.3, hops=(1, 2), wiring="joint", pattern="identity", branch_norm="batch"),
        N2NSkip(ratio=0.1, hops=(2,), wiring="linear", init="zero", placement="blocks", kernel=1),
        ResSkip(hops=(2,)),
    ],
)
def test_every_kind_of_skip_survives(operation: N2NSkip | ResSkip, tmp_path: Path) -> None:
    module = chain()
    network = n2nfx.trace(module, IMAGE)
    outcome = Pipeline([RandomPruning(density=0.3), operation])(network, seed=3)
    outcome.save(tmp_path / "out")
    same(outcome.network, n2nfx.load(tmp_path / "out", module))


@pytest.mark.parametrize("name", ["n2nfx:mlp", "resnet18", "timm:resnet18", "timm:resnetv2_18"])
def test_a_named_model_is_built_again(name: str, tmp_path: Path) -> None:
    shape = None if name == "n2nfx:mlp" else (3, 32, 32)
    outcome = n2nfx.transform(name, density=0.05, skip_ratio=0.5, input_shape=shape, seed=7)
    outcome.save(tmp_path / "out")
    same(outcome.network, n2nfx.load(tmp_path / "out"))


def test_a_pass_that_edits_the_graph_is_replayed(tmp_path: Path) -> None:
    network = n2nfx.trace(n2nfx.models.build("resnet18").module, IMAGE)
    passes = [SmallInputStem(), RandomPruning(density=0.1), N2NSkip(ratio=0.5)]
    outcome = Pipeline(passes)(network, seed=5)
    outcome.save(tmp_path / "out")
    fresh = n2nfx.models.build("resnet18", seed=9).module
    same(outcome.network, n2nfx.load(tmp_path / "out", fresh))


def test_trained_weights_are_what_is_saved(tmp_path: Path) -> None:
    outcome = small()
    module = outcome.network.module.train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        module(torch.randn(4, 3, 32, 32)).square().sum().backward()
        optimizer.step()
    outcome.save(tmp_path / "out")
    same(outcome.network, n2nfx.load(tmp_path / "out", chain()))


def test_half_precision_and_tied_weights_survive(tmp_path: Path) -> None:
    example = torch.zeros(1, 6, dtype=torch.bfloat16)
    module = Tied().bfloat16()
    outcome = n2nfx.transform(module, density=0.5, example=example)
    outcome.save(tmp_path / "out")
    again = n2nfx.load(tmp_path / "out", Tied().bfloat16())
    x = torch.randn(3, 6).bfloat16()
    assert torch.equal(outcome.network.module(x), again.module(x))
    assert again.module.get_parameter("first.weight") is again.module.get_parameter("second.weight")


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float64])
def test_what_was_moved_to_another_precision_is_loaded_in_it(
    precision: torch.dtype, tmp_path: Path
) -> None:
    outcome = small()
    outcome.network.module.to(precision)
    outcome.save(tmp_path / "out")
    again = n2nfx.load(tmp_path / "out", chain())
    x = torch.randn(2, 3, 32, 32, dtype=precision)
    assert torch.equal(outcome.network.module.eval()(x), again.module.eval()(x))


def test_buffers_that_are_not_stored_keep_their_precision(tmp_path: Path) -> None:
    def build() -> nn.Module:
        model = Model(lambda m, x: m.head(x * m.turn.real + m.shift.float()), head=nn.Linear(4, 4))
        model.register_buffer("turn", torch.full((4,), 1 + 2j), persistent=False)
        model.register_buffer("shift", torch.ones(4, dtype=torch.float64), persistent=False)
        return model

    outcome = n2nfx.transform(build(), density=0.5, example=torch.zeros(1, 4))
    outcome.save(tmp_path / "out")
    kept = dict(n2nfx.load(tmp_path / "out", build()).module.named_buffers())
    assert (kept["turn"].dtype, kept["shift"].dtype) == (torch.complex64, torch.float64)


def test_layers_with_large_activations_survive(tmp_path: Path) -> None:
    large = torch.zeros(1, 1, 1500, 1500)  # as many elements read as written, 5e12 by product
    outcome = n2nfx.transform(nn.Conv2d(1, 4, 1), density=0.5, skip_ratio=0.0, example=large)
    outcome.save(tmp_path / "net")
    loaded = n2nfx.load(tmp_path / "net", model=nn.Conv2d(1, 4, 1))
    assert loaded.layers == outcome.network.layers


def test_the_plan_says_how_it_was_made(tmp_path: Path) -> None:
    outcome = n2nfx.transform("n2nfx:mlp", density=0.2, skip_ratio=0.5, seed=4)
    outcome.save(tmp_path / "out")
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert (plan["origin"]["name"], plan["origin"]["seed"]) == ("n2nfx:mlp", 4)
    assert plan["counts"]["kept"] == outcome.network.nnz
    assert sum(plan["kept"].values()) == outcome.network.nnz
    assert [step["spec"].partition("{")[0] for step in plan["steps"]] == ["random", "n2nskip"]
    assert plan["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_a_module_must_be_handed_in_again_and_the_error_says_so(tmp_path: Path) -> None:
    small().save(tmp_path / "out")
    made = r"made from a module \(torch.nn.modules.container.Sequential\), which must be handed in"
    with pytest.raises(UsageError, match=f"{made}: --model .*load.*model="):
        n2nfx.load(tmp_path / "out")


def test_a_module_of_no_recorded_class_is_said_to_be_one(tmp_path: Path) -> None:
    network = n2nfx.trace(chain(), IMAGE)
    Pipeline([RandomPruning(0.3)])(network).save(tmp_path / "out")
    made = r"made from a module \(of no recorded class\), which must be handed in"
    with pytest.raises(UsageError, match=f"{made}: --model .*load.*model="):
        n2nfx.load(tmp_path / "out")


def test_what_is_no_path_is_told() -> None:
    wrong: Any = None
    with pytest.raises(UsageError, match="None is no path"):
        small().save(wrong)
    with pytest.raises(UsageError, match="None is no path"):
        n2nfx.load(wrong)


def test_a_file_that_an_artifact_names_is_never_run_by_loading(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(
        "import pathlib, torch\npathlib.Path(__file__).with_suffix('.ran').touch()\n"
        "def build():\n    return torch.nn.Linear(4, 4), torch.zeros(1, 4)\n"
    )
    n2nfx.transform(f"{file}:build", density=0.5).save(tmp_path / "out")
    file.with_suffix(".ran").unlink()
    with pytest.raises(N2nfxError, match="model="):
        n2nfx.load(tmp_path / "out")
    assert not file.with_suffix(".ran").exists()
    assert n2nfx.load(tmp_path / "out", f"{file}:build").nnz == 8


@pytest.mark.parametrize(
    "wrong",
    [
        nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()),
        nn.Sequential(*list(chain())[:-1], nn.Linear(12, 6)),
        nn.Sequential(*list(chain()), nn.Linear(5, 5)),
        nn.Sequential(*list(chain())[:-3], nn.AdaptiveMaxPool2d(1), *list(chain())[-2:]),
        nn.Linear(3, 3),
    ],
)
def test_a_wrong_model_is_told_from_the_recorded_one(wrong: nn.Module, tmp_path: Path) -> None:
    small().save(tmp_path / "out")
    with pytest.raises(DamagedFile, match=str(tmp_path / "out")):
        n2nfx.load(tmp_path / "out", wrong)


def test_a_layer_of_the_same_name_and_shape_is_told_by_what_differs(tmp_path: Path) -> None:
    small().save(tmp_path / "out")
    wrong = chain()
    narrower: Any = wrong[3]
    narrower.padding = (0, 0)
    with pytest.raises(
        DamagedFile,
        match=r"layer 3 writes \(8, 30, 30\), and is recorded with \(8, 32, 32\)",
    ):
        n2nfx.load(tmp_path / "out", wrong)


def _rewritten(folder: Path, target: Path, **changes: object) -> Path:
    """A copy of an artifact with other values in its plan, its hashes right."""
    found = artifact.read(folder)
    plan = {key: value for key, value in found.plan.items() if key not in artifact.RESERVED}
    artifact.write(target, plan | changes, found.tensors, found.masks)
    return target


@pytest.mark.parametrize(
    "changes",
    [
        {"graph_sha256": "0" * 64},
        {"kept": {}},
        {"layers": []},
        {"steps": []},
        {"steps": [{"spec": "evil{}"}]},
        {"inputs": [{"name": "x", "shape": "wide", "dtype": "float32"}]},
        {"inputs": [{"name": "x", "shape": [1, 3, 8, 8], "dtype": "__dict__"}]},
        {"inputs": []},
        {"origin": {"name": "no-such-model"}},
        {"origin": {"name": 3}},
        {"origin": {}},
        {"seed": "many"},
        {"more": 1},
    ],
)
def test_a_plan_that_does_not_fit_is_a_damaged_file(
    changes: dict[str, object], tmp_path: Path
) -> None:
    small().save(tmp_path / "out")
    damaged = _rewritten(tmp_path / "out", tmp_path / "damaged", **changes)
    with pytest.raises(N2nfxError) as error:
        n2nfx.load(damaged, None if "origin" in changes else chain())
    assert str(damaged) in str(error.value) or "model=" in str(error.value)


def test_missing_and_foreign_tensors_are_named(tmp_path: Path) -> None:
    small().save(tmp_path / "out")
    found = artifact.read(tmp_path / "out")
    plan = {key: value for key, value in found.plan.items() if key not in artifact.RESERVED}
    bias = {name: value for name, value in found.tensors.items() if name != "0.bias"}
    for case, tensors in (
        ("0.bias", bias),
        ("extra", found.tensors | {"extra": torch.zeros(1)}),
        ("0.bias", found.tensors | {"0.bias": torch.zeros(3)}),
        ("0.bias", found.tensors | {"0.bias": torch.zeros(8, dtype=torch.int64)}),
    ):
        artifact.write(tmp_path / "damaged", plan, tensors, found.masks, force=True)
        with pytest.raises(DamagedFile, match=case):
            n2nfx.load(tmp_path / "damaged", chain())


def test_what_was_loaded_is_saved_and_loaded_again_with_its_whole_history(tmp_path: Path) -> None:
    outcome = small()
    outcome.save(tmp_path / "one")
    loaded = n2nfx.load(tmp_path / "one", chain())
    assert [step.spec for step in loaded.history] == [step.spec for step in outcome.record]
    Pipeline([])(loaded).save(tmp_path / "two")
    same(loaded, n2nfx.load(tmp_path / "two", chain()))


def test_two_pipelines_are_saved_as_one_history(tmp_path: Path) -> None:
    stemmed = Pipeline([SmallInputStem()])(n2nfx.trace(chain(), IMAGE), seed=3)
    pruned = Pipeline([RandomPruning(0.3), N2NSkip(0.3, hops=(2,))])(stemmed.network, seed=4)
    pruned.save(tmp_path / "out")
    same(pruned.network, n2nfx.load(tmp_path / "out", chain()))


def test_what_is_handed_in_and_no_artifact_could_have_is_a_usage_error(tmp_path: Path) -> None:
    small().save(tmp_path / "out")
    wrong: list[Any] = [nn.Linear, str(tmp_path / "nett.py:build"), "resnet5"]
    for model in wrong:
        with pytest.raises(UsageError) as caught:
            n2nfx.load(tmp_path / "out", model)
        assert "example" not in str(caught.value)


class Scale(nn.Module):
    """A scale that is learned, and printed, as some models do."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.tensor(start))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.by

    def extra_repr(self) -> str:
        return f"by={self.by.item():.3f}"


def test_what_a_module_prints_of_what_it_learned_makes_no_other_model(tmp_path: Path) -> None:
    trained = nn.Sequential(*chain(), Scale(3.0))
    outcome = n2nfx.transform(trained, density=0.2, skip_ratio=0.3, hops=(2,), example=IMAGE)
    outcome.save(tmp_path / "out")
    same(outcome.network, n2nfx.load(tmp_path / "out", nn.Sequential(*chain(), Scale(1.0))))


@pytest.mark.parametrize(
    ("place", "other", "told"),
    [
        ("0", nn.Conv2d(3, 8, 3, padding=2, dilation=2), r"dilation \[2, 2\], .* with \[1, 1\]"),
        (
            "0",
            nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular"),
            "padding_mode circular, and is recorded with zeros",
        ),
        ("1", nn.BatchNorm2d(8, eps=1.0), "eps 1.0, and is recorded with 1e-05"),
    ],
)
def test_a_model_whose_modules_are_set_otherwise_is_another(
    place: str, other: nn.Module, told: str, tmp_path: Path
) -> None:
    small().save(tmp_path / "out")
    model = chain()
    model.set_submodule(place, other)
    with pytest.raises(DamagedFile, match=f"another model: {place} has {told}"):
        n2nfx.load(tmp_path / "out", model)


def test_what_torch_prints_of_its_modules_is_another_in_another_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small().save(tmp_path / "out")
    for kind in (nn.BatchNorm2d, nn.Conv2d, nn.ReLU):
        monkeypatch.setattr(kind, "extra_repr", lambda self: "said otherwise")
    monkeypatch.setattr(nn.ReLU, "__constants__", [*nn.ReLU.__constants__, "training"])
    n2nfx.load(tmp_path / "out", chain())


def test_what_only_training_asks_for_is_ones_own_to_change(tmp_path: Path) -> None:
    outcome = small()
    norm = outcome.network.module.get_submodule("1")
    assert isinstance(norm, nn.BatchNorm2d)
    norm.momentum = 0.01
    outcome.save(tmp_path / "out")
    again = n2nfx.load(tmp_path / "out", chain())
    Pipeline([])(again).save(tmp_path / "again")
    n2nfx.load(tmp_path / "again", chain())


class Listed(nn.Module):
    """With a list of parameters, which prints their type and device."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = chain()
        self.gains = nn.ParameterList([torch.ones(1)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) * self.gains[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_list_of_parameters_has_no_precision_of_its_own(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    model = Listed()
    network = n2nfx.trace(model, IMAGE)
    network.module.to(dtype)
    outcome = Pipeline([RandomPruning(0.3), N2NSkip(0.3, hops=(2,))])(network)
    outcome.save(tmp_path / "out")
    again = n2nfx.load(tmp_path / "out", Listed())
    assert {one.dtype for one in again.module.parameters()} == {dtype}
    Pipeline([Reinit()])(again).save(tmp_path / "again")
    n2nfx.load(tmp_path / "again", Listed())


def test_a_network_of_several_precisions_is_loaded_in_them(tmp_path: Path) -> None:
    outcome = small()
    module = outcome.network.module.bfloat16()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.float()
    outcome.save(tmp_path / "out")
    again = n2nfx.load(tmp_path / "out", chain()).module
    expected = {name: one.dtype for name, one in module.state_dict().items()}
    assert {name: one.dtype for name, one in again.state_dict().items()} == expected
    assert len({one.dtype for one in again.parameters()}) == 2


class Named(nn.Module):
    """Takes its input by name."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = chain()

    def forward(self, *, image: Tensor) -> Tensor:
        return self.layers(image)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_new_stem_leaves_how_inputs_are_taken(dtype: torch.dtype, tmp_path: Path) -> None:
    network = n2nfx.trace(Named(), {"image": IMAGE})
    network.module.to(dtype)
    outcome = Pipeline([SmallInputStem(), RandomPruning(0.3)])(network)
    outcome.save(tmp_path / "out")
    assert n2nfx.load(tmp_path / "out", Named()).inputs == network.inputs


def test_a_state_with_other_masks_is_what_is_saved(tmp_path: Path) -> None:
    one, other = (
        n2nfx.transform(chain(), density=d, skip_ratio=0.3, hops=(2,), example=IMAGE)
        for d in (0.2, 0.3)
    )
    one.network.module.load_state_dict(other.network.module.state_dict())
    one.save(tmp_path / "out")
    again = n2nfx.load(tmp_path / "out", chain())
    assert again.nnz == other.network.nnz
    assert [skip.nnz for skip in again.skips] == [skip.nnz for skip in other.network.skips]
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.module.eval()(x), other.network.module.eval()(x))


def test_a_file_is_built_again_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(
        "import torch\ndef build(num_classes=3):\n    return torch.nn.Linear(4, num_classes)\n"
    )
    outcome = n2nfx.transform(f"{file}:build", density=0.5, num_classes=6, input_shape=(4,))
    outcome.save(tmp_path / "out")
    same(outcome.network, n2nfx.load(tmp_path / "out", f"{file}:build"))


def palindrome(m: Any, x: Tensor) -> Tensor:
    for layer in (m.a, m.b, m.b, m.a):
        x = layer(x).relu()
    return x


def test_a_branch_between_later_calls_of_layers_comes_back(tmp_path: Path) -> None:
    model = Model(palindrome, a=nn.Linear(8, 8), b=nn.Linear(8, 8))
    options: dict[str, Any] = {"density": 0.5, "skip_ratio": 0.5, "hops": (1, 2, 3)}
    outcome = n2nfx.transform(model, example=torch.randn(2, 8), **options)
    assert any((1, 1) in skip.calls for skip in outcome.network.skips)
    outcome.save(tmp_path / "net")
    same(n2nfx.load(tmp_path / "net", model), outcome.network)


def packed(m: Any, x: Tensor, lengths: Tensor) -> Tensor:
    rows = nn.utils.rnn.pack_padded_sequence(m.a(x), lengths, True, enforce_sorted=False)
    return m.b(rows)[1][0][-1]


def test_a_model_that_looks_at_values_is_loaded_on_its_example(tmp_path: Path) -> None:
    model = Model(packed, a=nn.Linear(4, 8), b=nn.LSTM(8, 8, batch_first=True))
    example = torch.randn(2, 6, 4), torch.tensor([6, 3])
    outcome = n2nfx.transform(model, density=0.5, example=example)
    outcome.save(tmp_path / "net")
    with pytest.raises(DamagedFile, match=r"what it was traced on: load\(example=\)"):
        n2nfx.load(tmp_path / "net", model)
    loaded = n2nfx.load(tmp_path / "net", model, example=example)
    assert torch.equal(loaded.module.eval()(*example), outcome.network.module.eval()(*example))


def test_a_file_of_ones_own_is_loaded_on_the_example_that_it_brings(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n"
        "class Half(nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n"
        "        self.a, self.b = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU())\n"
        "    def forward(self, x):\n        x = self.a(x)\n"
        "        return x if x.sum() == 0 else self.b(x[x[:, 0] != 0]).relu()\n"
        "def build():\n    return Half(), torch.ones(2, 8)\n"
    )
    name = f"{tmp_path / 'net.py'}:build"
    outcome = n2nfx.transform(name, density=0.5, skip_ratio=0.0)
    outcome.save(tmp_path / "net")
    assert torch.equal(
        n2nfx.load(tmp_path / "net", name).module(torch.ones(3, 8)),
        outcome.network.module(torch.ones(3, 8)),
    )
