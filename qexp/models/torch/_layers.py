"""How a module's parameters lie in the weight vector, and a layer's gradient as factors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional

__all__ = [
    "Layer",
    "Plan",
    "chosen_parameters",
    "common_dtype",
    "lay_out",
    "refuse_coupled",
    "rows_of",
]


@dataclass(frozen=True)
class Plan:
    """Zeros of the shape of every output of each tapped layer, by the layer's index."""

    taps: dict[int, list[Any]] = field(default_factory=dict)


def refuse_coupled(module: nn.Module, *, frozen_batch_norm: bool) -> None:
    """Refuse layers whose output for one record depends on the records beside it."""
    coupled = [
        (name, layer)
        for name, layer in module.named_modules()
        if isinstance(layer, nn.modules.batchnorm._NormBase)
        and (isinstance(layer, nn.modules.batchnorm._BatchNorm) or layer.track_running_stats)
    ]
    without_statistics = [(name, layer) for name, layer in coupled if layer.running_mean is None]
    refused = without_statistics if frozen_batch_norm else coupled
    if not refused:
        return
    names = ", ".join(f"{name or 'the module'} ({type(layer).__name__})" for name, layer in refused)
    channels = refused[0][1].num_features
    groups = math.gcd(channels, 8)
    remedy = (
        "they keep no running statistics that could be frozen"
        if frozen_batch_norm
        else "if their running statistics come from public data, frozen_batch_norm=True keeps "
        "those as fixed numbers"
    )
    raise ValueError(
        f"the module has layers that couple the records of a batch: {names}; a record would change "
        "the gradients of others. Replace each before pretraining, for example by "
        f"torch.nn.GroupNorm({groups}, {channels}); {remedy}"
    )


def chosen_parameters(module: nn.Module, parameters: Sequence[str] | None) -> dict[str, Any]:
    """Give the parameters to tune, by name."""
    named = dict(module.named_parameters())
    if any(isinstance(p, nn.parameter.UninitializedParameter) for p in named.values()):
        raise ValueError("the module has lazy layers without weights; call it once on an example")
    if parameters is None:
        chosen = {name: p for name, p in named.items() if p.requires_grad}
        if not chosen:
            raise ValueError(
                "no parameter of the module has requires_grad; name those to tune in parameters"
            )
    else:
        if isinstance(parameters, str):
            raise TypeError(f"parameters is {parameters!r}; it needs a sequence of names")
        unknown = [
            given
            for given in parameters
            if not any(name == given or name.startswith(given + ".") for name in named)
        ]
        if unknown or not parameters:
            raise ValueError(
                f"parameters holds {unknown}; it needs names of parameters, or of modules that "
                f"have some, out of {list(named)}"
            )
        chosen = {
            name: p
            for name, p in named.items()
            if any(name == given or name.startswith(given + ".") for given in parameters)
        }
    elsewhere = sorted({str(p.device) for p in named.values() if p.device.type != "cpu"})
    if elsewhere:
        raise ValueError(
            f"the module is on {elsewhere}; bits are kept apart on the CPU only: use module.cpu()"
        )
    return chosen


def common_dtype(chosen: dict[str, Any]) -> Any:
    """Give the one dtype of the parameters to tune; raise where there are several."""
    dtypes = {p.dtype for p in chosen.values()}
    if len(dtypes) != 1 or not dtypes <= {torch.float32, torch.float64}:
        raise TypeError(
            f"the parameters to tune are {sorted(map(str, dtypes))}; they must be all float32 or "
            "all float64: use module.float()"
        )
    return dtypes.pop()


def lay_out(module: nn.Module, chosen: set[str]) -> list[Layer]:
    """Lay the chosen parameters out, module by module."""
    owners: dict[int, int] = {}
    for owner in module.modules():
        for parameter in owner._parameters.values():
            if parameter is not None:
                owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    layers = []
    for path, owner in module.named_modules():
        own = {
            name: parameter
            for name, parameter in owner._parameters.items()
            if parameter is not None and _joined(path, name) in chosen
        }
        weight = own.get("weight")
        if weight is not None and _has_factors(owner) and owners[id(weight)] == 1:
            bias = own.get("bias")
            has_bias = bias is not None and owners[id(bias)] == 1
            out = weight.shape[0]
            layers.append(
                Layer(
                    name=path,
                    shape=(out, weight[0].numel() + has_bias),
                    weight=_joined(path, "weight"),
                    weight_shape=tuple(weight.shape),
                    bias=_joined(path, "bias") if has_bias else None,
                    is_tapped=True,
                )
            )
            del own["weight"]
            if has_bias:
                del own["bias"]
        for name, parameter in own.items():
            rows = parameter.shape[0] if parameter.ndim > 1 else 1
            layers.append(
                Layer(
                    name=_joined(path, name),
                    shape=(rows, parameter.numel() // rows),
                    weight=_joined(path, name),
                    weight_shape=tuple(parameter.shape),
                    bias=None,
                    is_tapped=False,
                )
            )
    return layers


def _has_factors(module: nn.Module) -> bool:
    if isinstance(module, nn.Linear):
        return True
    return (
        isinstance(module, nn.Conv1d | nn.Conv2d)
        and module.groups == 1
        and module.padding_mode == "zeros"
    )


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


@dataclass(frozen=True)
class Layer:
    """One matrix of the weight vector: a tapped module, or one parameter by itself."""

    name: str
    shape: tuple[int, int]
    weight: str
    weight_shape: tuple[int, ...]
    bias: str | None
    is_tapped: bool

    @property
    def parameters(self) -> tuple[str, ...]:
        return (self.weight,) if self.bias is None else (self.weight, self.bias)

    def pack(self, tensors: dict[str, Any], *batch: int) -> Any:
        """Lay out tensors, or batches of them, as flat rows."""
        matrix = tensors[self.weight].reshape(*batch, self.shape[0], -1)
        if self.bias is not None:
            column = tensors[self.bias].reshape(*batch, self.shape[0], 1)
            matrix = torch.cat([matrix, column], dim=-1)
        return matrix.reshape(*batch, -1)

    def unpack(self, flat: Any) -> dict[str, Any]:
        matrix = flat.reshape(self.shape)
        if self.bias is None:
            return {self.weight: matrix.reshape(self.weight_shape).clone()}
        return {
            self.weight: matrix[:, :-1].reshape(self.weight_shape).clone(),
            self.bias: matrix[:, -1].clone(),
        }

    def factors(self, module: nn.Module, seen: list[Any], deltas: list[Any]) -> tuple[Any, Any]:
        """Give inputs (B, T, in + 1) and deltas (B, T, out) over all positions of all calls."""
        arrange = _linear_positions if isinstance(module, nn.Linear) else _conv_positions
        pairs = [arrange(module, a, d) for a, d in zip(seen, deltas, strict=True)]
        inputs = torch.cat([a for a, _ in pairs], dim=1) if len(pairs) > 1 else pairs[0][0]
        outputs = torch.cat([d for _, d in pairs], dim=1) if len(pairs) > 1 else pairs[0][1]
        if self.bias is not None:
            inputs = functional.pad(inputs, (0, 1), value=1.0)
        return inputs, outputs


def _linear_positions(module: Any, inputs: Any, deltas: Any) -> tuple[Any, Any]:
    records = len(inputs)
    return (
        inputs.reshape(records, -1, module.in_features),
        deltas.reshape(records, -1, module.out_features),
    )


def _conv_positions(module: Any, inputs: Any, deltas: Any) -> tuple[Any, Any]:
    """Cut a convolution's inputs (B, ..., channels, height, width) into patches."""
    records, spatial = len(inputs), len(module.kernel_size)
    images = inputs.reshape(-1, *inputs.shape[-spatial - 1 :])
    sides = _padding(module)
    # A line of pixels is an image one pixel high.
    one = (1,) * (2 - spatial)
    if spatial == 1:
        images = images.unsqueeze(-2)
    patches = functional.unfold(
        functional.pad(images, sides),
        (*one, *module.kernel_size),
        dilation=(*one, *module.dilation),
        stride=(*one, *module.stride),
    )
    size, positions = patches.shape[1:]
    patches = patches.reshape(records, -1, size, positions).transpose(2, 3)
    deltas = deltas.reshape(records, -1, module.out_channels, positions).transpose(2, 3)
    return (
        patches.reshape(records, -1, size),
        deltas.reshape(records, -1, module.out_channels),
    )


def _padding(module: Any) -> list[int]:
    """Give the zeros before and after each dimension, the last one first."""
    sides: list[int] = []
    for axis in reversed(range(len(module.kernel_size))):
        if module.padding == "same":
            total = module.dilation[axis] * (module.kernel_size[axis] - 1)
            sides += [total // 2, total - total // 2]
        elif module.padding == "valid":
            sides += [0, 0]
        else:
            sides += [module.padding[axis]] * 2
    return sides


def rows_of(factors: Any) -> Any:
    """Form gradient rows (B, p_l) from a pair (a, δ), or pass rows on."""
    if isinstance(factors, torch.Tensor):
        return factors
    inputs, deltas = factors
    return torch.bmm(deltas.transpose(1, 2), inputs).reshape(len(inputs), -1)
