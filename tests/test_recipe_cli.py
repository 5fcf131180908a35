"""`n2nfx recipe`: what is printed, where, and the exit codes."""

import csv
import errno
import io
import json
import os
import re
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rich.progress
import sweep_samples
from click.testing import CliRunner, Result
from rich.console import Console

from n2nfx import recipe
from n2nfx.cli import main
from n2nfx.cli.recipe_text import _Bars, narrated_sweep
from n2nfx.training import figures, lease, local, plan
from n2nfx.training.loop import Epoch, Progress
from n2nfx.training.plan import Speed
from n2nfx.training.runs import run as run_once
from n2nfx.training.sweep import Job, work

OWN = """
title = "Mine"
paper = "table1"
figure = "errors"
[matrix]
models = ["n2nfx:vgg19_cifar"]
data = ["cifar10"]
densities = [0.1, 0.02]
seeds = [0, 1]
[methods]
Baseline = []
RP = ["random{density=DENSITY}"]
"""


@pytest.fixture(autouse=True)
def no_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("N2NFX_DATA", str(tmp_path / "data"))


@pytest.fixture
def mine(tmp_path: Path) -> str:
    file = tmp_path / "mine.toml"
    file.write_text(OWN)
    return str(file)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["recipe", *arguments])


def said(*arguments: str) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


# --- files -------------------------------------------------------------------------------------


def test_ls_lists_what_is_shipped() -> None:
    listed = said("ls")
    assert listed["schema"] == "n2nfx.recipe-ls/1"
    rows = {row["name"]: row for row in listed["recipes"]}
    assert (rows["table1"]["cells"], rows["table1"]["runs"]) == (52, 156)
    assert set(rows) == set(recipe.shipped())
    assert all(name in run("ls").stdout for name in rows)


def test_show_prints_the_file_and_what_overrides_make_of_it(tmp_path: Path) -> None:
    assert run("show", "table1").stdout == recipe.find("table1").read_text()
    made = run("show", "table1", "training.epochs=7", "matrix.seeds=4").stdout
    (tmp_path / "table1.toml").write_text(made)
    again = recipe.read(str(tmp_path / "table1.toml"))
    assert again == recipe.read("table1", ["training.epochs=7", "matrix.seeds=4"])
    assert said("show", "table1", "training.epochs=7")["training"]["epochs"] == 7


def test_cp_makes_a_file_of_ones_own_and_replaces_none(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    assert run("cp", "table1", str(file)).exit_code == 0
    assert file.read_text() == recipe.find("table1").read_text()
    file.write_text("precious")
    refused = run("cp", "table1", str(file))
    assert refused.exit_code == 2
    assert "--force" in refused.stderr
    assert file.read_text() == "precious"
    assert run("cp", "table1", str(file), "training.epochs=9", "--force").exit_code == 0
    assert recipe.read(str(file)).training.epochs == 9
    assert run("cp", "table1", str(tmp_path / "mine.txt")).exit_code == 2


@pytest.mark.parametrize(
    ("overrides", "name"),
    [((), "mine"), (("training.epochs=9",), "mine"), (("name=other",), "other")],
)
def test_a_copy_is_called_as_its_file_unless_it_says_another_name(
    tmp_path: Path, overrides: tuple[str, ...], name: str
) -> None:
    first, second = (str(tmp_path / file) for file in ("first.toml", "mine.toml"))
    assert run("cp", "table1", first).exit_code == 0
    assert run("cp", first, second, *overrides).exit_code == 0
    assert recipe.read(second).name == name


def test_every_shipped_recipe_is_valid() -> None:
    for name in recipe.shipped():
        result = run("validate", name)
        assert result.exit_code == 0, result.stderr
        assert result.stdout.startswith(f"{name}-")


def test_validate_tells_everything_that_there_is_not(mine: str) -> None:
    wrong = [
        "matrix.models=n2nfx:vgg19_cifer,own.py:build", "matrix.data=cifar1O,own.py:load",
        "methods.RP=['randon{density=DENSITY}', 'n2nskip{ration=0.1}']", "paper=table9",
    ]  # fmt: skip
    result = run("validate", mine, *wrong)
    assert result.exit_code == 2
    assert result.stdout == ""
    lines = [line.split(": ") for line in result.stderr.removeprefix("error: ").splitlines()]
    assert {line[0] for line in lines} == set(wrong)
    assert [line[1] for line in lines] == [
        "matrix.models.0", "matrix.models.1", "matrix.data.0", "matrix.data.1", "methods.RP.0",
        "methods.RP.1", "paper",
    ]  # fmt: skip
    for near in ("vgg19_cifar", "cifar10", "random", "ratio", "table1"):
        assert re.search(f"did you mean [^?]*{near}", result.stderr)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (
            "def build(): ...\n1 / 0",
            "net.py has no function 'biuld'; did you mean build? (it has build)",
        ),
        ("import math\nN = math.biuld\nprint(biuld)", "has no function 'biuld' (it has none)"),
        ("def build(:", "net.py:1: SyntaxError: "),
        ("return 3", "net.py:1: SyntaxError: "),
    ],
)
def test_a_function_that_a_file_has_not_is_told_before_it_is_run(
    mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(source)
    named = ["matrix.models=net.py:biuld", "matrix.data=net.py:biuld"]
    for command in (["validate"], ["plan", "--no-probe"]):
        result = run(*command, mine, *named)
        assert result.exit_code == 2
        for key in ("matrix.models.0: ", "matrix.data.0: "):
            assert re.search(f"{key}.*{re.escape(told)}", result.stderr)


@pytest.mark.parametrize(
    "source",
    [
        "def build(): ...", "build = 3", "from math import *", "from math import sin as build",
        "if 1:\n  try:\n    build = 3\n  finally:\n    pass", "class build: ...",
        "def __getattr__(name): ...", "globals()['build'] = 3", "def f():\n  global build",
        "'\\d'\nbuild = 3",
    ],
)  # fmt: skip
def test_a_name_that_a_file_may_have_is_not_missed(
    mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(source)
    assert run("validate", mine, "matrix.models=net.py:build").exit_code == 0


@pytest.mark.parametrize("command", ["show", "validate", "plan", "run", "status", "report"])
def test_a_wrong_recipe_is_told_in_lines_and_exit_code_2(command: str) -> None:
    result = run(command, "table1", "training.epohcs=3", "matrix.seeds=-1")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "training.epohcs: unknown key; did you mean epochs?" in result.stderr
    assert "matrix.seeds.0: should be greater than or equal to 0 (got -1)" in result.stderr
    assert run(command, "tabel1").exit_code == 2


# --- plans -------------------------------------------------------------------------------------


def test_every_shipped_recipe_plans() -> None:
    for name in recipe.shipped():
        made = said("plan", name, "--no-probe")
        found = recipe.read(name)
        assert made["schema"] == "n2nfx.recipe-plan/1"
        assert [one["name"] for one in made["runs"]] == [one.spec.name for one in found.runs]
        assert {one["state"] for one in made["runs"]} == {"missing"}
        assert made["epochs"] == len(found.runs) * found.training.epochs
        assert (made["hours"], made["bytes"]) == (None, None)
        assert set(made["absent"]) >= set(found.matrix.data) - {
            "fashion-mnist", "fashion-mnist-sample"
        }  # fmt: skip


def test_a_plan_says_what_brings_data_that_is_not_here(mine: str) -> None:
    made = run("plan", mine)
    assert made.exit_code == 0
    assert "n2nfx data fetch cifar10" in made.stdout
    assert "6 of 6 runs to do, 1,800 epochs" in made.stdout


def test_a_run_of_several_methods_is_counted_once(
    mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("n2nfx.training.check.require_data", lambda recipe, root: None)
    monkeypatch.setattr(local.Local, "__call__", lambda self, jobs, teller: None)
    three = [f"methods.{name}=[]" for name in ("RP", "Other")]
    assert "2 of 2 runs to do, 600 epochs" in run("plan", mine, *three, "--no-probe").stdout
    assert len(said("plan", mine, *three, "--no-probe")["runs"]) == 2
    assert "3 cells, 2 runs" in run("validate", mine, *three).stdout
    ran = run("run", mine, *three, "--out", str(tmp_path / "runs"))
    assert "2 of 2 runs to do, 600 epochs" in ran.stderr


def test_a_plan_is_of_what_is_left(
    mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed: list[str] = []

    def probe(spec: Any, **options: Any) -> Speed:
        probed.append(spec.name)
        return Speed(seconds=7200, rest=1000, size=0, working=50)

    monkeypatch.setattr(plan, "probe", probe)
    monkeypatch.setattr(plan, "_absence", lambda name, root: "")
    first, second, *_ = recipe.read(mine).runs
    for one in (first, second):
        (tmp_path / one.spec.name).mkdir()
        sweep_samples.finish(tmp_path / one.spec.name)
    made = said("plan", mine, "--out", str(tmp_path), "--slots", "4")
    assert made["left"] == 4
    assert made["hours"] == 4 * 2 / 4
    assert made["bytes"] == 4 * 1000 + 4 * 50
    assert len(probed) == 1
    assert "about 2 hours on cpu, 4 at once" in run(
        "plan", mine, "--out", str(tmp_path), "--slots", "4", "--device", "cpu"
    ).stdout  # fmt: skip


def test_a_probe_trains_twenty_steps_and_leaves_nothing(tmp_path: Path) -> None:
    (one, *_) = recipe.read("smoke", ["training.batch_size=2", "training.epochs=100"]).runs
    short = recipe.read("smoke", ["training.batch_size=2", "training.epochs=50"]).runs[0]
    speeds = [plan.probe(spec) for spec in (one.spec, short.spec)]
    assert speeds[0].size == 1_252_496
    assert speeds[0].working == 2 * 4 * 2 * 1_252_496
    assert speeds[0].seconds > speeds[1].seconds > 0


def test_a_plan_knows_what_each_run_leaves_on_disk(tmp_path: Path) -> None:
    asked = [
        "methods={Dense=[], RP=['random{density=DENSITY}'], Half=['random{density=0.5}']}",
        "matrix.methods=Dense,RP,Half", "matrix.densities=0.005", "training.epochs=1",
        "training.images=64",
    ]  # fmt: skip
    made = plan.plan(recipe.read("smoke", asked), tmp_path / "none")
    assert len(made.speeds) == 1
    for one in made.left:
        run_once(one.spec, tmp_path / one.spec.name)
        files = (tmp_path / one.spec.name).rglob("*")
        found = sum(file.stat().st_size for file in files if file.is_file())
        assert made.kept(one) == pytest.approx(found, rel=0.05)
    assert "0.1 to 5.1" in run("plan", "smoke", *asked, "--device", "cpu").stdout


# --- runs --------------------------------------------------------------------------------------


@pytest.fixture
def trained_by_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are the samples', and done in this process."""

    def executor(self: local.Local, jobs: list[Job], teller: Any) -> None:
        for job in jobs:
            teller.started(job)
            teller.ended(work(job, finishing))

    def finishing(spec: Any, folder: Path, **options: Any) -> None:
        if spec.seed == 1 and "random" in str(spec.passes):
            raise ZeroDivisionError("by nothing")
        accuracy = 90.0 + spec.seed
        sweep_samples.finish(
            folder, final_accuracy=accuracy, best_accuracy=accuracy + 1, final_loss=0.5, nnz=7
        )

    monkeypatch.setattr(local.Local, "__call__", executor)


@pytest.mark.usefixtures("trained_by_samples")
def test_a_recipe_is_run_reported_and_gone_on_with(
    mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = str(tmp_path / "runs")
    absent = run("run", mine, "--out", out)
    assert absent.exit_code == 3
    assert "n2nfx data fetch cifar10" in absent.stderr
    monkeypatch.setattr("n2nfx.training.check.require_data", lambda recipe, root: None)
    first = run("run", mine, "matrix.seeds=0", "--out", out)
    assert first.exit_code == 0, first.stderr
    assert "3 of 3 runs to do, 900 epochs" in first.stderr
    assert "90.00" in first.stdout
    assert "paper 92.08 ± 0.36 (-2.08)" in first.stdout
    second = run("run", mine, "--out", out)
    assert second.exit_code == 5
    assert "3 of 6 runs to do" in second.stderr
    assert "2 of 6 runs failed; --retry runs them again" in second.stderr
    assert "ZeroDivisionError: by nothing" in second.stderr
    assert "n 1" in second.stdout
    assert "1 failed" in second.stdout
    third = run("run", mine, "--out", out)
    assert third.exit_code == 5
    assert "0 of 6 runs to do" in third.stderr
    assert "2 of 6 runs to do" in run("run", mine, "--out", out, "--retry").stderr


@pytest.mark.usefixtures("trained_by_samples")
def test_a_share_of_the_runs(mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("n2nfx.training.check.require_data", lambda recipe, root: None)
    options = ("matrix.seeds=0", "--out", str(tmp_path / "runs"))
    assert run("run", mine, *options, "--shard", "2/2").exit_code == 0
    states = [row["state"] for row in said("status", mine, *options)["runs"]]
    assert states == ["missing", "done", "missing"]
    for share in ("3/2", "0/2", "x", "1"):
        assert run("run", mine, *options, "--shard", share).exit_code == 2
    assert "'0/0' is no share, such as 2/8" in run("run", mine, "--shard", "0/0").stderr


def test_an_executor_that_is_not_installed_is_told_with_the_command(
    mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("n2nfx.training.check.require_data", lambda recipe, root: None)
    for executor, module in (("ray", "ray"), ("slurm", "submitit")):
        monkeypatch.setitem(sys.modules, module, None)
        result = run("run", mine, "--out", str(tmp_path / "runs"), "--executor", executor)
        assert result.exit_code == 3
        assert f"pip install 'n2nfx[{executor}]'" in result.stderr


def test_slurm_is_handed_an_array_of_jobs(
    mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a stand-in for submitit, which remembers what it was asked."""
    asked: dict[str, Any] = {}

    class AutoExecutor:
        def __init__(self, **options: Any) -> None:
            asked.update(options)

        def update_parameters(self, **options: Any) -> None:
            asked.update(options)

        def map_array(self, task: Any, jobs: list[Job]) -> list[Any]:
            asked.update(task=task, jobs=jobs)
            return [types.SimpleNamespace(job_id=f"7_{place}") for place in range(len(jobs))]

    class DelayedSubmission:
        def __init__(self, *parts: Any) -> None:
            self.parts = parts

    fake = types.SimpleNamespace(
        AutoExecutor=AutoExecutor,
        helpers=types.SimpleNamespace(DelayedSubmission=DelayedSubmission),
    )
    monkeypatch.setitem(sys.modules, "submitit", fake)
    monkeypatch.setattr("n2nfx.training.check.require_data", lambda recipe, root: None)
    given = {
        "slurm_partition": "gpu", "gpus_per_node": 1, "mem_gb": 7.5, "slurm_time": "1:30",
        "slurm_nodelist": "007",
    }  # fmt: skip
    options = [part for key, value in given.items() for part in ("--slurm", f"{key}={value}")]
    result = run("run", mine, "--out", str(tmp_path / "runs"), "--executor", "slurm", *options)
    assert result.exit_code == 0, result.stderr
    assert given.items() <= asked.items()
    assert asked["cluster"] == "slurm"
    assert asked["slurm_max_num_timeout"] >= 100  # each goes on where the one before was
    assert "Slurm has 6 runs as 7_0 to 7_5" in result.stderr
    assert "begins" not in result.stderr
    assert asked["folder"] == tmp_path / "runs" / "slurm"
    jobs, task = asked["jobs"], asked["task"]
    assert [job.spec for job in jobs] == [one.spec for one in recipe.read(mine).runs]
    assert {job.device for job in jobs} == {"cuda"}
    assert task.checkpoint(jobs[0]).parts == (task, jobs[0])
    assert run("run", mine, "--executor", "slurm", "--slurm", "gpu").exit_code == 2
    for more, device in (
        (["--slurm", "slurm_gpus_per_task=1"], "cuda"),
        (["--slurm", "slurm_gres=gpu:2"], "cuda"),
        (["--slurm", "slurm_partition=gpu"], "cpu"),
        (["--device", "cuda:0"], "cuda:0"),
    ):
        run("run", mine, "--out", str(tmp_path / "runs"), "--executor", "slurm", *more)
        assert {job.device for job in asked["jobs"]} == {device}


@pytest.mark.parametrize("executor", ["ray", "slurm"])
def test_options_of_another_executor_are_refused(mine: str, tmp_path: Path, executor: str) -> None:
    out = ["--out", str(tmp_path / "runs")]
    result = run("run", mine, *out, "--executor", executor, "--slots", "2")
    assert result.exit_code == 2
    assert f"--executor {executor} takes no --slots" in result.stderr


@pytest.mark.parametrize(
    ("executor", "option", "value", "owner"),
    [
        ("local", "--slurm", "slurm_partition=gpu", "slurm"),
        ("ray", "--slurm", "slurm_partition=gpu", "slurm"),
        ("local", "--cpus", "2", "ray"),
        ("slurm", "--gpus", "0", "ray"),
        ("local", "--address", "auto", "ray"),
    ],
)
def test_options_of_an_executor_that_was_not_asked_for_are_refused(
    mine: str, tmp_path: Path, executor: str, option: str, value: str, owner: str
) -> None:
    out = ["--out", str(tmp_path / "runs")]
    result = run("run", mine, *out, "--executor", executor, option, value)
    assert result.exit_code == 2
    assert f"{option} is of --executor {owner}, and this is {executor}" in result.stderr


@pytest.mark.parametrize(
    ("where", "error", "code", "told"),
    [
        ("map_array", RuntimeError("sbatch: error: invalid partition\nsbatch: no"), 3, "partition"),
        ("__init__", RuntimeError("Could not detect srun"), 3, "did not take the jobs: Could not"),
        ("update_parameters", NameError("Parameter 'partitionn'"), 2, "--slurm: Parameter"),
        ("update_parameters", AssertionError("expected type int"), 2, "--slurm: expected type int"),
    ],
)
def test_what_slurm_does_not_take_is_told(
    mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    where: str, error: Exception, code: int, told: str,
) -> None:  # fmt: skip
    def method(name: str) -> Any:
        def call(*given: Any, **named: Any) -> None:
            if name == where:
                raise error

        return call

    names = ("__init__", "update_parameters", "map_array")
    fake = types.SimpleNamespace(AutoExecutor=type("Fake", (), {n: method(n) for n in names}))
    monkeypatch.setitem(sys.modules, "submitit", fake)
    monkeypatch.setattr("n2nfx.training.check.require_data", lambda recipe, root: None)
    result = run("run", mine, "--out", str(tmp_path / "runs"), "--executor", "slurm")
    assert result.exit_code == code
    assert told in result.stderr
    assert "no" not in result.stderr.splitlines()[-1].split()  # one line of what sbatch said


@pytest.mark.usefixtures("trained_by_samples")
def test_where_nothing_is_left_to_do_no_executor_is_asked(
    mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("n2nfx.training.check.require_data", lambda recipe, root: None)
    options = ("matrix.seeds=0", "--out", str(tmp_path / "runs"))
    assert run("run", mine, *options).exit_code == 0
    for name in ("ray", "submitit"):
        monkeypatch.setitem(sys.modules, name, None)  # importing it would be an error
    for executor in ("ray", "slurm"):
        result = run("run", mine, *options, "--executor", executor)
        assert result.exit_code == 0, result.stderr
        assert "0 of 3 runs to do" in result.stderr


def test_a_bar_is_as_long_as_the_training_is_far() -> None:
    (one,) = sweep_samples.specs(1)
    half = Progress(epoch=150, epochs=300, step=30, steps=60, images_per_second=1.0,
                    seconds_left=9.0, last=None)  # fmt: skip
    with rich.progress.Progress(console=Console(file=io.StringIO())) as bars:
        told = _Bars(bars, 1)
        told.started(Job(one, Path("nowhere")))
        told.progress(Job(one, Path("nowhere")), half)
        assert bars.tasks[1].percentage == 50


# --- status and reports ------------------------------------------------------------------------


@pytest.fixture
def half_run(mine: str, tmp_path: Path) -> str:
    """Seed 0 done; of seed 1 one diverged, one failed, one interrupted; two were never begun."""
    out = tmp_path / "runs"
    folders = [out / one.spec.name for one in recipe.read(mine).runs]
    for number, folder in enumerate(folders[:4]):
        folder.mkdir(parents=True)
        values = {"final_accuracy": 91.0 + number, "best_accuracy": 92.0 + number}
        if number == 3:
            values |= {"final_accuracy": None}
        status = "diverged" if number == 3 else "done"
        sweep_samples.finish(
            folder, status, **values, final_loss=0.1, nnz=(9, 5, 1, 9)[number],
            reason="the loss was not finite" if number == 3 else None,
        )  # fmt: skip
        events = [json.dumps({"epoch": e, "accuracy": 80.0 + e + number}) for e in (1, 2, 3)]
        (folder / "events.jsonl").write_text("\n".join([*events, '{"epoch": 4, "accu']))
    lease.give_up(folders[4], "no memory")
    with pytest.raises(KeyboardInterrupt), lease.claimed(folders[5]):
        raise KeyboardInterrupt
    return str(out)


def test_status_says_where_every_run_stands(mine: str, half_run: str) -> None:
    rows = said("status", mine, "--out", half_run)["runs"]
    states = ["done", "done", "done", "diverged", "failed", "stopped"]
    assert [row["state"] for row in rows] == states
    assert [row["epochs"] for row in rows] == [3, 3, 3, 3, 0, 0]  # a half line is none
    shown = run("status", mine, "--out", half_run).stdout
    assert "3 done, 1 diverged, 1 failed, 1 stopped" in shown
    assert "3/300" in shown
    assert "no memory" in shown
    assert "the loss was not finite" in shown
    with lease.claimed(Path(half_run) / rows[5]["name"]):
        assert said("status", mine, "--out", half_run)["runs"][5]["state"] == "running"


def test_a_report_has_the_papers_value_under_ours_and_says_what_is_not_done(
    mine: str, half_run: str
) -> None:
    shown = run("report", mine, "--out", half_run).stdout
    assert re.search(r"n2nfx:vgg19_cifar on cifar10 +dense +10% +2%", shown)
    for text in (
        "91.00", "paper 93.16 ± 0.12 (-2.16)", "best 92.00, n 1", "1 diverged",
        "92.00", "paper 92.08 ± 0.36 (-0.08)", "1 failed", "93.00", "1 stopped", "no memory",
    ):  # fmt: skip
        assert text in shown, text
    markdown = run("report", mine, "--out", half_run, "--format", "markdown").stdout
    assert "|  | dense | 10% | 2% |" in markdown
    assert (
        "| Baseline | 91.00<br>paper 93.16 ± 0.12 (-2.16)<br>best 92.00, n 1<br>1 diverged |  |  |"
        in markdown
    )


def test_a_report_as_data_says_the_same(mine: str, half_run: str) -> None:
    told = said("report", mine, "--out", half_run)
    assert told["schema"] == "n2nfx.recipe-report/1"
    dense, high, low = told["cells"]
    assert (dense["method"], dense["density"], dense["n"], dense["diverged"]) == (
        "Baseline", None, 1, 1
    )  # fmt: skip
    assert dense["difference"] == pytest.approx(91 - 93.16)
    assert (high["final_accuracy"], high["final_accuracy_std"], high["failed"]) == (92.0, None, 1)
    assert high["reasons"] == ["no memory"]
    assert (low["nnz"], low["stopped"], low["paper"]) == (1, 1, 86.52)
    text = run("report", mine, "--out", half_run, "--format", "csv").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["method"] for row in rows] == ["Baseline", "RP", "RP"]
    assert float(rows[1]["final_accuracy"]) == 92.0


def test_mean_and_deviation_are_over_seeds(mine: str, tmp_path: Path) -> None:
    for one in recipe.read(mine).runs:
        (tmp_path / one.spec.name).mkdir()
        value = 90.0 + 2 * one.spec.seed
        sweep_samples.finish(
            tmp_path / one.spec.name, final_accuracy=value, best_accuracy=value, final_loss=0.0,
            nnz=3 + one.spec.seed,
        )  # fmt: skip
    told = said("report", mine, "--out", str(tmp_path))
    assert {cell["final_accuracy"] for cell in told["cells"]} == {91.0}
    assert told["cells"][0]["final_accuracy_std"] == pytest.approx(2**0.5)
    assert "91.00 ± 1.41" in run("report", mine, "--out", str(tmp_path)).stdout
    assert any("runs of 3, 4 weights" in note for note in told["notes"])


def test_a_report_of_nothing_is_a_table_of_what_is_missing(mine: str, tmp_path: Path) -> None:
    shown = run("report", mine, "--out", str(tmp_path)).stdout
    assert shown.count("2 missing") == 3


@pytest.mark.parametrize("command", ["status", "report"])
def test_what_is_misspelt_is_not_told_as_missing(mine: str, half_run: str, command: str) -> None:
    for wrong, told in (
        ("matrix.data=cifar1O", "there is no data set 'cifar1O'; did you mean cifar10"),
        ("matrix.methods=RPP", "there is no method 'RPP'; did you mean RP?"),
    ):
        result = run(command, mine, wrong, "--out", half_run)
        assert (result.exit_code, result.stdout) == (2, "")
        assert f"error: {wrong}: matrix." in result.stderr
        assert told in result.stderr
    nowhere = run(command, mine, "--out", f"{half_run}x")
    assert (nowhere.exit_code, nowhere.stdout) == (2, "")
    assert f"--out {half_run}x: there is no such folder; did you mean runs?" in nowhere.stderr
    assert not Path(f"{half_run}x").exists()
    gone = run(command, mine, "matrix.data=gone.py:load", "--out", half_run)
    assert (gone.exit_code, "there is no file gone.py" in gone.stderr) == (2, True)


@pytest.mark.parametrize("figure", ["errors", "curves"])
@pytest.mark.parametrize("ending", ["png", "svg"])
def test_figures_are_drawn(
    mine: str, half_run: str, tmp_path: Path, figure: str, ending: str
) -> None:
    file = tmp_path / f"figure.{ending}"
    result = run("report", mine, f"figure={figure}", "--out", half_run, "--figure", str(file))
    assert result.exit_code == 0, result.output
    assert file.stat().st_size > 5000


def test_what_cannot_be_drawn_is_told(mine: str, half_run: str, tmp_path: Path) -> None:
    def drawn(*arguments: str, name: str = "x.png") -> Result:
        return run("report", mine, *arguments, "--figure", str(tmp_path / name))

    for refused in (drawn("figure=none"), drawn("--out", half_run, name="x.doc")):
        assert (refused.exit_code, refused.stdout) == (2, "")  # before any report
    assert drawn("--out", str(tmp_path)).exit_code == 3


def test_watching_ends_when_nothing_is_left_to_wait_for(
    mine: str, half_run: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    last = Path(half_run) / recipe.read(mine).runs[5].spec.name

    def sleep(seconds: float) -> None:
        values = {"final_accuracy": 77.0, "best_accuracy": 77.0, "final_loss": 0.0, "nnz": 1}
        sweep_samples.finish(last, **values)

    monkeypatch.setattr("n2nfx.cli.recipe.time.sleep", sleep)
    shown = run("report", mine, "--out", half_run, "--watch", "--format", "csv").stdout
    assert shown.count("model,data,method") == 2
    assert "85.0" in shown  # the mean of 93 and 77


def test_who_watches_a_folder_that_is_not_there_yet_is_told_that_it_is_waited_for(
    mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "later"

    def sleep(seconds: float) -> None:
        for one in recipe.read(mine).runs:
            (out / one.spec.name).mkdir(parents=True)
            sweep_samples.finish(out / one.spec.name)

    monkeypatch.setattr("n2nfx.cli.recipe.time.sleep", sleep)
    watched = run("report", mine, "--out", str(out), "--watch")
    assert watched.exit_code == 0
    assert f"{out}: there is no such folder yet: waiting for it" in watched.stderr


# --- what goes wrong around runs ---------------------------------------------------------------


def full(descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.usefixtures("trained_by_samples")
def test_a_folder_that_cannot_be_written_fails_every_run_and_is_told(
    mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("n2nfx.training.check.require_data", lambda recipe, root: None)
    monkeypatch.setattr(os, "fsync", full)
    result = run("run", mine, "matrix.seeds=0", "--out", str(tmp_path / "runs"))
    assert result.exit_code == 5
    assert "3 of 3 runs failed" in result.stderr
    assert "cannot be written: No space left on device" in result.stderr


def test_a_copy_that_cannot_be_written_leaves_the_file_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("precious")
    monkeypatch.setattr(os, "fsync", full)
    assert run("cp", "table1", str(file), "--force").exit_code == 3
    assert file.read_text() == "precious"
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


@pytest.mark.parametrize("command", ["plan", "run"])
@pytest.mark.parametrize("device", ["foo", "cuda:99", "mps", "meta"])
def test_a_device_that_there_is_not_is_told_before_anything_starts(
    mine: str, tmp_path: Path, command: str, device: str
) -> None:
    out = tmp_path / "runs"
    result = run(command, mine, "--device", device, "--out", str(out))
    assert result.exit_code == 2
    assert f"there is no device {device!r}" in result.stderr
    assert not out.exists()


def test_names_are_shown_as_they_are(mine: str, tmp_path: Path) -> None:
    named = ["methods.'RP [/b] a|b'=['random{density=DENSITY}']", "title=a [/i] b"]
    shown = run("report", mine, *named, "--out", str(tmp_path)).stdout
    assert "RP [/b] a|b" in shown
    assert "a [/i] b" in shown
    marked = run("report", mine, *named, "--out", str(tmp_path), "--format", "markdown").stdout
    assert "| RP [/b] a\\|b |" in marked


def test_every_fault_is_a_line() -> None:
    told = run("validate", "smoke", "training.epochs=0", "training.foo=3").stderr.splitlines()
    assert len(told) == 2
    assert "training.epochs" in told[0]
    assert "training.foo" in told[1]


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("training.images=9999", "images=9,999, and there are 512 to train on"),
        ("training.batch_size=1", "batch norms need 2 images on each: change batch_size\n"),
        ("training.images=1", "batch norms need 2 images on each: change batch_size\n"),
        ("training.images=321", "or train on 320 images"),
        ("methods.RP=['random{density=0DENSITY}']", "density"),
    ],
)
def test_what_every_run_would_fail_on_is_no_valid_recipe(asked: str, told: str) -> None:
    result = run("validate", "smoke", asked)
    assert result.exit_code == 2
    assert told in result.stderr


def test_what_failed_is_not_planned_but_told(mine: str, half_run: str) -> None:
    made = said("plan", mine, "--out", half_run, "--no-probe")
    assert (made["left"], made["failed"]) == (1, 1)
    shown = run("plan", mine, "--out", half_run, "--no-probe").stdout
    assert "1 failed: run --retry runs them again" in shown


def test_who_is_at_work_is_no_reason_of_a_failure(mine: str, tmp_path: Path) -> None:
    with lease.claimed(tmp_path / recipe.read(mine).runs[0].spec.name):
        told = said("report", mine, "--out", str(tmp_path))
    assert (told["cells"][0]["running"], told["cells"][0]["reasons"]) == (1, [])


def test_a_method_has_its_colour_however_much_is_there(tmp_path: Path) -> None:
    """Densities in any order, names that matplotlib would leave out or read as formulas."""
    first, other = (tmp_path / name for name in ("a.py", "b.py"))
    for file in (first, other):
        file.touch()
    asked = [
        f"matrix.models={first}:net,{other}:net", "matrix.densities=0.1,0.5,0.2", "matrix.seeds=0",
        "matrix.methods=['_RP','N$2']",
        "methods={_RP=['random{density=DENSITY}'], 'N$2'=['snip{density=DENSITY}']}",
    ]  # fmt: skip
    found = recipe.read("smoke", asked)
    for one in found.runs:
        if one.cell.model == f"{other}:net" and one.cell.method == "N$2":
            folder = tmp_path / one.spec.name
            folder.mkdir()
            sweep_samples.finish(folder, final_accuracy=90.0, best_accuracy=90.0, final_loss=0.1)
            (folder / "events.jsonl").write_bytes(b'{"accuracy": 90.0}\n\xff\n')
    for draw, names in ((figures.errors, ["N$2"]), (figures.curves, ["N$2, 10%"])):
        figure = draw(found, tmp_path)
        first, second = figure.axes
        line = second.lines[0]
        assert line.get_color() == ("C1" if draw is figures.errors else "C3")
        xs = np.asarray(line.get_xdata())
        assert (np.diff(xs) > 0).all()
        legend = first.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()][: len(names)] == names
        assert not any(text.get_parse_math() for text in legend.get_texts())


def test_on_a_narrow_terminal_all_is_told_of_how_far_a_run_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"FORCE_COLOR": "1", "COLUMNS": "80", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    (spec,) = sweep_samples.specs(1)
    at = Progress(
        epoch=2, epochs=3, step=20, steps=30, images_per_second=1234.5, seconds_left=300.0,
        last=Epoch(2, 0.5, 91.25, 0.4, 0.1, 1234.5, 7.0),
    )  # fmt: skip
    with narrated_sweep([Job(spec, Path(spec.name))]) as teller:
        teller.started(Job(spec, Path(spec.name)))
        teller.progress(Job(spec, Path(spec.name)), at)
    shown = capsys.readouterr().err
    assert spec.name in shown
    assert "epoch 2/3, 1,234 images/s, 91.25%, 5 min left" in shown


def test_unknown_names_are_told_though_other_keys_are_wrong(mine: str) -> None:
    asked = ("training.epochs=0", "matrix.models=resnet5O", "matrix.data=cifar1O", "paper=tabel1")
    told = run("validate", mine, *asked).stderr
    for wrong in ("training.epochs: ", "resnet5O", "cifar1O", "tabel1"):
        assert wrong in told


def test_runs_of_different_environments_are_told(mine: str, tmp_path: Path) -> None:
    for number, one in enumerate(recipe.read(mine).runs[:3]):
        folder = tmp_path / one.spec.name
        folder.mkdir()
        sweep_samples.finish(folder, final_accuracy=90.0, best_accuracy=90.0, final_loss=0.1)
        here = {"versions": {"torch": "2.9"}, "device": "cpu" if number else "NVIDIA H200"}
        (folder / "environment.json").write_text(json.dumps([here]) if number < 2 else "[")
    told = said("report", mine, "--out", str(tmp_path))["notes"]
    wanted = "the runs were trained in different environments: device NVIDIA H200 or cpu"
    assert wanted in told
