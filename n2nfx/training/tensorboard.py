"""A run's epochs as TensorBoard's event files, in the folder `tensorboard` of the run's own.

events.jsonl is the truth; these files are for looking at. Whenever a run goes on, another file says
anew what was trained before, and takes back the earlier ones, so that no step is shown twice. They
are written aside: a training never waits for them, and what goes wrong with them is one warning.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from n2nfx.errors import CannotOperate, described
from n2nfx.training.loop import Epoch

FOLDER = "tensorboard"

_TAGS = {
    "loss": "loss/train",
    "test_loss": "loss/test",
    "accuracy": "accuracy/test",
    "lr": "training/lr",
    "images_per_second": "training/images_per_second",
}
_PATIENCE = 10.0  # seconds that a run which is done waits for its last lines

_log = logging.getLogger(__name__)


def require_installed() -> None:
    """Raise `CannotOperate` where TensorBoard is not installed, with the command that does it."""
    if find_spec("tensorboard") is None:
        raise CannotOperate(
            "TensorBoard's event files need TensorBoard, which is not installed; "
            "pip install 'n2nfx[tensorboard]'"
        )


@contextmanager
def written(folder: Path, before: Sequence[Epoch]) -> Iterator[Callable[[Epoch], None]]:
    """What takes each epoch of a run in that folder, after those that it went on from."""
    epochs: SimpleQueue[Epoch | None] = SimpleQueue()
    thread = threading.Thread(target=_work, args=(folder, before, epochs), daemon=True)
    thread.start()
    try:
        yield epochs.put
    finally:
        epochs.put(None)
        thread.join(_PATIENCE)
        if thread.is_alive():
            _log.warning("%s: TensorBoard's files are still being written; not waited for", folder)


def _work(folder: Path, before: Sequence[Epoch], epochs: "SimpleQueue[Epoch | None]") -> None:
    try:
        writer = _writer(folder / FOLDER)
        now = time.time()
        for epoch in before:
            _write(writer, epoch, now - before[-1].seconds + epoch.seconds)
        while (epoch := epochs.get()) is not None:
            _write(writer, epoch, time.time())
        writer.close()
    except Exception as error:  # whatever it is: the training goes on
        _log.warning("%s: TensorBoard's files end here: %s", folder, described(error))


def _writer(folder: Path) -> Any:
    """A writer of one new file, which takes back what those before it said.

    They are not deleted: a TensorBoard that is at work would not find the new one.
    """
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(folder, purge_step=0)


def _write(writer: Any, epoch: Epoch, wall_time: float) -> None:
    for name, value in asdict(epoch).items():
        if name in _TAGS:
            writer.add_scalar(_TAGS[name], value, epoch.epoch, wall_time)
    writer.flush()
