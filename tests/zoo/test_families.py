"""One model of every family of timm and torchvision, checked as `tools/zoo_check.py` says.

Of the detectors one of one stage and one of two, and all of them by hand.
"""

import importlib
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import zoo_check
from zoo_check import Effort

FAMILIES = Path(__file__).with_name("families.txt").read_text().split()
# The smallest of its family, and too large for several copies beside other tests.
WITHOUT_DATA = ("timm:deepseek_vit_412m",)
# The most multiply-adds of a forward whose numbers are compared here; `tools/zoo.py` goes further.
MOST = 6e8


with warnings.catch_warnings():  # what importing a zoo says is no test of ours
    warnings.simplefilter("ignore")
    detection: Any = importlib.import_module("torchvision.models.detection")
    listed: Any = importlib.import_module("torchvision.models").list_models
DETECTORS = [f"torchvision:{name}" for name in listed(module=detection)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_of_the_family_is_operated_on(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_is_operated_on_part_by_part(name: str) -> None:
    row = check(name)
    assert row["parts"]
    assert row["train"].endswith("bit-equal")
    assert row["spliced"] > 0


def check(name: str) -> dict[str, Any]:
    """The row of a model, which has to be ok."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        row = zoo_check.check(name, Effort(MOST, only="blank" if name in WITHOUT_DATA else None))
    finally:
        torch.set_num_threads(threads)
    assert row["status"] == "ok", f"at {row['stage']}: {row['reason']} ({row['where']})"
    assert row["layers"] > 0
    return row
