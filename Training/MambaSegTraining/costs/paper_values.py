"""The right half of the paper's Table 1 (Lumetti et al., ISBI 2025), and what is known about how it came about."""

from __future__ import annotations

from dataclasses import dataclass

PAPER_DATASET = "synapse"


@dataclass(frozen=True)
class PaperCost:
    """One row as printed.

    Attributes:
        parameters_m: Millions of parameters.
        gflops: Operations; see `NOTES`.
        memory_gb: Training memory on an A100.
        training_h: Time of the training.
        inference_s: Mean time per test volume.
        about: What these numbers agree with, or do not.
    """

    parameters_m: float
    gflops: float
    memory_gb: float
    training_h: float
    inference_s: float
    about: str = ""


_README = "operations agree with MedNeXt's own README, which counts a patch of 128 x 128 x 128"
_SMALL = "operations agree with multiply-adds, norms included, of a patch of 64 x 128 x 128, not the data set's"
_NEITHER = "neither number could be reproduced"

PRINTED: dict[str, PaperCost] = {
    "nnunet": PaperCost(30.64, 410.11, 7.65, 9.20, 21.80, _NEITHER),
    "nnunet_resenc": PaperCost(
        57.50, 502.49, 10.00, 10.00, 22.20, _NEITHER + "; the released ResEncM plan has 101.87 M"
    ),
    "mednext_m_k3": PaperCost(32.65, 248.03, 15.32, 67.60, 153.60, _README),
    "mednext_m_k5": PaperCost(34.75, 308.01, 18.85, 218.30, 416.90, _README),
    "transunet": PaperCost(96.07, 88.91, 16.25, 26.50, 73.90, _NEITHER),
    "cotr": PaperCost(50.12, 369.22, 8.10, 18.60, 41.40, _NEITHER),
    "unetr": PaperCost(92.49, 75.76, 15.29, 15.40, 39.50, _SMALL),
    "swin_unetr": PaperCost(62.83, 384.20, 13.91, 22.00, 38.70, _SMALL),
    "nnformer": PaperCost(150.50, 213.41, 9.73, 8.20, 20.60, _SMALL),
    "umamba_bot": PaperCost(41.95, 156.32, 13.55, 22.00, 54.20, "operations could not be reproduced"),
    "umamba_enc": PaperCost(42.85, 231.18, 26.42, 37.90, 89.30, "operations could not be reproduced"),
    "mamba_unet_unidirectional": PaperCost(61.49, 480.90, 25.61, 12.70, 99.60, _NEITHER),
    "mamba_unet_bidirectional": PaperCost(64.75, 494.17, 27.31, 16.50, 134.10, _NEITHER),
    "mamba_unet_multidirectional": PaperCost(68.46, 527.56, 36.92, 18.20, 149.00, _NEITHER),
}

NOTES = (
    (
        "Printed: the right half of the paper's Table 1, which is about the Synapse data set. It is not one measurement. Of "
        "the parameters, those of umamba_bot, umamba_enc and (without a convolution in its blocks) unetr agree with the "
        "networks' code; the operations of the transformers and of MedNeXt agree with counts for other patches; no "
        "convention that was tried gives the other numbers. Nothing here was fitted to them."
    ),
    "The three Mamba U-Nets are counted as the released code builds them (preset released), the scan included.",
    "Memory and times were printed for an A100 with 80 GB; hold only measurements on such a card against them.",
)
