"""A network with the weights of one fold, refused before it takes memory if the two do not belong together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from MambaSegLib.errors import BundleError, InputError
from MambaSegLib.networks import create_network

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from MambaSegLib.networks.contract import SegmentationNetwork
    from MambaSegLib.plan import NetworkPlan


def network_with_weights(plan: NetworkPlan, weights: Mapping[str, Tensor], name: str) -> SegmentationNetwork:
    """Build the network of a plan around loaded weights, without initializing it first.

    Args:
        plan: From a bundle, so its sizes may be a trap: the network is laid out without memory before it is filled.
        weights: Parameter name -> tensor.
        name: What to call the model in a message.

    Raises:
        BundleError: If names or shapes differ.
        InputError: If the plan asks for what its builder refuses.
    """
    import torch

    with torch.device("meta"):
        network = _build(plan, name)
    _check_agreement({key: value.shape for key, value in network.state_dict().items()}, weights, name)
    network.load_state_dict(dict(weights), strict=True, assign=True)
    unfilled = [key for key, value in network.named_buffers() if value.is_meta]
    if unfilled:  # buffers that are computed, not stored: let the builder compute them
        network = _build(plan, name)
        network.load_state_dict(dict(weights), strict=True)
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    return network


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
