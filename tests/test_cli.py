"""The command line: in process through click's runner, and as a real subprocess."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import n2nfx
from n2nfx.cli import main

MLP = ["transform", "n2nfx:mlp", "--density", "0.2", "--skip-ratio", "0.5"]
N = 3072 * 512 + 512 * 256 + 256 * 128 + 128 * 64


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "n2nfx", *arguments],
        capture_output=True, text=True, env=os.environ | environment, check=False,
    )  # fmt: skip


def test_help_and_version_load_no_torch() -> None:
    for argument in ("--help", "--version"):
        code = (
            "import sys\nfrom n2nfx.cli import main\n"
            f"try: main([{argument!r}])\nexcept SystemExit: pass\n"
            "loaded = {'torch', 'numpy', 'rich', 'pydantic'} & set(sys.modules)\n"
            "assert not loaded, loaded"
        )
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_every_command_has_help_and_is_listed() -> None:
    listed = run("--help").stdout
    for command in (
        "transform",
        "inspect",
        "analyze",
        "verify",
        "data",
        "models",
        "passes",
        "doctor",
    ):
        assert command in listed
        assert run(command, "--help").exit_code == 0


def test_the_ledger_has_the_exact_budget_and_its_exact_split() -> None:
    result = run(*MLP, "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    counts = data["counts"]
    assert data["schema"] == "n2nfx.transform/1"
    assert counts["reference"] == N
    assert counts["kept"] == round(0.2 * N)
    assert counts["skip"] == round(0.5 * counts["kept"])
    assert counts["sequential"] + counts["skip"] == counts["kept"]
    assert sum(row["kept"] for row in data["ledger"]) == counts["kept"]
    assert sum(row["kept"] * row["uses"] for row in data["ledger"]) == counts["multiply_adds"]


def test_the_tables_show_every_layer_skip_and_sum() -> None:
    result = run(*MLP)
    assert result.exit_code == 0
    for piece in (
        "512x3072",
        "128x3072",
        f"{round(0.2 * N):,}",
        f"{N:,}",
        "multiply-adds",
        "Next:",
    ):
        assert piece in result.stdout


def test_effective_weights_and_dead_channels_are_summed_and_told_for_every_layer() -> None:
    data = json.loads(run(*MLP[:2], "--density", "0.01", "--skip-ratio", "0.5", "--json").stdout)
    found, ledger = data["connectivity"], data["ledger"]
    layers = [row for row in ledger if row["kind"] == "linear"]
    assert found["effective"] == sum(row["effective"] for row in ledger)
    assert found["effective_density"] == found["effective"] / N
    assert 0 < found["effective"] < data["counts"]["kept"]
    assert found["dead_channels"] == sum(row["dead_channels"] for row in layers) > 0
    assert found["channels"] == 512 + 256 + 128 + 64
    assert found["connected"]
    assert found["hubs"] == []
    shown = run(*MLP[:2], "--density", "0.01", "--skip-ratio", "0.5").stdout
    sums = {line.split("  ")[0]: line.split() for line in shown.splitlines()}
    assert sums["effective"][1:3] == [f"{found['effective']:,}", f"{N:,}"]
    assert sums["dead channels"][2:4] == [f"{found['dead_channels']:,}", f"{found['channels']:,}"]
    assert found["collapse"] is None


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_an_empty_layer_and_a_network_that_is_cut_get_a_warning(form: list[str]) -> None:
    shown = run(*MLP[:2], "--density", "0.00001", "--floor", "0", *form)
    assert shown.exit_code == 0
    warnings = [line for line in shown.stderr.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 2
    assert "no path of kept weights leads from its input to its output" in warnings[0]
    assert warnings[1].endswith(": 4, 6")
    if form:
        collapse = json.loads(shown.stdout)["connectivity"]["collapse"]
        assert warnings[0].endswith(f"it ends at {', '.join(collapse['layers'])}")


def test_operations_that_are_not_followed_are_told(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(
        "import torch\n\n\nclass Net(torch.nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.a = torch.nn.Linear(4, 4)\n"
        "        self.b = torch.nn.Linear(4, 4)\n\n    def forward(self, x):\n"
        "        return self.b(self.a(x).cumsum(1))\n\n\n"
        "def build():\n    return Net(), torch.zeros(1, 4)\n"
    )
    shown = run("transform", f"{file}:build", "--density", "0.5").stdout
    assert "effective is an upper bound: cumsum (1 in all)" in shown


def test_data_goes_to_stdout_and_narration_to_stderr() -> None:
    result = process(*MLP, "--json")
    assert result.returncode == 0
    json.loads(result.stdout)
    assert "tracing n2nfx:mlp" in result.stderr
    assert "n2nskip{ratio=0.5" in result.stderr


def test_a_name_in_two_zoos_says_which_was_taken() -> None:
    result = run("transform", "resnet18", "--density", "0.1", "--input", "3,32,32", "--json")
    assert "torchvision" in result.stderr
    assert "timm:resnet18" in result.stderr
    assert json.loads(result.stdout)["model"] == "torchvision:resnet18"


def test_the_artifact_is_written_named_and_loads(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    result = run(*MLP, "--out", str(out))
    assert result.exit_code == 0, result.output
    for name in ("plan.json", "weights.safetensors", "MANIFEST.sha256"):
        assert str(out / name) in result.stdout
    assert n2nfx.load(out).nnz == round(0.2 * N)


def test_the_next_command_that_is_shown_works(tmp_path: Path) -> None:
    out = tmp_path / "with space"
    shown = process(*MLP, "--out", str(out)).stdout
    (command,) = [line.removeprefix("Next: ") for line in shown.splitlines() if "Next:" in line]
    command = command.replace("python", sys.executable, 1)
    printed = subprocess.run(command, shell=True, check=True, capture_output=True, text=True)
    assert float(printed.stdout) == round(0.2 * N) / N


def test_a_directory_that_is_there_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    result = run(*MLP, "--out", str(tmp_path))
    assert result.exit_code == 2
    assert str(tmp_path) in result.stderr
    assert "tracing" not in result.stderr
    assert run(*MLP, "--out", str(tmp_path), "--force").exit_code == 2
    assert (tmp_path / "mine.txt").read_text() == "keep me"


def test_force_replaces_an_older_artifact(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    assert run(*MLP, "--out", out).exit_code == 0
    assert run(*MLP, "--out", out).exit_code == 2
    again = run("transform", "n2nfx:mlp", "--density", "0.1", "--out", out, "--force")
    assert again.exit_code == 0, again.output
    assert n2nfx.load(out).nnz == round(0.1 * N)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["transform", "resnet5O", "--density", "0.1"], 2, "resnet50"),
        (["transform", "n2nfx:mlp", "--density", "1.5"], 2, "above 0 and at most 1"),
        (["transform", "n2nfx:mlp", "--density", "0"], 2, "above 0 and at most 1"),
        (["transform", "n2nfx:mlp", "--density", "nan"], 2, "density"),
        (["transform", "n2nfx:mlp", "--density", "much"], 2, "much"),
        (["transform", "n2nfx:mlp"], 2, "--density"),
        ([*MLP[:4], "--skip-ratio", "1"], 2, "at least 0 and below 1"),
        ([*MLP[:4], "--skip-ratio", "-0.1"], 2, "at least 0 and below 1"),
        ([*MLP, "--pruner", "randm"], 2, "did you mean random"),
        ([*MLP, "--hops", "0"], 2, "hops"),
        ([*MLP, "--hops", "two"], 2, "two"),
        ([*MLP, "--kernel", "2"], 2, "odd"),
        ([*MLP, "--wiring", "papper"], 2, "paper"),
        ([*MLP, "--wiring", "paper", "--init", "zero"], 2, "linear"),
        ([*MLP, "--skip-ration", "0.5"], 2, "--skip-ratio"),
        ([*MLP, "--hops", "9"], 3, "Hops that would do: 1, 2"),
        ([*MLP[:2], "--density", "0.9", "--skip-ratio", "0.9"], 3, "hold at most 425,984"),
        ([*MLP[:2], "--density", "0.001", "--floor", "1000"], 3, "1000"),
        (["transfrom"], 2, "transform"),
        (["inspect"], 2, "MODEL"),
        (["inspect", "resnet5O"], 2, "resnet50"),
        (["inspect", "n2nfx:mlp", "--hops", "0"], 2, "hops"),
        (["inspect", "n2nfx:mlp", "--hops", "two"], 2, "two"),
        (["inspect", "n2nfx:mlp", "--wiring", "papper"], 2, "paper"),
        (["inspect", "n2nfx:mlp", "--num-classes", "0"], 2, "num_classes"),
        (["inspect", "n2nfx:vgg19_cifar", "--input", "3,16,16"], 3, "too small"),
        (["inspect", "torchvision:resnet18", "--input", "4,32,32"], 2, "3 channels"),
        (["models", "no-such-thing"], 2, "no-such-thing"),
    ],
)  # fmt: skip
def test_bad_input_gets_a_line_that_says_what_would_work(
    arguments: list[str], code: int, told: str
) -> None:
    result = run(*arguments)
    assert result.exit_code == code, result.output
    assert told in result.stderr
    assert "Traceback" not in result.output


def net(tmp_path: Path, forward: str) -> str:
    """A model in a file of one's own, its forward given as lines."""
    file = tmp_path / "net.py"
    file.write_text(
        "import torch\n\n\nclass Net(torch.nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.fc = torch.nn.Linear(4, 4)\n\n"
        f"    def forward(self, x):\n{forward}\n"
        "        return self.fc(x)\n\n\ndef build():\n    return Net(), torch.zeros(1, 4)\n"
    )
    return f"{file}:build"


def test_a_forward_that_cannot_run_is_named_with_module_and_line(tmp_path: Path) -> None:
    result = process("transform", net(tmp_path, "        x = x[:, :3]"), "--density", "0.5")
    assert result.returncode == 3
    assert "net.py:11" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_model_that_cannot_be_traced_is_pruned_and_the_line_is_told(tmp_path: Path) -> None:
    forward = "        if x.sum() > 0:\n            x = -x\n        print('here')"
    result = process("transform", net(tmp_path, forward), "--density", "0.5", "--json")
    assert result.returncode == 0
    assert json.loads(result.stdout)["counts"]["kept"] == 8
    assert "the whole model (Net) is kept as it is" in result.stderr
    assert "net.py:10" in result.stderr


def test_a_full_disk_leaves_nothing_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    result = run(*MLP, "--out", str(tmp_path / "out"))
    assert result.exit_code == 3
    assert "No space left on device" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_leaves_nothing_and_exits_130(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    result = run(*MLP, "--out", str(tmp_path / "out"))
    assert result.exit_code == 130
    assert list(tmp_path.iterdir()) == []


# What a model is made of.


def test_inspect_tells_layers_totals_and_skips_for_every_hop() -> None:
    result = run("inspect", "n2nfx:mlp", "--hops", "2,3", "--json")
    assert result.exit_code == 0, result.output
    data = json.loads(result.stdout)
    assert data["schema"] == "n2nfx.inspect/1"
    assert data["name"] == "n2nfx:mlp"
    assert [spec["shape"] for spec in data["inputs"]] == [[1, 3072]]
    totals, layers = data["totals"], data["layers"]
    assert (totals["layers"], totals["weights"], totals["multiply_adds"]) == (4, N, N)
    assert totals["nodes"] == 9
    assert totals["trace_ms"] > 0
    assert [layer["name"] for layer in layers] == ["0", "2", "4", "6"]
    assert sum(layer["size"] for layer in layers) == N
    assert {layer["layout"] for layer in layers} == {"vectors"}
    two, three = data["hops"]
    assert (two["hop"], three["hop"]) == (2, 3)
    assert [(s["source"], s["target"], s["size"]) for s in three["skips"]] == [
        ("input", "4", 128 * 3072),
        ("0", "6", 64 * 512),
    ]
    for found in (two, three, data["together"]):
        assert found["room"] == sum(skip["size"] for skip in found["skips"])
    assert data["together"]["room"] == two["room"] + three["room"]
    assert data["notes"] == []


def test_what_inspect_says_a_hop_can_hold_is_what_transform_can_spend() -> None:
    (found,) = json.loads(run("inspect", "timm:resnet18", "--hops", "3", "--json").stdout)["hops"]
    room = found["room"]
    job = ["transform", "timm:resnet18", "--density", "1", "--skip-ratio", "0.99", "--json"]
    refused = run(*job)
    assert refused.exit_code == 3
    assert f"hold at most {room:,}" in refused.stderr


def test_inspect_groups_layers_by_how_they_are_laid_out(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(
        "import torch\n\n\nclass Net(torch.nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.stem = torch.nn.Conv2d(3, 8, 2)\n"
        "        self.last = torch.nn.Linear(8, 8)\n"
        "        self.token = torch.nn.Linear(8, 8)\n"
        "        self.window = torch.nn.Linear(8, 8)\n"
        "        self.head = torch.nn.Linear(8, 5)\n\n    def forward(self, x):\n"
        "        x = self.last(self.stem(x).permute(0, 2, 3, 1))\n"
        "        x = self.token(x.flatten(1, 2))\n"
        "        x = self.window(x.reshape(-1, 7, 8)).reshape(-1, 49, 8)\n"
        "        return self.head(x.mean(1))\n\n\n"
        "def build():\n    return Net(), torch.zeros(1, 3, 8, 8)\n"
    )
    result = run("inspect", f"{file}:build", "--json")
    assert result.exit_code == 0, result.output
    layouts = {layer["name"]: layer["layout"] for layer in json.loads(result.stdout)["layers"]}
    assert layouts == {
        "stem": "maps",
        "last": "maps, channels last",
        "token": "tokens",
        "window": "tokens, batch folded",
        "head": "vectors",
    }


def test_the_tables_of_inspect_show_layers_layouts_skips_and_refusals() -> None:
    result = run("inspect", "torchvision:resnet18")
    assert result.exit_code == 0, result.output
    assert "tracing" not in result.stdout
    for piece in (
        "layer4.1.conv2",
        "512x512x3x3",
        "11,678,912",
        "1,814,073,344",
        "multiply-adds",
        "maps",
        "vectors",
        "all of these",
        "the same branch as another pair has",
    ):
        assert piece in result.stdout


def test_no_table_is_cut_where_stdout_is_no_terminal(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(
        "import torch\n\n\nclass Net(torch.nn.Module):\n    def __init__(self):\n"
        f"        super().__init__()\n        self.{'a' * 150} = torch.nn.Linear(4, 4)\n\n"
        f"    def forward(self, x):\n        return self.{'a' * 150}(x)\n\n\n"
        "def build():\n    return Net(), torch.zeros(1, 4)\n"
    )
    for command in (["inspect"], ["transform", "--density", "0.5"]):
        shown = run(*command, f"{file}:build").stdout
        assert "a" * 150 in shown
        assert "…" not in shown


def test_a_note_is_printed_with_its_brackets(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(
        "import warnings\n\nimport torch\n\n\ndef build():\n"
        "    warnings.warn('mind the [gap]')\n"
        "    return torch.nn.Sequential(torch.nn.Linear(4, 4)), torch.zeros(1, 4)\n"
    )
    assert "note: mind the [gap]" in run("inspect", f"{file}:build").stdout


def test_inspect_tells_what_is_not_prunable_and_why(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(
        "import torch\n\n\nclass Net(torch.nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        self.a = torch.nn.Linear(4, 4)\n"
        "        self.b = torch.nn.Parameter(torch.ones(2, 4, 4))\n\n    def forward(self, x):\n"
        "        return torch.nn.functional.linear(self.a(x), self.b[0] + self.b[1])\n\n\n"
        "def build():\n    return Net(), torch.zeros(1, 4)\n"
    )
    result = run("inspect", f"{file}:build")
    assert result.exit_code == 0, result.output
    assert any(
        line.startswith("note: ") and "not prunable" in line for line in result.stdout.splitlines()
    )


def test_models_filters_and_passes_lists_arguments() -> None:
    names = run("models", "n2nfx:*").stdout.split()
    quarters = ["n2nfx:resnet50_cifar_quarter", "n2nfx:vgg19_cifar_quarter"]
    assert names == sorted(["n2nfx:mlp", "n2nfx:resnet50_cifar", "n2nfx:vgg19_cifar", *quarters])
    assert json.loads(run("models", "vgg19", "--json").stdout)["schema"] == "n2nfx.models/1"
    assert "n2nskip{ratio hops=3" in run("passes").stdout
    listed = json.loads(run("passes", "--json").stdout)["passes"]
    assert {entry["name"] for entry in listed} >= {"n2nskip", "random", "resskip"}


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("n2nfx.operate.transform", broken)
    result = run(*MLP)
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)
