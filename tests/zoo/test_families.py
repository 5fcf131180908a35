"""One model of every family of timm and torchvision, checked as `tools/zoo_check.py` says."""

from pathlib import Path

import pytest
import torch
import zoo_check

FAMILIES = Path(__file__).with_name("families.txt").read_text().split()
# The most multiply-adds of a forward whose numbers are compared here; `tools/zoo.py` goes further.
MOST = 6e8


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_of_the_family_is_operated_on(name: str) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        row = zoo_check.check(name, MOST, gradients=True)
    finally:
        torch.set_num_threads(threads)
    assert row["status"] == "ok", f"at {row['stage']}: {row['reason']} ({row['where']})"
    assert row["layers"] > 0
