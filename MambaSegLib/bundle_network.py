"""A network with the weights of one fold, refused before it takes memory if the two do not belong together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode

from MambaSegLib.errors import BundleError, InputError
from MambaSegLib.networks import create_network

_FILLS = frozenset({"normal_", "uniform_", "kaiming_normal_", "kaiming_uniform_"})
_FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn)
_SPARE_NUMBERS = 2**24
"""What a network may make besides its weights, such as tables of positions."""

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from MambaSegLib.networks.contract import SegmentationNetwork
    from MambaSegLib.plan import NetworkPlan


def network_with_weights(plan: NetworkPlan, weights: Mapping[str, Tensor], name: str) -> SegmentationNetwork:
    """Build the network of a plan around loaded weights, without random numbers in their place first.

    Args:
        plan: From a bundle, so its sizes may be a trap: building ends where it asks for more than the weights have.
        weights: Parameter name -> tensor.
        name: What to call the model in a message.

    Raises:
        BundleError: If names or shapes differ.
        InputError: If the plan asks for what its builder refuses.
    """
    numbers = sum(value.numel() for value in weights.values())
    with torch.random.fork_rng(devices=[]), _AtMost(2 * numbers + _SPARE_NUMBERS, name):
        network = _build(plan, name)
    _check_agreement({key: value.shape for key, value in network.state_dict().items()}, weights, name)
    network.load_state_dict(dict(weights), strict=True, assign=True)
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    return network


class _AtMost(TorchFunctionMode):
    """Refuses to make more numbers than a model can need, and leaves out the random ones, which its weights replace.

    The meta device would need no memory at all, but for it PyTorch loads its compiler, which takes as long as loading PyTorch.
    """

    def __init__(self, numbers: int, name: str) -> None:
        super().__init__()
        self._left, self._name = numbers, name

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call a function of PyTorch, or fill the tensor it would have drawn with zeros."""
        named = kwargs or {}
        if getattr(func, "__name__", "") in _FILLS:
            tensor = args[0] if args else named["tensor"]
            tensor.detach().zero_()  # not what memory held: `trunc_normal_` draws again until all is within its bounds
            return tensor
        if func in _FACTORIES:
            size = {"size": named["size"]} if "size" in named else {}
            self._left -= torch.empty(*args, **size, device="meta").numel()
            if self._left < 0:
                message = (
                    f"The weights of {self._name} do not belong to the network its bundle.json describes, which is far "
                    "larger. Export or download the model again."
                )
                raise BundleError(message)
        return func(*args, **named)


def _build(plan: NetworkPlan, name: str) -> SegmentationNetwork:
    try:
        return create_network(plan)
    except InputError:
        raise
    except (ValueError, TypeError, AttributeError, LookupError, RuntimeError) as error:
        # A builder may rely on what training always writes; a file from elsewhere may hold anything.
        message = f"The network that bundle.json of {name} describes cannot be built: {error}."
        raise BundleError(message) from error


def _check_agreement(shapes: Mapping[str, tuple[int, ...]], weights: Mapping[str, Tensor], name: str) -> None:
    missing = sorted(shapes.keys() - weights.keys())
    surplus = sorted(weights.keys() - shapes.keys())
    differing = [key for key, value in weights.items() if key in shapes and tuple(value.shape) != tuple(shapes[key])]
    for problem, keys in (("missing", missing), ("not in the network", surplus), ("of another shape", differing)):
        if keys:
            message = (
                f"The weights of {name} do not belong to the network its bundle.json describes: {keys[0]} is {problem} "
                f"({len(keys)} such). Export or download the model again."
            )
            raise BundleError(message)
