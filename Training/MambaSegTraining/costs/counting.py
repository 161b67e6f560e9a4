"""Parameters and multiply-adds, counted on shapes: no memory for activations, no arithmetic, any patch in seconds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from MambaSegLib.networks import create_network, set_scan_backend
from MambaSegLib.plan import NetworkPlan
from MambaSegLib.scan import SHAPES
from MambaSegLib.scan.shapes_backend import CONVOLUTION_OPERATOR, SCAN_OPERATOR
from MambaSegTraining.costs.records import MacCount

CONVENTION = (
    "Multiply-adds of one forward pass over one patch, heads of deep supervision included; a multiplication with or without "
    "an addition counts once. Counted are convolutions, linear layers, products of two activations (attention), trilinear "
    "sampling at learned positions (8 per value) and the selective scan: 4 per token, channel and state (delta A; delta u B; "
    "decay of the state; C h), and per token and channel one each for delta u, D u and the gate. Not counted are biases, "
    "norms, activation functions, exponentials, softmax, pooling, interpolation to a fixed grid and additions alone."
)

aten = torch.ops.aten
Rule = Callable[["MacCounter", tuple[Any, ...], Any], tuple[str, int]]


def count_parameters(plan: NetworkPlan) -> int:
    """Trainable numbers of a network.

    Raises:
        InputError: If the network cannot be built for this plan.
    """
    with torch.device("meta"):
        network = create_network(plan)
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def count_macs(plan: NetworkPlan) -> MacCount:
    """Multiply-adds of a forward pass over one patch of the plan, see `CONVENTION`.

    Raises:
        InputError: If the network cannot be built for this plan.
    """
    with torch.device("meta"):
        network = create_network(plan)
    set_scan_backend(network, SHAPES)
    # Meta tensors know no autocast, which networks switch off and on: fake ones believe to be on the processor.
    with FakeTensorMode(allow_non_fake_inputs=True):
        network.to_empty(device="cpu")
        return count_forward(network, torch.empty(1, plan.in_channels, *plan.patch_size))


def count_forward(network: torch.nn.Module, image: Tensor) -> MacCount:
    """Multiply-adds of `network(image)`; on fake tensors if both were made under a `FakeTensorMode` that is active."""
    network.train()  # in eval mode PyTorch's attention takes a fused path that hides its products
    with torch.no_grad(), MacCounter(network) as counter:
        network(image)
    return MacCount(**counter.counts)


class MacCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the multiply-adds of every operation while it is active.

    Attributes:
        counts: By the fields of `MacCount`.
    """

    def __init__(self, network: torch.nn.Module) -> None:
        """`network` tells which tensors are weights."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: Counter[str] = Counter()
        # The address of the storage itself, which views of a weight share; fake tensors have no data to point to.
        self._weights = {parameter.untyped_storage()._cdata for parameter in network.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Run an operation and count it."""
        out = func(*args, **(kwargs or {}))
        rule = _RULES.get(func.overloadpacket)
        if rule is not None:
            kind, count = rule(self, args, out)
            self.counts[kind] += count
        return out

    def product_kind(self, *factors: Tensor) -> str:
        """Whether a matrix product has a weight in it."""
        return "linear" if any(factor.untyped_storage()._cdata in self._weights for factor in factors) else "attention"


def _convolution(counter: MacCounter, args: tuple[Any, ...], out: Tensor) -> tuple[str, int]:
    """Each output takes Cin / groups * kernel products; transposed, each input takes part in as many outputs."""
    image, weight, transposed = args[0], args[1], args[6]
    return "convolution", (image if transposed else out).numel() * weight[0].numel()


def _matrix_product(counter: MacCounter, args: tuple[Any, ...], out: Tensor) -> tuple[str, int]:
    left, right = args[-2], args[-1]
    return counter.product_kind(left, right), out.numel() * left.shape[-1]


def _attention(counter: MacCounter, args: tuple[Any, ...], out: Any) -> tuple[str, int]:
    """Queries (..., S, E) with keys (..., T, E), then with values (..., T, E'), in one operation."""
    query, key, value = args[:3]
    return "attention", query[..., 0].numel() * key.shape[-2] * (key.shape[-1] + value.shape[-1])


def _sampling(counter: MacCounter, args: tuple[Any, ...], out: Tensor) -> tuple[str, int]:
    corners = 2 ** (out.ndim - 2)
    return "sampling", out.numel() * (corners if args[2] == 0 else 0)  # 0 is linear interpolation


def _scan(counter: MacCounter, args: tuple[Any, ...], out: Tensor) -> tuple[str, int]:
    u, decay, factors = args
    return "scan", u.numel() * (4 * decay.shape[1] + factors)


def _causal_convolution(counter: MacCounter, args: tuple[Any, ...], out: Tensor) -> tuple[str, int]:
    return "convolution", out.numel() * args[1].shape[1]


_RULES: dict[Any, Rule] = {
    aten.convolution: _convolution,
    aten.mm: _matrix_product,
    aten.bmm: _matrix_product,
    aten.addmm: _matrix_product,
    aten.baddbmm: _matrix_product,
    aten._scaled_dot_product_flash_attention: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_efficient_attention: _attention,
    aten._scaled_dot_product_cudnn_attention: _attention,
    aten.grid_sampler_2d: _sampling,
    aten.grid_sampler_3d: _sampling,
    SCAN_OPERATOR: _scan,
    CONVOLUTION_OPERATOR: _causal_convolution,
}
