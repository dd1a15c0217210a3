"""torchvision's ResNet-18, 34 and 50 with a width, any input channels and a stem for CIFAR."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from torch import nn

from sparsebench.errors import bad_value
from sparsebench.models.common import image_shape, init_he, scaled, small_stem

if TYPE_CHECKING:
    from torchvision.models import ResNet

# Blocks in each of the four stages (arXiv:1512.03385, table 1).
LAYERS = {18: [2, 2, 2, 2], 34: [3, 4, 6, 3], 50: [3, 4, 6, 3]}


def resnet(
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    width: float = 1.0,
    depth: int = 50,
    stem: str | None = None,
) -> ResNet:
    """ResNet for ImageNet (arXiv:1512.03385), and its usual variant for small images.

    At width 1 with the ImageNet stem it is torchvision's network, bit for bit. ResNet-50 with
    1000 classes has 54 weight tensors of convolutions and linear layers: 25,502,912 weights.

    Args:
        input_shape: (channels, height, width).
        num_classes: outputs.
        width: multiplies the channels; 0.3125 gives the "reduced" ResNet-18 of 20 filters.
        depth: 18, 34 or 50.
        stem: "imagenet" (7x7 convolution of stride 2, max-pooling) or "cifar" (3x3 of stride
            1, no pooling); None chooses "cifar" for images of at most 64 pixels.

    Returns:
        The network.

    Raises:
        UserError: no such depth or stem, or the data are not images.
    """
    from torchvision.models import ResNet
    from torchvision.models.resnet import BasicBlock, Bottleneck

    if depth not in LAYERS:
        raise bad_value("model.depth", str(depth), f"one of {', '.join(map(str, LAYERS))}")
    in_channels, _, _ = image_shape(input_shape, f"resnet{depth}")
    block = Bottleneck if depth >= 50 else BasicBlock
    net = ResNet(block, LAYERS[depth], num_classes)
    if width != 1.0:
        _widen(net, block, LAYERS[depth], width)
    _fit_input(net, in_channels, small_stem(stem, input_shape))
    return net


def _widen(net: ResNet, block: type[nn.Module], layers: list[int], width: float) -> None:
    """Replace every layer by one of scaled width, with torchvision's own stage builder."""
    stem = scaled(64, width)
    net.conv1 = nn.Conv2d(3, stem, 7, stride=2, padding=3, bias=False)
    net.bn1 = nn.BatchNorm2d(stem)
    net.inplanes = stem
    for stage, blocks in enumerate(layers):
        planes = scaled(64 * 2**stage, width)
        stride = 1 if stage == 0 else 2
        setattr(net, f"layer{stage + 1}", net._make_layer(block, planes, blocks, stride=stride))
    net.fc = nn.Linear(net.inplanes, net.fc.out_features)
    init_he(net, mode="fan_out")


def _fit_input(net: ResNet, in_channels: int, small: bool) -> None:
    """Replace the first convolution where the images ask for another one."""
    channels = net.conv1.out_channels
    if small:
        net.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        net.maxpool = nn.Identity()
    elif in_channels != 3:
        net.conv1 = nn.Conv2d(in_channels, channels, 7, stride=2, padding=3, bias=False)
    if small or in_channels != 3:
        nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")


resnet18 = partial(resnet, depth=18)
resnet34 = partial(resnet, depth=34)
resnet50 = partial(resnet, depth=50)
