"""What of a trained nnU-Net would be computed here in another way, and so is refused.

One difference remains and is the program's own, see `sliding_window`: probabilities, not logits, are averaged and resampled.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from MambaSegLib.errors import InputError
from MambaSegLib.nnunet.plans import Content, read_configuration
from MambaSegLib.plan import Plan

_PACKAGE = "dynamic_network_architectures."
_STAGES = ("n_stages", "features_per_stage", "kernel_sizes", "strides")
_BLOCKS = ("n_conv_per_stage", "n_blocks_per_stage", "n_conv_per_stage_decoder")
_FIXED: dict[str, tuple[Any, ...]] = {
    "conv_op": ("torch.nn.modules.conv.Conv3d",),
    "conv_bias": (True,),
    "norm_op": ("torch.nn.modules.instancenorm.InstanceNorm3d",),
    "norm_op_kwargs": ({"eps": 1e-05, "affine": True},),
    "dropout_op": (None,),
    "dropout_op_kwargs": (None, {}),
    "nonlin": ("torch.nn.LeakyReLU", "torch.nn.modules.activation.LeakyReLU"),
    "nonlin_kwargs": ({"inplace": True}, {"inplace": False}, {}, None),
}
_RESAMPLING = {"is_seg": False, "order_z": 0, "force_separate_z": None}


def refuse_differences(plans: Content, configuration: str, plan: Plan, file: str) -> None:
    """Refuse plans this package does not follow to the letter.

    Args:
        plans: Content of plans.json.
        configuration: The one that was trained.
        plan: What was read from them.
        file: What to call them in the message.

    Raises:
        InputError: At the first difference, with what was found and what can be converted.
    """
    settings = read_configuration(plans, configuration, file)
    for what, found, possible in _differences(plans, settings, plan):
        msg = f"{file}: {what} is {found!r}, which cannot be reproduced exactly; only {possible} can be converted."
        raise InputError(msg)


def _differences(plans: Content, settings: Content, plan: Plan) -> Iterator[tuple[str, object, str]]:
    """(what, found, possible) of each."""
    chosen = (
        ("label_manager", plans.get("label_manager", "LabelManager"), ("LabelManager",)),
        ("preprocessor_name", settings.get("preprocessor_name"), ("DefaultPreprocessor",)),
    )
    for key, value, known in chosen:
        if value not in known:
            yield key, value, ", ".join(known)
    if sorted(plans["transpose_forward"]) != [0, 1, 2]:
        yield "transpose_forward", plans["transpose_forward"], "an order of the three axes"
    yield from _resampling("resampling_fn_data", settings, {**_RESAMPLING, "order": 3})
    yield from _resampling("resampling_fn_probabilities", settings, {**_RESAMPLING, "order": 1})
    if "architecture" in settings:
        yield from _architecture(settings["architecture"])
    network = plan.network
    if network.stages[0].stride != (1, 1, 1):
        yield "the first stride", network.stages[0].stride, "(1, 1, 1)"
    if list(network.patch_size) != list(settings["patch_size"]):
        yield "patch_size", settings["patch_size"], f"multiples of the strides, such as {network.patch_size},"


def _resampling(key: str, settings: Content, expected: Content) -> Iterator[tuple[str, object, str]]:
    function, options = settings.get(key), settings.get(f"{key}_kwargs")
    if function != "resample_data_or_seg_to_shape":
        yield key, function, "resample_data_or_seg_to_shape"
    if options != expected:
        yield f"{key}_kwargs", options, str(dict(expected))


def _architecture(architecture: Content) -> Iterator[tuple[str, object, str]]:
    name, options = architecture["network_class_name"], architecture["arch_kwargs"]
    if not name.startswith(_PACKAGE):
        yield "network_class_name", name, f"the networks of {_PACKAGE[:-1]}"
    for key, known in _FIXED.items():
        if options.get(key) not in known:
            yield key, options.get(key), " or ".join(map(repr, known))
    for key in sorted(options.keys() - {*_FIXED, *_STAGES, *_BLOCKS}):
        yield key, options[key], "networks without it"
