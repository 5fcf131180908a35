"""A name becomes one model, always the same, and whatever is wrong with a name is said."""

import importlib
import importlib.util
import pickle
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import n2nfx
from n2nfx import models
from n2nfx.errors import CannotOperate, UsageError

SMALL = "torchvision:squeezenet1_1"

# Importing a zoo may warn about its own dependencies; that is no test of ours.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    timm: Any = importlib.import_module("timm")
    torchvision_models: Any = importlib.import_module("torchvision.models")


def forward(model: models.Model) -> Any:
    inputs = model.example if isinstance(model.example, tuple) else (model.example,)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.module.eval()(*inputs)


def example_shape(model: models.Model) -> tuple[int, ...]:
    assert isinstance(model.example, Tensor)
    return tuple(model.example.shape)


def fingerprint(model: models.Model) -> list[float]:
    return [float(p.detach().double().sum()) for p in model.module.parameters()]


@pytest.fixture
def forgetful() -> Iterator[None]:
    """Forget what the zoos' sources say, before and after, for a test that hides a zoo."""
    models._written.cache_clear()
    yield
    models._written.cache_clear()


# --- seeds and the caller's state --------------------------------------------------------------


def test_the_same_seed_gives_the_same_weights_and_the_same_example() -> None:
    one, two = models.build(SMALL, seed=3), models.build(SMALL, seed=3)
    assert isinstance(one.example, Tensor)
    assert isinstance(two.example, Tensor)
    assert torch.equal(one.example, two.example)
    theirs = two.module.state_dict()
    assert all(torch.equal(v, theirs[k]) for k, v in one.module.state_dict().items())


def test_another_seed_gives_other_weights_and_another_example() -> None:
    one, two = models.build(SMALL, seed=0), models.build(SMALL, seed=1)
    assert fingerprint(one) != fingerprint(two)
    assert isinstance(one.example, Tensor)
    assert isinstance(two.example, Tensor)
    assert not torch.equal(one.example, two.example)


def test_the_weights_do_not_depend_on_the_random_state_of_the_caller() -> None:
    torch.manual_seed(1)
    one = models.build("n2nfx:mlp")
    torch.manual_seed(2)
    assert fingerprint(one) == fingerprint(models.build("n2nfx:mlp"))


def test_the_random_state_of_the_caller_stays_as_it_was() -> None:
    before = torch.get_rng_state()
    models.build(SMALL)
    models.build("timm:test_vit")
    assert torch.equal(torch.get_rng_state(), before)


def test_models_are_made_on_the_cpu_whatever_the_default_device_is() -> None:
    on_cpu = models.build("n2nfx:mlp")
    with torch.device("meta"):
        model = models.build("n2nfx:mlp")
    assert isinstance(model.example, Tensor)
    assert model.example.device.type == "cpu"
    assert fingerprint(model) == fingerprint(on_cpu)


def test_building_prints_nothing_and_warns_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("googlenet", "torchvision:inception_v3", "timm:test_vit", "n2nfx:mlp"):
        assert models.build(name).notes == ()
    assert capsys.readouterr() == ("", "")


# --- which zoo ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("squeezenet1_1", "torchvision:squeezenet1_1"),
        ("timm:test_vit", "timm:test_vit"),
        ("test_vit", "timm:test_vit"),
        ("test_vit.r160_in1k", "timm:test_vit.r160_in1k"),
        ("mlp", "n2nfx:mlp"),
        ("n2nfx:mlp", "n2nfx:mlp"),
    ],
)
def test_a_name_has_one_canonical_form(name: str, canonical: str) -> None:
    model = models.build(name)
    assert model.name == canonical
    assert model.notes == ()


def test_a_name_in_two_zoos_is_torchvisions_and_a_note_names_the_other() -> None:
    assert models.build("resnet18").name == "torchvision:resnet18"
    assert models.build("resnet18").notes == (
        "resnet18 is in torchvision and timm; taking torchvision's (timm:resnet18 for the other)",
    )
    assert models.build("torchvision:resnet18").notes == ()


def test_a_tag_is_timms_even_where_torchvision_has_the_name() -> None:
    assert models.build("resnet18.a1_in1k").name == "timm:resnet18.a1_in1k"


def test_a_deprecated_name_of_timm_works_and_a_note_says_what_it_became() -> None:
    deprecated = "timm:seresnext26tn_32x4d"
    model = models.build(deprecated)
    assert model.name == deprecated
    assert model.notes == (
        "Mapping deprecated model name seresnext26tn_32x4d to current seresnext26t_32x4d.",
    )


def test_reading_the_sources_finds_exactly_what_timm_registers() -> None:
    assert sorted(models._written("timm")) == sorted(timm.list_models())


def test_reading_the_sources_finds_exactly_what_torchvision_registers() -> None:
    assert sorted(models._written("torchvision")) == torchvision_models.list_models()


def test_no_name_of_ours_hides_behind_another_zoos() -> None:
    others = models._written("torchvision") | models._written("timm")
    assert not models._written("n2nfx") & others


def test_only_the_zoo_that_is_needed_is_imported() -> None:
    code = """
import sys
import n2nfx
from n2nfx import models
models.build("mlp"), models.build("n2nfx:vgg19_cifar")
print([zoo for zoo in ("torchvision", "timm") if zoo in sys.modules])
models.build("squeezenet1_1"), models.build("resnet18")  # the second is in timm too
print([zoo for zoo in ("torchvision", "timm") if zoo in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["[]", "['torchvision']"]


def test_a_model_of_timms_asks_for_nothing_but_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    imported = models._imported
    monkeypatch.setattr(models, "_imported", lambda name: (asked.append(name), imported(name))[1])
    models.build("timm:test_vit")
    assert set(asked) == {"timm"}


def test_a_model_that_a_person_registered_with_timm_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(timm.models._registry._model_entrypoints, "mine_alone", nn.Identity)
    assert models._resolve("mine_alone") == ("timm:mine_alone", ())


# --- inputs and classes ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("torchvision:squeezenet1_1", (1, 3, 224, 224)),
        ("torchvision:inception_v3", (1, 3, 299, 299)),
        ("torchvision:lraspp_mobilenet_v3_large", (1, 3, 224, 224)),
        ("torchvision:mc3_18", (1, 3, 16, 112, 112)),
        ("torchvision:s3d", (1, 3, 16, 224, 224)),
        ("torchvision:quantized_shufflenet_v2_x0_5", (1, 3, 224, 224)),
        ("timm:test_vit", (1, 3, 160, 160)),
        ("n2nfx:mlp", (1, 3072)),
    ],
)
def test_the_example_is_one_real_input_of_the_size_that_the_model_takes(
    name: str, shape: tuple[int, ...]
) -> None:
    model = models.build(name)
    assert example_shape(model) == shape
    forward(model)


def test_optical_flow_takes_two_images() -> None:
    model = models.build("raft_small")
    assert isinstance(model.example, tuple)
    assert [tuple(image.shape) for image in model.example] == [(1, 3, 128, 128)] * 2
    assert not torch.equal(*model.example)
    forward(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", torchvision_models.list_models())
def test_every_model_of_torchvision_runs_on_its_example(name: str) -> None:
    if name in ("regnet_y_128gf", "vit_h_14"):
        pytest.skip("more memory than a small machine has")
    model = models.build(f"torchvision:{name}")
    assert model.notes == ()
    forward(model)


def test_an_input_shape_replaces_the_examples() -> None:
    model = models.build("squeezenet1_1", input_shape=(3, 64, 48))
    assert example_shape(model) == (1, 3, 64, 48)
    forward(model)


def test_an_input_shape_is_that_of_both_images_of_optical_flow() -> None:
    model = models.build("raft_small", input_shape=(3, 128, 136))
    assert isinstance(model.example, tuple)
    assert [tuple(image.shape) for image in model.example] == [(1, 3, 128, 136)] * 2


@pytest.mark.parametrize("name", ["squeezenet1_1", "timm:test_vit", "n2nfx:vgg19_cifar"])
def test_the_number_of_classes_can_be_chosen(name: str) -> None:
    assert forward(models.build(name, num_classes=7)).shape == (1, 7)


def test_the_number_of_classes_is_the_zoos_own_unless_chosen() -> None:
    assert forward(models.build("squeezenet1_1")).shape == (1, 1000)


def test_classes_for_a_model_that_has_none_are_refused() -> None:
    with pytest.raises(UsageError, match="takes no num_classes"):
        models.build("raft_small", num_classes=10)


def test_the_mlp_has_its_input_and_behind_its_layers_classes() -> None:
    own = models.build("n2nfx:mlp")
    asked = models.build("n2nfx:mlp", num_classes=10, input_shape=(784,))
    shapes = [[tuple(p.shape) for p in model.module.parameters()] for model in (own, asked)]
    inner = [(256, 512), (128, 256), (64, 128)]
    assert shapes == [[(512, 3072), *inner], [(512, 784), *inner, (10, 64)]]
    assert forward(asked).shape == (1, 10)
    with pytest.raises(UsageError, match="vgg19_cifar takes no in_features"):
        models.build("n2nfx:vgg19_cifar", input_shape=(784,))


@pytest.mark.parametrize("shape", [(), (3, 0, 32), (-1,), 3, "3,32,32", ("3", 32, 32), (1.5,)])
def test_an_impossible_input_shape_is_refused(shape: Any) -> None:
    with pytest.raises(UsageError, match="must be positive sizes without the batch"):
        models.build("n2nfx:mlp", input_shape=shape)


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "10", (10,)])
def test_an_impossible_number_of_classes_is_refused(number: Any) -> None:
    with pytest.raises(UsageError, match=re.escape(f"num_classes is {number!r}, and must be")):
        models.build("n2nfx:vgg19_cifar", num_classes=number)


def test_what_is_no_name_or_seed_is_refused() -> None:
    wrong: Any = None
    with pytest.raises(UsageError, match="a model's name is text, not NoneType"):
        models.build(wrong)
    with pytest.raises(UsageError, match=r"a seed must be a whole number \(int\), not None"):
        models.build("n2nfx:mlp", seed=wrong)


# --- names that nobody has ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("resnet5O", "no zoo has a model 'resnet5O'; did you mean resnet50"),
        ("vgg19_cifer", "did you mean vgg19_cifar"),
        ("test_vitt", "did you mean test_vit"),
        ("torchvison:resnet50", "there is no zoo 'torchvison'; did you mean torchvision?"),
        ("keras:resnet50", "zoos: torchvision, timm, n2nfx; or a file.py:function"),
        ("torchvision:resnet5O", "torchvision has no model 'resnet5O'; did you mean resnet50"),
        ("torchvision:test_vit", "torchvision has no model 'test_vit'; did you mean timm:test_vit"),
        ("timm:vgg19_cifar", "did you mean n2nfx:vgg19_cifar"),
        ("n2nfx:mpl", "n2nfx has no model 'mpl'; did you mean mlp"),
        ("timm:test_vit.r160_in1", "has no tag 'r160_in1'; did you mean test_vit.r160_in1k"),
        ("resnet50.a1_in1kk", "has no tag 'a1_in1kk'; did you mean resnet50.a1_in1k"),
        ("resnet18.", "timm's resnet18 has no tag ''; did you mean resnet18 or"),
        ("timm:resnet18.", "timm's resnet18 has no tag ''; did you mean resnet18 or"),
        ("timm:tv_resnet50.", "has no tag ''; did you mean tv_resnet50?"),
        ("squeezenet1_1.", "no zoo has a model 'squeezenet1_1.'; did you mean squeezenet1_1 or"),
        ("mlp.", "no zoo has a model 'mlp.'; did you mean mlp"),
        ("timm:hf-hub:somebody/resnet", "timm has no model 'hf-hub:somebody/resnet'"),
        ("", "no zoo has a model ''"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_ones(name: str, says: str) -> None:
    for call in (models.build, models.require_known):
        with pytest.raises(UsageError) as caught:
            call(name)
        assert says in str(caught.value)


# --- zoos that are missing or fail -------------------------------------------------------------


@pytest.mark.usefixtures("forgetful")
def test_a_zoo_that_is_not_installed_is_refused_with_the_pip_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(CannotOperate, match=r"^timm is not installed: pip install timm$"):
        models.build("timm:resnet18")
    with pytest.raises(UsageError, match=r"timm, not installed, may have it: pip install timm"):
        models.build("test_vit")
    assert models.build("resnet18").notes == ()
    assert not [name for name in models.names() if name.startswith("timm:")]


def test_a_zoo_that_cannot_be_imported_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist\nand more")

    monkeypatch.setattr(models.importlib, "import_module", broken)
    with pytest.raises(CannotOperate) as caught:
        models.build("torchvision:resnet18")
    assert "(RuntimeError: operator torchvision::nms does not exist)" in str(caught.value)
    assert "pip install --upgrade torchvision" in str(caught.value)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError("no network\nmore"), r"^timm:test_vit cannot be built here: OSError: no network$"),
        (
            ModuleNotFoundError("No module named 'a.b'", name="a.b"),
            r"^timm:test_vit needs the package a: pip install a$",
        ),
    ],
)
def test_a_constructor_that_fails_is_reported_in_one_line(
    error: Exception, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(**_options: object) -> None:
        raise error

    monkeypatch.setattr(timm, "create_model", failing)
    with pytest.raises(CannotOperate, match=says):
        models.build("timm:test_vit")


# --- the list of names -------------------------------------------------------------------------


OURS = [
    f"n2nfx:{name}"
    for name in (
        "mlp", "resnet50_cifar", "resnet50_cifar_quarter", "vgg19_cifar", "vgg19_cifar_quarter"
    )
]  # fmt: skip


def test_the_names_are_those_of_every_zoo_sorted() -> None:
    expected = [f"torchvision:{name}" for name in torchvision_models.list_models()]
    expected += [f"timm:{name}" for name in timm.list_models()]
    expected += OURS
    assert models.names() == sorted(expected)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("vgg19_c", OURS[-2:]),
        ("n2nfx:", OURS),
        ("resnet1?", ["timm:resnet18", "torchvision:resnet18"]),
        ("*:resnet18", ["timm:resnet18", "torchvision:resnet18"]),
        ("SQUEEZE", []),
        ("no_such_model", []),
    ],
)
def test_the_names_are_filtered_by_substring_or_glob(pattern: str, found: list[str]) -> None:
    assert models.names(pattern) == found


# --- file.py:function --------------------------------------------------------------------------

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.fc = nn.Linear(6, classes)
    def forward(self, x):
        return self.fc(x)

def build():
    return Net(), torch.ones(2, 6)

def bare():
    return Net()

def with_classes(num_classes=4):
    return Net(num_classes), torch.ones(1, 6)

def with_two_inputs():
    return Net(), (torch.ones(1, 6), torch.ones(1, 6))

def needy(width):
    return Net(width)

def wrong():
    return 3

def wrong_example():
    return Net(), 3

def raising():
    x = 1
    raise ValueError("no such luck\\nsecond line")

def quitting():
    raise SystemExit("bye")

def talking():
    import warnings
    print("hello")
    warnings.warn("mind the gap")
    return build()

def with_a_list():
    return Net(), [torch.ones(2, 6)]

def by_name():
    return Net(), {"x": torch.ones(2, 6)}

number = 5
"""


@pytest.fixture
def net(tmp_path: Path) -> str:
    """The path of a file with many builders; one file a test, so one module a test."""
    path = tmp_path / "net.py"
    path.write_text(NET)
    return path.as_posix()


def test_a_function_in_a_file_returns_a_module_and_its_example(net: str) -> None:
    model = models.build(f"{net}:build")
    assert model.name == f"{net}:build"
    assert example_shape(model) == (2, 6)
    assert forward(model).shape == (2, 4)
    assert model.notes == ()


@pytest.mark.parametrize(("function", "by_name"), [("with_a_list", False), ("by_name", True)])
def test_the_example_of_a_file_is_whatever_can_be_traced(
    function: str, by_name: bool, net: str
) -> None:
    (spec,) = n2nfx.transform(f"{net}:{function}", density=0.5).network.inputs
    assert (spec.name, spec.shape, spec.by_name) == ("x", (2, 6), by_name)
    assert example_shape(models.build(f"{net}:{function}", input_shape=(6,))) == (1, 6)


def test_a_detector_in_a_file_brings_a_list_of_pictures(tmp_path: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(
        "from part_samples import detector, pictures\n"
        "def build():\n    return detector(), [*pictures(2, 16, 20)]\n"
    )
    outcome = n2nfx.transform(f"{file}:build", density=0.5, skip_ratio=0.3)
    assert [spec.shape for spec in outcome.network.inputs] == [(2, 3, 16, 20)]
    outcome.save(tmp_path / "out")
    assert n2nfx.load(tmp_path / "out", f"{file}:build").inputs == outcome.network.inputs
    model = models.build(f"{file}:build", input_shape=(3, 8, 8))
    assert example_shape(model) == (1, 3, 8, 8)


def test_a_relative_path_stays_relative_in_the_canonical_name(
    net: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(net).parent.parent)
    name = f"./{Path(net).parent.name}/net.py:build"
    assert models.build(name).name == name.removeprefix("./")


def test_a_file_without_an_example_takes_the_input_shape(net: str) -> None:
    assert example_shape(models.build(f"{net}:bare", input_shape=(6,))) == (1, 6)


def test_a_file_without_an_example_or_input_shape_is_refused(net: str) -> None:
    with pytest.raises(UsageError, match=r"return \(module, example\), or pass --input"):
        models.build(f"{net}:bare")


def test_an_input_shape_replaces_a_files_example(net: str) -> None:
    assert example_shape(models.build(f"{net}:build", input_shape=(5, 6))) == (1, 5, 6)


def test_an_input_shape_for_a_files_two_inputs_is_refused(net: str) -> None:
    assert isinstance(models.build(f"{net}:with_two_inputs").example, tuple)
    with pytest.raises(UsageError, match=r"gives one input, and the example of .* has 2"):
        models.build(f"{net}:with_two_inputs", input_shape=(6,))


def test_a_file_is_seeded_as_a_zoo_is(net: str) -> None:
    one, two = models.build(f"{net}:build", seed=5), models.build(f"{net}:build", seed=5)
    assert fingerprint(one) == fingerprint(two)
    assert fingerprint(one) != fingerprint(models.build(f"{net}:build", seed=6))


def test_classes_reach_a_file_that_takes_them(net: str) -> None:
    assert forward(models.build(f"{net}:with_classes")).shape == (1, 4)
    assert forward(models.build(f"{net}:with_classes", num_classes=9)).shape == (1, 9)


def test_classes_for_a_file_that_takes_none_become_a_note(net: str) -> None:
    model = models.build(f"{net}:build", num_classes=9)
    assert model.notes == (f"{net}:build takes no num_classes; it was called without",)


def test_what_a_file_prints_is_kept_off_stdout_and_its_warnings_become_notes(
    net: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert models.build(f"{net}:talking").notes == ("mind the gap",)
    assert capsys.readouterr() == ("", "hello\n")


def test_a_module_from_a_file_can_be_pickled(net: str) -> None:
    one = models.build(f"{net}:build")
    models.build(f"{net}:build")  # a second load must not orphan the classes of the first
    assert torch.equal(forward(one), pickle.loads(pickle.dumps(one.module))(one.example))


def test_an_edited_file_is_loaded_anew(net: str) -> None:
    models.build(f"{net}:build")
    Path(net).write_text(NET.replace("classes=4", "classes=3"))
    assert forward(models.build(f"{net}:build")).shape == (2, 3)


def test_a_file_imports_its_neighbours_and_leaves_the_path_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "n2nfx_test_neighbour.py").write_text("WIDTH = 3\n")
    (tmp_path / "net.py").write_text(
        "import torch, n2nfx_test_neighbour as n\n"
        "def build(): return torch.nn.Linear(n.WIDTH, 2), torch.ones(1, n.WIDTH)\n"
    )
    before = list(sys.path)
    assert forward(models.build(f"{tmp_path}/net.py:build")).shape == (1, 2)
    assert sys.path == before


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("raising", "{net}:35: ValueError: no such luck"),
        ("quitting", "{net}:38: SystemExit: bye"),
        (
            "needy",
            "{net}: TypeError: needy() missing 1 required positional argument: 'width'",
        ),
    ],
)
def test_what_a_function_raises_is_one_line_with_file_and_line(
    function: str, says: str, net: str
) -> None:
    with pytest.raises(CannotOperate) as caught:
        models.build(f"{net}:{function}")
    assert str(caught.value) == says.format(net=net)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("x = 1\nimport no_such_package_here\n", ":2: ModuleNotFoundError: No module named"),
        ("def build(:\n    pass\n", ":1: SyntaxError: invalid syntax"),
        ("x = 1\nx.y.z\n", ":2: AttributeError: 'int' object has no attribute 'y'"),
        ("# coding: no-such\n", ": SyntaxError: unknown encoding: no-such"),
        ("import sys\nsys.exit(3)\n", ":2: SystemExit: 3"),
        ("raise KeyError\n", ":1: KeyError"),
    ],
)
def test_a_file_that_cannot_be_loaded_is_refused_with_file_and_line(
    source: str, says: str, tmp_path: Path
) -> None:
    path = tmp_path / "net.py"
    path.write_text(source)
    loaded = set(sys.modules)
    with pytest.raises(CannotOperate) as caught:
        models.build(f"{path}:build")
    assert str(caught.value).startswith(f"{path.as_posix()}{says}")
    assert "\n" not in str(caught.value)
    assert set(sys.modules) == loaded


@pytest.mark.parametrize(
    ("function", "returned"), [("wrong", "int"), ("wrong_example", r"\(Net, int\)")]
)
def test_a_function_that_returns_something_else_is_refused(
    function: str, returned: str, net: str
) -> None:
    with pytest.raises(CannotOperate, match=f"returned {returned}; it must return an nn.Module"):
        models.build(f"{net}:{function}")


def test_a_missing_file_is_refused_with_the_files_that_are_near(net: str) -> None:
    folder = Path(net).parent.as_posix()
    with pytest.raises(UsageError, match=r"there is no file .*/nett.py; did you mean net.py\?"):
        models.build(f"{folder}/nett.py:build")


@pytest.mark.parametrize(
    ("function", "says"),
    [
        ("biuld", "has no function 'biuld'; did you mean build? (it has Net, build, bare, "),
        ("number", "has no function 'number' (it has Net, build, "),
        ("", "has no function '' (it has Net, build, "),
    ],
)
def test_a_missing_function_is_refused_with_those_that_are_there(
    function: str, says: str, net: str
) -> None:
    with pytest.raises(UsageError) as caught:
        models.build(f"{net}:{function}")
    assert says in str(caught.value)


def test_a_file_without_a_function_is_refused_saying_how_to_name_one(net: str) -> None:
    with pytest.raises(UsageError, match=r"name the function in it too, as in .*net\.py:build"):
        models.build(net)


# Images of other channels


@pytest.mark.parametrize("name", ["n2nfx:resnet50_cifar", "timm:resnet18"])
def test_models_of_timm_and_ours_are_built_for_the_channels_of_the_input(name: str) -> None:
    model = models.build(name, num_classes=10, input_shape=(1, 32, 32))
    assert forward(model).shape == (1, 10)
    assert next(model.module.parameters()).shape[1] == 1


def test_a_torchvision_model_says_that_it_takes_three_channels() -> None:
    with pytest.raises(UsageError, match="3 channels, not of 1; models of timm and n2nfx"):
        models.build("torchvision:resnet18", input_shape=(1, 32, 32))
    with pytest.raises(UsageError, match="mlp takes no in_channels"):
        models.build("n2nfx:mlp", input_shape=(1, 32, 32))
