"""Operations on a tensor of 12 maps of 8x8, one for every rule about channels."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional


def swapped(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=1)
    return torch.cat([second, first], dim=1)


def nearly_alike(x: Tensor) -> Tensor:
    """Moves of operands of the same forms, which yet do something else."""
    low, high = x.chunk(2, dim=1)
    none = torch.zeros_like(low)
    first, second = torch.cat([low, high], 1), torch.cat([high, low], 1)
    third, fourth = torch.cat([none, low], 1), torch.cat([low, none], 1)
    return torch.cat([first[:, :3], second[:, 2:5], third[:, 5:8], fourth[:, 4:7]], 1)


def shuffled(x: Tensor) -> Tensor:
    return x.view(x.shape[0], 3, 4, 8, 8).transpose(1, 2).reshape(x.shape[0], 12, 8, 8)


def assigned(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[:, 2:7] = x[:, 5:10]
    y[:, 0] = x[:, 11] * 2
    return y


def overwritten(x: Tensor) -> Tensor:
    x = x * 1
    x[:, 3:6] = 0.5
    return x


def through_a_view(x: Tensor) -> Tensor:
    x = x * 1
    x[:, :6].mul_(x[:, 6:] + 1)
    return x


def attention(x: Tensor) -> Tensor:
    heads = x.flatten(2).reshape(x.shape[0], 3, 4, 64).transpose(2, 3)
    scores = heads @ heads.transpose(2, 3) / 1e3
    mixed = functional.softmax(scores, dim=-1) @ heads
    return mixed.transpose(2, 3).reshape(x.shape)


def scaled_dot_product(x: Tensor) -> Tensor:
    heads = x.flatten(2).reshape(x.shape[0], 3, 4, 64).transpose(2, 3)
    mixed = functional.scaled_dot_product_attention(
        heads, heads.roll(1, 1), heads.flip(1), scale=1e-5
    )
    return mixed.transpose(2, 3).reshape(x.shape)


def attended_values(x: Tensor) -> Tensor:
    heads = x.flatten(2).reshape(x.shape[0], 3, 4, 64).transpose(2, 3)
    alike = torch.ones_like(heads)
    mixed = functional.scaled_dot_product_attention(alike, alike, heads)
    return mixed.transpose(2, 3).reshape(x.shape)


def biased_attention(x: Tensor) -> Tensor:
    heads = x.flatten(2).reshape(x.shape[0], 3, 4, 64).transpose(2, 3)
    bias = x.flatten(2)[:, ::4].unsqueeze(2) / 1e3
    mixed = functional.scaled_dot_product_attention(
        torch.ones_like(heads), torch.ones_like(heads), heads.roll(1, 1), bias
    )
    return mixed.transpose(2, 3).reshape(x.shape)


def deep_index(x: Tensor) -> Tensor:
    """An index that depends on the input in a long way, but on none of its channels."""
    index = torch.zeros_like(x[0, 0, 0, :3])
    for _ in range(500):
        index = index + 1
    return torch.cat([x] * 4, 2)[:, :, (index // 100).long()]


OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "activation": functional.relu,
    "dropout": lambda x: functional.dropout(x, 0.5, training=False),
    "residual": lambda x: x + functional.relu(x),
    "residual of others": lambda x: x + x.flip(1),
    "gate": lambda x: (x + 1) * (x.mean((2, 3), keepdim=True).roll(1, dims=1) + 1),
    "one map": lambda x: (x + 1) * (x.mean(1, keepdim=True) + 1),
    "concat": lambda x: torch.cat([x[:, 4:], x[:, :1], x[:, 2:5]], dim=1),
    "concat of maps": lambda x: torch.cat([x.mean(1, True), x.sum(1, True)] * 6, dim=1),
    "tokens": lambda x: torch.cat([x, x.roll(1, 1)], dim=2),
    "stack": lambda x: torch.stack([x[:, :6], x[:, 6:]], dim=2).flatten(1, 2),
    "chunk": swapped,
    "split": lambda x: torch.cat(x.split([5, 3, 4], dim=1)[::-1], dim=1),
    "unbind": lambda x: torch.stack(x.unbind(1)[::-1], dim=1),
    "narrow": lambda x: x.narrow(1, 3, 4).repeat(1, 3, 1, 1),
    "getitem": lambda x: torch.cat([x[:, ::2], x[:, 1::2]], 1),
    "order": lambda x: x[:, torch.tensor([3, 1, 1, 0, 11, 5, 4, 10, 2, 9, 8, 6])],
    "nearly alike": nearly_alike,
    "shuffle": shuffled,
    "pad": lambda x: functional.pad(x[:, :9], (0, 0, 0, 0, 1, 2)),
    "pad places": lambda x: functional.pad(x, (1, 1, 2, 2), value=3.0),
    "pool": lambda x: functional.avg_pool2d(x, 2),
    "global pool": lambda x: functional.adaptive_avg_pool2d(x, 1),
    "resize": lambda x: functional.interpolate(x, scale_factor=2, mode="bilinear"),
    "unshuffle": lambda x: functional.pixel_unshuffle(x[:, :3], 2),
    "pixel shuffle": lambda x: functional.pixel_shuffle(x, 2).repeat(1, 4, 1, 1),
    "channels last": lambda x: x.permute(0, 2, 3, 1).contiguous().movedim(-1, 1),
    "windows": lambda x: x.view(-1, 12, 2, 4, 8).permute(0, 2, 1, 3, 4).reshape(-1, 12, 4, 8),
    "glu": lambda x: functional.glu(torch.cat([x + 1, x.roll(3, 1)], 1), dim=1),
    "norm": lambda x: functional.batch_norm(x, x.new_zeros(12), x.new_ones(12)),
    "softmax": lambda x: functional.softmax(x / 100, dim=1),
    "assign": assigned,
    "overwrite": overwritten,
    "attention": attention,
    "scaled dot product": scaled_dot_product,
    "attended values": attended_values,
    "biased attention": biased_attention,
    "lower rank": lambda x: x + x.mean(0).roll(1, 0),
    "where": lambda x: torch.where(torch.arange(8) > 3, x, x.roll(1, 1)),
    "unused": lambda x: x[:, :6].repeat(1, 2, 1, 1),
}  # fmt: skip
