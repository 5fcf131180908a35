"""What holds on the CPU holds on a GPU: run on both where there is one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rewiring_samples import batch, sgd
from run_samples import net, spec
from samples import Net
from torch.nn import functional

import n2nfx
from n2nfx.bind import as_it_acts
from n2nfx.connectivity import count_effective, find_collapse
from n2nfx.registry import passes
from n2nfx.training.augment import draws
from n2nfx.training.images import Images
from n2nfx.training.rewiring import Rewiring
from n2nfx.training.runs import run

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
PRUNERS = ["random", "expander", "snip", "iterative-snip", "grasp", "synflow", "magnitude"]
on_every_device = pytest.mark.parametrize("device", DEVICES)


def transformed(device: str, pruner: str = "random", **options: Any) -> n2nfx.Outcome:
    """A network that was traced, pruned and given branches where it lies."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Net()
    example = torch.zeros(1, 3, 8, 8, device=device)
    inputs, labels = batch(0)
    return n2nfx.transform(
        model.to(device),
        density=0.3,
        skip_ratio=0.4,
        pruner=pruner,
        floor=0,
        example=example,
        batch=(inputs.to(device), labels.to(device)),
        **options,
    )


@on_every_device
@pytest.mark.parametrize("pruner", PRUNERS)
def test_every_pruner_keeps_exactly_what_it_was_asked_for(device: str, pruner: str) -> None:
    assert pruner in passes()
    network = transformed(device, pruner).network
    assert network.nnz == round(0.3 * network.size)
    assert all(weight.device.type == device for weight in network.module.parameters())
    assert count_effective(network).effective_nnz <= network.nnz
    x, _ = batch(1)
    assert network.module(x.to(device)).isfinite().all()


@on_every_device
def test_what_is_drawn_by_name_is_the_same_everywhere(device: str) -> None:
    here, there = transformed(device).network, transformed("cpu").network
    assert list(here.masks) == list(there.masks)
    assert all(torch.equal(here.masks[name].cpu(), there.masks[name]) for name in there.masks)
    assert find_collapse(here) == find_collapse(there)
    x, _ = batch(1)
    found, wanted = here.module.eval()(x.to(device)), there.module.eval()(x)
    torch.testing.assert_close(found.cpu(), wanted, rtol=1e-4, atol=1e-4)


@on_every_device
def test_saved_from_a_device_and_loaded_anywhere(device: str, tmp_path: Path) -> None:
    outcome = transformed(device)
    outcome.save(tmp_path / "out")
    loaded = n2nfx.load(tmp_path / "out", Net())
    x, _ = batch(1)
    outcome.network.module.cpu().eval()
    assert torch.equal(loaded.module.eval()(x), outcome.network.module(x))


@on_every_device
@pytest.mark.parametrize("method", ["rigl", "set"])
def test_trained_in_bfloat16_and_rewired_the_total_is_constant(device: str, method: Any) -> None:
    network = transformed(device, wiring="joint").network
    module, optimizer = network.module.train(), sgd(network.module)
    rewiring = Rewiring(network, optimizer, until=50, every=5, method=method, scope="global")
    losses = []
    for step in range(60):
        x, y = (part.to(device) for part in batch(step, 64))

        def loss(x: torch.Tensor = x, y: torch.Tensor = y) -> torch.Tensor:
            with torch.autocast(device, torch.bfloat16):
                return functional.cross_entropy(module(x).float(), y)

        optimizer.zero_grad()
        found = loss()
        found.backward()
        losses.append(found.item())
        optimizer.step()
        rewiring.step(loss)
        assert as_it_acts(network).nnz == network.nnz
    assert np.mean(losses[-5:]) < np.mean(losses[:5])
    module.eval()
    x = batch(99)[0].to(device)
    before = module(x)
    with torch.no_grad():
        for name, mask in as_it_acts(network).masks.items():
            module.get_parameter(name)[~mask.to(device)] = 1e3
    assert torch.equal(module(x), before)


@on_every_device
def test_images_are_augmented_alike(device: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 3, 9, 7), np.uint8)
    images = Images(torch.from_numpy(pixels), torch.arange(64))
    rows, drawn = [np.arange(64).reshape(2, 32)[row] for row in range(2)], draws(0, "a", 0, 64)
    here = images.to(device).batches(rows, drawn)
    for (found, labels), (wanted, known) in zip(here, images.batches(rows, drawn), strict=True):
        assert found.device.type == device
        assert torch.equal(found.cpu(), wanted)
        assert torch.equal(labels.cpu(), known)


@on_every_device
@pytest.mark.parametrize(
    "how",
    [{}, {"precision": "bf16", "channels_last": True}, {"precision": "fp16"}, {"rewiring": "rigl"}],
    ids=str,
)
def test_a_run_trains_on_a_device_and_what_it_leaves_is_read_anywhere(
    device: str, how: dict[str, Any], tmp_path: Path
) -> None:
    result = run(spec(epochs=2, **how), tmp_path, device=device, save_every=0)
    assert result.status == "done"
    network = n2nfx.load(tmp_path / "network", net())
    assert network.nnz == result.nnz
    for name, mask in network.masks.items():
        assert not network.module.get_parameter(name)[~mask].any()
