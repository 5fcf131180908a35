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
from n2nfx.errors import CannotOperate, DamagedFile, UsageError

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


def file_of_timm(name: str) -> str:
    """The name of a file of timm's in the cache of torch.hub."""
    url = importlib.import_module("timm.models").get_pretrained_cfg(name).url
    return url.rpartition("/")[2]


def in_the_hub(tmp_path: Path, repository: str) -> Path:
    """Where the Hugging Face hub keeps the weights of a repository."""
    folder = tmp_path / "hub" / f"models--timm--{repository}"
    (folder / "snapshots" / "one").mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("one")
    return folder / "snapshots" / "one" / "model.safetensors"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [*map(str, arguments)])


def test_torchvisions_weights_are_read_from_the_cache_of_torch_hub(checkpoints: Path) -> None:
    state = put(trained(VISION), checkpoints / VISION_FILE)
    assert_has(models.build(VISION, pretrained="yes").module, state)


def test_timms_weights_are_read_from_the_cache_of_torch_hub(checkpoints: Path) -> None:
    state = put(trained(TIMM), checkpoints / file_of_timm(TIMM.partition(":")[2]))
    assert_has(models.build(TIMM, pretrained="yes").module, state)


def test_timms_weights_are_read_from_the_cache_of_the_hugging_face_hub(tmp_path: Path) -> None:
    state = trained(HUB)
    save_file(state, in_the_hub(tmp_path, "test_resnet.r160_in1k"))
    assert_has(models.build(HUB, pretrained="yes").module, state)


def test_files_of_numpys_format_are_read_by_the_model_itself(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    transformer = importlib.import_module("timm.models.vision_transformer").VisionTransformer
    monkeypatch.setattr(transformer, "load_pretrained", lambda _, file: read.append(file))
    file = checkpoints / file_of_timm("vit_tiny_patch16_224")
    file.touch()
    models.build("timm:vit_tiny_patch16_224", pretrained="yes")
    assert read == [str(file)]


def test_a_deprecated_name_of_timm_has_the_weights_of_its_current_one(tmp_path: Path) -> None:
    state = trained("timm:mnasnet_100")
    save_file(state, in_the_hub(tmp_path, "mnasnet_100.rmsp_in1k"))
    assert_has(models.build("timm:mnasnet_b1", pretrained="yes").module, state)


def test_a_deprecated_name_of_timm_has_weights_where_its_current_one_does() -> None:
    timm: Any = importlib.import_module("timm.models")
    for name, current in timm.get_deprecated_models().items():
        # as of timm 1.0.31 two names stand for a tag that is no more, and none can be built
        says = "are not here" if timm.is_model_pretrained(current) else r"Invalid pretrained tag \("
        with pytest.raises(CannotOperate, match=f"^timm:{name}.*{says}"):
            models.build(f"timm:{name}", pretrained="yes")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        (VISION, f"{VISION_FILE}: curl --create-dirs -Lo"),
        ("torchvision:quantized_resnet18", "resnet18-f37072fd.pth"),
        ("torchvision:raft_small", "raft_small_C_T_V2"),
        (TIMM, "pretrained=True"),
        (HUB, "pretrained=True"),
        ("timm:nf_resnet26", "has no trained weights"),
    ],
)
def test_weights_that_are_not_here_are_not_fetched_but_told_of(name: str, says: str) -> None:
    with pytest.raises(CannotOperate, match=says):
        models.build(name, pretrained="yes")


GARBAGE = b"no weights, but what a proxy answered"


def test_a_damaged_file_of_weights_is_named_with_the_reason_and_how_to_fetch_it_again(
    checkpoints: Path,
) -> None:
    file = checkpoints / VISION_FILE
    put(trained(VISION), file)
    for content in (GARBAGE, b"", file.read_bytes()[:100_000]):
        file.write_bytes(content)
        with pytest.raises(DamagedFile) as caught:
            models.build(VISION, pretrained="yes")
        assert str(caught.value).startswith(f"{file}: cannot be loaded as weights of {VISION}: ")
        assert f"Error: {caught.value.__cause__}"[:60] in str(caught.value)
        assert f"; delete {file} and fetch it again: curl --create-dirs -Lo {file} http" in str(
            caught.value
        )


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({}, "Missing key"),
        ({"features.0.weight": torch.zeros(1)}, "size mismatch for features.0.weight"),
        ([1], "list"),
    ],
)
def test_weights_of_another_model_are_refused_with_what_does_not_fit(
    state: Any, reason: str, checkpoints: Path
) -> None:
    file = checkpoints / VISION_FILE
    put({**trained(VISION), **state} if isinstance(state, dict) and state else state, file)
    with pytest.raises(DamagedFile, match=reason) as caught:
        models.build(VISION, pretrained="yes")
    assert str(caught.value).startswith(f"{file}: cannot be loaded as weights of {VISION}: ")


def test_what_does_not_fit_is_told_in_a_line(checkpoints: Path) -> None:
    file = checkpoints / file_of_timm(TIMM[5:])
    put(trained("torchvision:squeezenet1_1"), file)
    with pytest.raises(DamagedFile, match="Missing key") as caught:
        models.build(TIMM, pretrained="yes")
    assert str(caught.value).startswith(f"{file}: cannot be loaded as weights of {TIMM}: ")
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


def test_a_damaged_file_of_the_hugging_face_hub_is_deleted_where_it_really_is(
    tmp_path: Path,
) -> None:
    """The hub keeps links to its files, and would link the same file again."""
    link, file = in_the_hub(tmp_path, "test_resnet.r160_in1k"), tmp_path / "hub" / "blob"
    file.write_bytes(GARBAGE)
    link.symlink_to(file)
    with pytest.raises(DamagedFile) as caught:
        models.build(HUB, pretrained="yes")
    told = str(caught.value)
    assert told.startswith(f"{link}: cannot be loaded as weights of {HUB}: SafetensorError: ")
    assert f"; delete {file} and fetch it again: python -c 'import timm" in told


def test_a_model_that_cannot_be_built_is_not_blamed_on_its_weights(
    checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(**_: object) -> None:
        raise ValueError("no room")

    put({}, checkpoints / file_of_timm(TIMM[5:]))
    monkeypatch.setattr(importlib.import_module("timm"), "create_model", failing)
    with pytest.raises(CannotOperate, match="cannot be built here: ValueError: no room"):
        models.build(TIMM, pretrained="yes")


def test_torchvisions_trained_weights_have_their_own_number_of_classes(checkpoints: Path) -> None:
    """Torchvision refuses another one; timm has a model of the same name that takes both."""
    state = put(trained(VISION), checkpoints / VISION_FILE)
    assert_has(models.build(VISION, pretrained="yes", num_classes=1000).module, state)
    with pytest.raises(UsageError, match=r"have 1000 classes, not 7: .*in Python\)$"):
        models.build(VISION, pretrained="yes", num_classes=7)
    put({}, checkpoints / "resnet18-f37072fd.pth")
    with pytest.raises(UsageError, match=r"; timm:resnet18 takes both$"):
        models.build("torchvision:resnet18", pretrained="yes", num_classes=7)


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
