"""`n2nfx data`, and `transform --data`: what is printed, where, and the exit codes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from data_samples import Set, cifar_bytes, cifar_set, fashion_set, pixels, serving
from PIL import Image

from n2nfx import catalogue, operate
from n2nfx.cli import main
from n2nfx.training.data import load


@pytest.fixture(autouse=True)
def sets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Set]:
    """Small data sets in the place of the real ones, and an empty data folder."""
    made = {"cifar10": cifar_set(), "fashion-mnist": fashion_set()}
    use(monkeypatch, *made.values())
    monkeypatch.setenv("N2NFX_DATA", str(tmp_path / "data"))
    return made


def use(monkeypatch: pytest.MonkeyPatch, *sets: Set) -> None:
    entries = {one.entry.name: one.entry for one in sets}
    monkeypatch.setattr(catalogue, "ENTRIES", {**catalogue.ENTRIES, **entries})


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_ls_says_what_is_here_and_what_brings_the_rest(
    sets: dict[str, Set], tmp_path: Path
) -> None:
    folder = sets["cifar10"].put(tmp_path / "data")
    shown = run("data", "ls")
    assert shown.exit_code == 0
    assert f"cifar10: {folder}" in shown.stdout
    assert "n2nfx data fetch fashion-mnist" in shown.stdout
    listed = json.loads(run("data", "ls", "--json").stdout)
    assert listed["schema"] == "n2nfx.data-ls/1"
    states = {row["name"]: row["state"] for row in listed["data"]}
    here = {"cifar10": "whole", "fashion-mnist-sample": "whole"}
    assert states == {name: "missing" for name in catalogue.ENTRIES} | here
    elsewhere = json.loads(run("data", "ls", "--json", "--root", str(tmp_path / "x")).stdout)
    assert [row["name"] for row in elsewhere["data"] if row["state"] == "whole"] == [
        "fashion-mnist-sample"
    ]


def test_fetch_brings_it_and_verify_finds_it_right(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with serving(dict(cifar_set().archives)) as server:
        use(monkeypatch, cifar_set().at(server.address))
        fetched = run("data", "fetch", "cifar10")
    folder = tmp_path / "data" / "cifar-10-batches-bin"
    assert fetched.exit_code == 0, fetched.output
    assert fetched.stdout == f"cifar10: {folder}\n"
    assert f"fetching {server.address}" in fetched.stderr
    verified = run("data", "verify", "cifar10")
    assert verified.exit_code == 0
    assert verified.stdout.count("right") == 3
    found = json.loads(run("data", "verify", "cifar10", "--json").stdout)
    assert (found["schema"], found["whole"]) == ("n2nfx.data-verify/1", True)


def test_fetch_takes_files_at_hand_into_another_folder(
    sets: dict[str, Set], tmp_path: Path
) -> None:
    (archive,) = sets["cifar10"].archives.items()
    file = tmp_path / archive[0]
    file.write_bytes(archive[1])
    fetched = run("data", "fetch", "cifar10", "--from", str(file), "--root", str(tmp_path / "r"))
    assert fetched.exit_code == 0, fetched.output
    assert len(load("cifar10", tmp_path / "r").train) == 40
    file.write_bytes(archive[1][:-50])
    damaged = run("data", "fetch", "cifar10", "--from", str(file), "--root", str(tmp_path / "s"))
    assert damaged.exit_code == 4
    assert str(file) in damaged.stderr


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_a_damaged_file_is_named_with_exit_code_4(
    sets: dict[str, Set], tmp_path: Path, as_json: tuple[str, ...]
) -> None:
    folder = sets["cifar10"].put(tmp_path / "data")
    data = bytearray(sets["cifar10"].files["data_batch_2.bin"])
    data[-1] ^= 1
    (folder / "data_batch_2.bin").write_bytes(data)
    (folder / "test_batch.bin").unlink()
    result = run("data", "verify", "cifar10", *as_json)
    assert result.exit_code == 4
    lines = result.stderr.splitlines()
    assert len(lines) == 2
    assert f"{folder}/data_batch_2.bin: has SHA-256" in lines[0]
    assert f"{folder}/test_batch.bin: is not there" in lines[1]
    if as_json:
        wrong = [file["name"] for file in json.loads(result.stdout)["files"] if file["wrong"]]
        assert wrong == ["data_batch_2.bin", "test_batch.bin"]


def test_verify_reads_what_has_no_sums(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "import numpy as np\ndef made():\n"
        "    part = np.zeros((2, 1, 4, 4), np.uint8), [0, 1]\n    return part, part\n"
    )
    result = run("data", "verify", f"{file}:made")
    assert result.exit_code == 0
    assert "2 images, 2 classes" in result.stdout


def test_an_image_folder_is_verified_by_its_numbers_and_first_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imagenet = replace(catalogue.ENTRIES["imagenet"], images=(2, 1))
    monkeypatch.setattr(catalogue, "ENTRIES", {"imagenet": imagenet})
    for name in ("train/a/0.png", "train/b/0.png", "val/a/0.png", "val/b/0.png"):
        file = tmp_path / "data" / "imagenet" / name
        file.parent.mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(file)
    result = run("data", "verify", "imagenet")
    assert result.exit_code == 4
    assert result.stderr == "error: imagenet: has 2 images, and 1 are expected\n"
    (tmp_path / "data" / "imagenet" / "train" / "b" / "0.png").write_bytes(b"no")
    result = run("data", "verify", "imagenet")
    assert "train/b/0.png: is neither JPEG nor PNG" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["data", "fetch", "cifar"], 2, "did you mean cifar10"),
        (["data", "fetch", "imagenet"], 3, "ask for access"),
        (["data", "verify", "cifar10"], 3, "n2nfx data fetch cifar10"),
        (["data", "verify", "imagenet"], 3, "not in"),
        (["data", "verify", "own.py"], 2, "own.py:load"),
        (["data", "fetch", "cifar10", "--from", "nowhere"], 2, "nowhere"),
        (["transform", "n2nfx:mlp", "--density", "0.5", "--data", "cifar10"], 3, "not in"),
        (["transform", "x", "--density", "0.5", "--data", "cifar12"], 2, "cifar10"),
    ],
)
def test_bad_input_gets_a_line_that_says_what_would_work(
    arguments: list[str], code: int, told: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert told in result.stderr
    assert "Traceback" not in result.output


NET = """
import torch

def build(num_classes=7):
    return torch.nn.Sequential(
        torch.nn.Conv2d({channels}, 4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1),
        torch.nn.Flatten(), torch.nn.Linear(4, num_classes)
    )
"""


@pytest.fixture
def net(tmp_path: Path) -> str:
    file = tmp_path / "net.py"
    file.write_text(NET.format(channels=1))
    return f"{file}:build"


def transformed(net: str, *arguments: str) -> Result:
    return run("transform", net, "--density", "0.5", "--data", "fashion-mnist", *arguments)


def test_transform_hands_on_the_first_images_and_takes_the_datas_input_and_classes(
    sets: dict[str, Set], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, net: str
) -> None:
    sets["fashion-mnist"].put(tmp_path / "data")
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    real = operate.apply

    def spy(steps: object, network: object, probe: operate.Probe) -> object:
        seen.extend(probe.batches)
        return real(steps, network, probe)  # pyright: ignore

    monkeypatch.setattr(operate, "apply", spy)
    result = transformed(net, "--batch-size", "3", "--batches", "2", "--json")
    assert result.exit_code == 0, result.output
    assert [len(labels) for _, labels in seen] == [3, 3]
    inputs, labels = map(torch.cat, zip(*seen, strict=True))
    first, named = load("fashion-mnist").first(6)
    assert torch.equal(inputs, first)
    assert torch.equal(labels, named)
    data = json.loads(result.stdout)
    asked = data["asked"]
    assert (asked["data"], asked["batch_size"], asked["batches"]) == ("fashion-mnist", 3, 2)
    assert (asked["input_shape"], asked["num_classes"]) == ([1, 6, 6], 10)
    assert data["ledger"][-1]["shape"] == [10, 4]
    assert "--input 1,6,6" in result.stderr


def test_a_larger_input_pads_the_images_and_more_classes_are_taken(
    sets: dict[str, Set], tmp_path: Path, net: str
) -> None:
    sets["fashion-mnist"].put(tmp_path / "data")
    arguments = ("--batch-size", "5", "--input", "1,8,8", "--num-classes", "12", "--json")
    result = transformed(net, *arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["ledger"][-1]["shape"] == [12, 4]


def test_a_network_of_ours_gets_images_of_its_size_and_is_pruned_by_them(
    sets: dict[str, Set], tmp_path: Path
) -> None:
    sets["fashion-mnist"].put(tmp_path / "data")
    arguments = ("--pruner", "snip", "--batch-size", "5", "--json")
    result = transformed("vgg19_cifar", *arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["asked"]["input_shape"] == [1, 32, 32]
    assert "--input 1,32,32" in result.stderr


@pytest.mark.parametrize(
    "arguments", [("--input", "3,6,6"), ("--input", "1,5,6"), ("--num-classes", "5")]
)
def test_what_does_not_fit_the_data_is_told_before_anything_is_built(
    sets: dict[str, Set], tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    sets["fashion-mnist"].put(tmp_path / "data")
    result = transformed("no_such_model", *arguments)
    assert result.exit_code == 2
    assert "pass --input 1,6,6 --num-classes 10" in result.stderr


def test_damaged_data_and_a_batch_too_large_are_told(
    sets: dict[str, Set], tmp_path: Path, net: str
) -> None:
    folder = sets["fashion-mnist"].put(tmp_path / "data")
    too_large = transformed(net)
    assert too_large.exit_code == 2
    assert "a batch of 256 cannot be" in too_large.stderr
    assert transformed(net, "--batch-size", "0").exit_code == 2
    name = "t10k-labels-idx1-ubyte"
    (folder / name).write_bytes(cifar_bytes(pixels(1), pixels(1)[:, 0, 0, 0] % 10))
    damaged = transformed(net, "--batch-size", "5")
    assert damaged.exit_code == 4
    assert str(folder / name) in damaged.stderr
