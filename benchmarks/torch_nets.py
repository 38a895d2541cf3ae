"""The networks of `nets` in PyTorch, and the ways to their gradients. Needs torch and opacus."""

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel


def mlp() -> nn.Module:
    """As `nets.mlp`."""
    sizes = (600, 1024, 512, 256)
    hidden = [(nn.Linear(a, b), nn.Tanh()) for a, b in zip(sizes, sizes[1:], strict=False)]
    return nn.Sequential(*(layer for pair in hidden for layer in pair), nn.Linear(256, 100))


def alexnet() -> nn.Module:
    """As `nets.alexnet`."""
    return nn.Sequential(
        *(nn.Conv2d(3, 64, 11, stride=4, padding=5), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(192, 384, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(256, 100)),
    )


def _norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, eps=1e-3)


class _Block(nn.Module):
    def __init__(self, channels: int, features: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, features, 3, stride, padding=1)
        self.first_norm = _norm(features)
        self.second = nn.Conv2d(features, features, 3, padding=1)
        self.short = nn.Conv2d(channels, features, 1, stride) if stride > 1 else None
        self.second_norm = _norm(features)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second_norm(self.second(F.relu(self.first_norm(self.first(x)))))
        return F.relu((x if self.short is None else self.short(x)) + y)


def resnet() -> nn.Module:
    """As `nets.resnet`."""
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), _norm(16), nn.ReLU()),
        *(_Block(16, 16, 1), _Block(16, 32, 2), _Block(32, 64, 2)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    )


def separable() -> nn.Module:
    """As `nets.separable`."""
    stack = [nn.ZeroPad2d((1, 1, 4, 5)), nn.Conv2d(1, 64, (10, 4), 2), _norm(64), nn.ReLU()]
    for _ in range(4):
        stack += [nn.Conv2d(64, 64, 3, padding=1, groups=64), _norm(64), nn.ReLU()]
        stack += [nn.Conv2d(64, 64, 1), _norm(64), nn.ReLU()]
    return nn.Sequential(*stack, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 12))


class _Recurrent(nn.Module):
    """A recurrent layer's last output, classified."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.recurrent = layer
        self.dense = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(self.recurrent(x)[0][:, -1])


class _Stepped(nn.Module):
    """`nn.LSTM` a step at a time: `vmap` has no rule for the layer itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight_ih_l0 = nn.Parameter(torch.zeros(256, 32))
        self.weight_hh_l0 = nn.Parameter(torch.zeros(256, 64))
        self.bias_ih_l0 = nn.Parameter(torch.zeros(256))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        hidden = cell = x.new_zeros(len(x), 64)
        given = F.linear(x, self.weight_ih_l0, self.bias_ih_l0)
        outputs = []
        for step in given.unbind(1):
            gates = (step + F.linear(hidden, self.weight_hh_l0)).chunk(4, dim=-1)
            i, f, o = (torch.sigmoid(gates[k]) for k in (0, 1, 3))
            cell = f * cell + i * torch.tanh(gates[2])
            hidden = o * torch.tanh(cell)
            outputs.append(hidden)
        return (torch.stack(outputs, dim=1),)


def lstm() -> nn.Module:
    """As `nets.lstm`."""
    return _Recurrent(nn.LSTM(32, 64, batch_first=True))


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(64, 64) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (2, 32)).transpose(-3, -2)
            for layer in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(q, k, v)
        return self.out(y.transpose(-3, -2).flatten(-2))


class _Residual(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.LayerNorm(64, eps=1e-3), *layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class _Mean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=1)


def transformer() -> nn.Module:
    """As `nets.transformer`."""
    blocks = [
        block
        for _ in range(2)
        for block in (
            _Residual(_Attention()),
            _Residual(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)),
        )
    ]
    ending = (nn.LayerNorm(64, eps=1e-3), _Mean(), nn.Linear(64, 10))
    return nn.Sequential(nn.Embedding(1000, 64), *blocks, *ending)


MAKE: dict[str, Callable[[], nn.Module]] = {
    make.__name__: make for make in (mlp, alexnet, resnet, separable, lstm, transformer)
}


def with_weights(name: str, weights: list[np.ndarray]) -> nn.Module:
    """The network in inference mode, with the Keras model's trainable weights, in their order."""
    net = MAKE[name]().eval()
    for key, parameter in net.named_parameters():
        # Keras has one bias where torch's LSTM has two.
        parameter.requires_grad_("bias_hh" not in key)
        if "bias_hh" in key:
            nn.init.zeros_(parameter)
    for parameter, value in zip(_trainable(net), weights, strict=True):
        parameter.data = torch.tensor(_as_torch(value, tuple(parameter.shape)))
    return net


def _as_torch(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A Keras weight in torch's layout."""
    if value.ndim == 4:  # kernels of convolutions: [h, w, in, out], depthwise [h, w, channels, 1]
        order = (2, 3, 0, 1) if shape[1] == 1 and value.shape[3] == 1 else (3, 2, 0, 1)
        return np.ascontiguousarray(value.transpose(order))
    if len(shape) == 2 and value.shape[0] != 1000:  # Dense, and attention's kernels of three axes
        return np.ascontiguousarray(value.reshape(shape[1], shape[0]).T)
    return value.reshape(shape)  # biases, scales, embeddings


def _trainable(net: nn.Module) -> Iterator[nn.Parameter]:
    return (parameter for parameter in net.parameters() if parameter.requires_grad)


def batch_gradient(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], Any]:
    """Of the mean loss."""
    parameters = list(_trainable(net))
    return lambda: torch.autograd.grad(F.cross_entropy(net(x), y), parameters)


def by_func(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], list[Tensor]]:
    """Per-example gradients by `torch.func`, as its tutorial does."""
    if isinstance(getattr(net, "recurrent", None), nn.LSTM):
        stepped = _Recurrent(_Stepped())
        stepped.load_state_dict(net.state_dict(), strict=False)
        net = stepped
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    buffers = dict(net.named_buffers())

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        out = functional_call(net, (parameters, buffers), (x[None],))
        return F.cross_entropy(out, y[None])

    every = vmap(grad(loss), in_dims=(None, 0, 0))

    def run() -> list[Tensor]:
        with sdpa_kernel(SDPBackend.MATH):  # vmap has no rule for fused attention
            return list(every(parameters, x, y).values())

    return run


def by_opacus(net: nn.Module, x: Tensor, y: Tensor) -> Callable[[], list[Tensor]]:
    """Per-example gradients by Opacus' hooks, which refuse BatchNorm.

    The hooks want the network in training mode, in which those they accept compute the same.
    """
    from opacus.grad_sample import GradSampleModule
    from opacus.layers import DPLSTM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on each parameter that asks for no gradient
        net = copy.deepcopy(net)
        if isinstance(getattr(net, "recurrent", None), nn.LSTM):
            layer: Any = DPLSTM(32, 64, batch_first=True)
            layer.load_state_dict(net.recurrent.state_dict())
            net.recurrent = layer
            for key, parameter in net.named_parameters():
                parameter.requires_grad_("bias_hh" not in key and "hh.bias" not in key)
        hooked = GradSampleModule(net.train(), loss_reduction="sum")

    def run() -> list[Tensor]:
        hooked.zero_grad()
        F.cross_entropy(hooked(x), y, reduction="sum").backward()
        return [p.grad_sample for p in hooked.parameters() if p.requires_grad]

    return run
