"""The networks of the N2NSkip paper that no public zoo has, with the shape of one input of each."""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from torchvision.models import ResNet

# The widths of VGG19's sixteen convolutions; each group is followed by one 2x2 max-pool.
_VGG19_GROUPS = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)
_STEM = 64  # channels of ResNet50's first convolution, and of its first stage's bottlenecks
_MLP_WIDTHS = (3072, 512, 256, 128, 64)


def vgg19_cifar(num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    """VGG19 with batch norm in its CIFAR form: sixteen convolutions and one linear layer.

    Takes (batch, in_channels, 32, 32), gives (batch, num_classes). `width` scales all channels
    inside. The convolutions have no bias,
    because the batch norm behind each would subtract it again (as in the CIFAR VGGs of the pruning
    literature). Initialization is that of torchvision's VGG: He et al. 2015, fan out.
    """
    layers: list[nn.Module] = []
    channels = in_channels
    for group in _VGG19_GROUPS:
        for full in group:
            into, channels = channels, round(width * full)
            layers += [
                nn.Conv2d(into, channels, kernel_size=3, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.ReLU(inplace=True),
            ]
        layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
    network = nn.Sequential(
        OrderedDict(
            features=nn.Sequential(*layers),
            flatten=nn.Flatten(),
            classifier=nn.Linear(channels, num_classes),
        )
    )
    for module in network.modules():
        _init_like_vgg(module)
    return network


def resnet50_cifar(num_classes: int = 10, in_channels: int = 3, width: float = 1.0) -> nn.Module:
    """torchvision's ResNet50 in its CIFAR form: a 3x3 stem with stride 1, and no max-pool.

    Takes (batch, in_channels, 32, 32), gives (batch, num_classes). `width` scales all channels
    inside.
    """
    from torchvision.models import resnet50

    stem = round(width * _STEM)
    if width == 1:
        network = resnet50(weights=None, num_classes=num_classes)
    else:
        network = _narrow_resnet50(width, stem, num_classes)
    network.conv1 = nn.Conv2d(in_channels, stem, kernel_size=3, padding=1, bias=False)
    _init_conv(network.conv1)
    network.maxpool = nn.Identity()  # pyright: ignore[reportAttributeAccessIssue]
    return network


def _narrow_resnet50(width: float, stem: int, num_classes: int) -> "ResNet":
    """torchvision's ResNet50 with all widths scaled, but for its first convolution.

    Its own `width_per_group` scales only the middle of each bottleneck.
    """
    from torchvision.models.resnet import Bottleneck, ResNet

    class Narrow(ResNet):
        def _make_layer(
            self, block: Any, planes: int, blocks: int, stride: int = 1, dilate: bool = False
        ) -> nn.Sequential:
            if planes == _STEM:  # the first stage, which reads the stem
                self.inplanes = stem
            return super()._make_layer(block, round(width * planes), blocks, stride, dilate)

    network = Narrow(Bottleneck, [3, 4, 6, 3])
    network.bn1 = nn.BatchNorm2d(stem)
    network.fc = nn.Linear(network.inplanes, num_classes)
    return network


vgg19_cifar_quarter = partial(vgg19_cifar, width=0.25)
resnet50_cifar_quarter = partial(resnet50_cifar, width=0.25)


def mlp(num_classes: int | None = None, in_features: int = _MLP_WIDTHS[0]) -> nn.Module:
    """The MLP of the paper's Fig. 3: five layers of neurons, four weights, no biases.

    Takes (batch, in_features), gives (batch, 64), or with a fifth weight behind them
    (batch, num_classes); the last layer has no ReLU behind it.
    """
    widths = (in_features, *_MLP_WIDTHS[1:], *([] if num_classes is None else [num_classes]))
    layers: list[nn.Module] = []
    for width_in, width_out in pairwise(widths):
        layers += [nn.Linear(width_in, width_out, bias=False), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _init_like_vgg(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        _init_conv(module)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, mean=0.0, std=0.01)
        nn.init.zeros_(module.bias)


def _init_conv(conv: nn.Conv2d) -> None:
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")


@dataclass(frozen=True)
class Entry:
    """One network of this zoo: its builder, and the shape of one input without the batch."""

    builder: Callable[..., nn.Module]
    input_shape: tuple[int, ...]


NETWORKS: Mapping[str, Entry] = MappingProxyType(
    {
        "mlp": Entry(mlp, (3072,)),
        "resnet50_cifar": Entry(resnet50_cifar, (3, 32, 32)),
        "resnet50_cifar_quarter": Entry(resnet50_cifar_quarter, (3, 32, 32)),
        "vgg19_cifar": Entry(vgg19_cifar, (3, 32, 32)),
        "vgg19_cifar_quarter": Entry(vgg19_cifar_quarter, (3, 32, 32)),
    }
)
