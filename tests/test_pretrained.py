"""Trained weights: where this machine has them they are the model's, and nothing is downloaded."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file
from torch import Tensor, nn

import n2nfx
from n2nfx import models
from n2nfx.cli import main
from n2nfx.errors import CannotOperate, UsageError

VISION = "torchvision:squeezenet1_1"  # as of torchvision 0.29: one file of 5 MB
VISION_FILE = "squeezenet1_1-b8a52dc0.pth"
TIMM = "timm:mobilenetv3_small_050"
HUB = "timm:test_resnet"

State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which torch.hub keeps what it downloaded, empty; and no way to the network."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something was to be downloaded")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    hub: Any = importlib.import_module("huggingface_hub.file_download")
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"), raising=False)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "hf_hub_download", refuse)
    path = tmp_path / "torch" / "hub" / "checkpoints"
    path.mkdir(parents=True)
    return path


def trained(name: str) -> State:
    """The state of a model that is not the one that seed 0 gives."""
    return models.build(name, seed=77).module.state_dict()


def assert_has(module: nn.Module, state: State) -> None:
    own = module.state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(own[name], state[name]) for name in state)


def put(state: State, path: Path) -> State:
    torch.save(state, path)
    return state


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


def test_torchvisions_weights_are_read_from_the_cache_of_torch_hub(checkpoints: Path) -> None:
    state = put(trained(VISION), checkpoints / VISION_FILE)
    assert_has(models.build(VISION, pretrained="yes").module, state)


def test_timms_weights_are_read_from_the_cache_of_torch_hub(checkpoints: Path) -> None:
    file = importlib.import_module("timm.models").get_pretrained_cfg(TIMM.partition(":")[2]).url
    state = put(trained(TIMM), checkpoints / file.rpartition("/")[2])
    assert_has(models.build(TIMM, pretrained="yes").module, state)


def test_timms_weights_are_read_from_the_cache_of_the_hugging_face_hub(tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
    (repository / "snapshots" / "one").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("one")
    state = trained(HUB)
    save_file(state, repository / "snapshots" / "one" / "model.safetensors")
    assert_has(models.build(HUB, pretrained="yes").module, state)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (VISION, f"{VISION_FILE}: curl --create-dirs -Lo"),
        ("torchvision:quantized_resnet18", "resnet18-f37072fd.pth"),
        (TIMM, "pretrained=True"),
        (HUB, "pretrained=True"),
        ("timm:nf_resnet26", "has no trained weights"),
    ],
)
def test_weights_that_are_not_here_are_not_fetched_but_told_of(name: str, says: str) -> None:
    with pytest.raises(CannotOperate, match=says):
        models.build(name, pretrained="yes")


def test_what_nobody_trained_has_no_trained_weights(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text("def build():\n    raise AssertionError\n")
    for model in ("n2nfx:mlp", f"{file}:build"):
        with pytest.raises(UsageError, match="has no trained weights"):
            models.build(model, pretrained="yes")
    with pytest.raises(UsageError, match="for a model's name"):
        n2nfx.transform(nn.Linear(4, 4), density=0.5, pretrained=True, example=torch.zeros(1, 4))


def test_a_pruned_network_keeps_trained_weights_and_is_loaded_without_their_file(
    checkpoints: Path, tmp_path: Path
) -> None:
    state = put(trained(VISION), checkpoints / VISION_FILE)
    outcome = n2nfx.transform(
        VISION, density=0.3, skip_ratio=0.2, pretrained=True, input_shape=(3, 64, 64)
    )
    network = outcome.network
    for layer in network.layers:
        mask, weight = network.masks[layer.weight], network.module.get_parameter(layer.weight)
        assert torch.equal(weight, state[layer.weight] * mask)
    outcome.save(tmp_path / "out")
    (checkpoints / VISION_FILE).unlink()
    again = n2nfx.load(tmp_path / "out")
    assert again.origin.pretrained
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(again.module.eval()(x), network.module.eval()(x))


@pytest.fixture
def artifact(checkpoints: Path, tmp_path: Path) -> Path:
    """All the trained weights of a model."""
    put(trained(VISION), checkpoints / VISION_FILE)
    network = n2nfx.transform(VISION, density=1.0, skip_ratio=0, pretrained=True)
    network.save(tmp_path / "artifact")
    return tmp_path / "artifact"


def frobenius(*arguments: object) -> list[float]:
    result = run("analyze", *arguments, "--times", "0.1,1", "--alpha", "none", "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["comparisons"][0]["frobenius"]


def test_the_reference_of_an_artifact_has_trained_weights_as_it_had(artifact: Path) -> None:
    """At density 1 nothing is left of F, if the weights are the same."""
    assert max(frobenius(artifact, "--reference", "squeezenet1_1")) == 0
    assert min(frobenius(artifact, "--reference", VISION, "--no-pretrained")) > 0
    told = run("analyze", artifact, "--reference", VISION, "--alpha", "none").stderr
    assert f"{VISION}: with trained weights, as the artifact; or else --no-pretrained" in told


def test_a_reference_that_is_no_model_of_a_zoo_has_the_weights_of_its_file(
    artifact: Path, tmp_path: Path
) -> None:
    file = tmp_path / "net.py"
    file.write_text(
        "import n2nfx\n"
        "def build():\n"
        f"    model = n2nfx.models.build({VISION!r}, pretrained='yes')\n"
        "    return model.module, model.example\n"
    )
    assert max(frobenius(artifact, "--reference", f"{file}:build")) == 0


def test_a_reference_whose_trained_weights_are_not_here_is_not_compared_without(
    artifact: Path, checkpoints: Path
) -> None:
    (checkpoints / VISION_FILE).unlink()
    result = run("analyze", artifact, "--reference", VISION)
    assert result.exit_code == 3
    assert "--no-pretrained" in result.stderr
    assert f"curl --create-dirs -Lo {checkpoints / VISION_FILE}" in result.stderr


def test_models_that_are_named_have_trained_weights_on_request(artifact: Path) -> None:
    graph = artifact.parent / "graph.npz"
    run("analyze", VISION, "--pretrained", "--alpha", "none", "--export", graph)
    assert max(frobenius(artifact, graph)) == 0
    assert run("inspect", VISION, "--pretrained").exit_code == 0
    assert run("inspect", TIMM, "--pretrained").exit_code == 3


def test_trained_weights_that_are_loaded_into_a_transformed_network_keep_its_masks(
    checkpoints: Path,
) -> None:
    put(trained(VISION), checkpoints / VISION_FILE)
    network = n2nfx.transform(VISION, density=0.3, skip_ratio=0.2, input_shape=(3, 64, 64)).network
    before = {name: mask.clone() for name, mask in network.masks.items()}
    state = models.build(VISION, pretrained="yes").module.state_dict()
    found = network.module.load_state_dict(state, strict=False)
    assert found.unexpected_keys == []
    assert set(found.missing_keys) == {skip.weight for skip in network.skips}
    acting = n2nfx.bind.as_it_acts(network)
    assert all(torch.equal(acting.masks[name], before[name]) for name in before)
    assert acting.nnz == network.nnz
    x = torch.rand(2, 3, 64, 64)
    output = network.module.eval()(x)
    baked = n2nfx.bake(network).module
    assert torch.equal(output, baked.eval()(x))
    name = network.layers[1].weight
    assert torch.equal(baked.get_parameter(name), state[name] * before[name])


@pytest.mark.slow
def test_a_detector_is_loaded_without_the_file_of_its_weights(
    checkpoints: Path, tmp_path: Path
) -> None:
    """With trained weights it is made of other modules, with frozen norms."""
    name = "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn"
    file = checkpoints / "fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth"
    put({k: v for k, v in trained(name).items() if not k.endswith("batches_tracked")}, file)
    outcome = n2nfx.transform(name, density=0.1, skip_ratio=0.2, pretrained=True)
    assert any("Frozen" in type(part).__name__ for part in outcome.network.module.modules())
    outcome.save(tmp_path / "out")
    file.unlink()
    again = n2nfx.load(tmp_path / "out")
    picture = [torch.rand(3, 100, 140)]
    one, other = (m.eval()(picture)[0] for m in (again.module, outcome.network.module))
    assert all(torch.equal(one[key], other[key]) for key in one)
