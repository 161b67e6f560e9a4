"""How well predictions agree with their references: definitions, scores per case and structure, summaries."""

from __future__ import annotations

from MambaSegTraining.metrics.definitions import DEFINITIONS, DSC, MetricDefinition
from MambaSegTraining.metrics.overlap import dice
from MambaSegTraining.metrics.scores import LabelScore, Structure, score_case, structures_of
from MambaSegTraining.metrics.summary import MetricSummary, Summary, summarize_scores, summarize_values

DICE_DEFINITION = DSC.text

__all__ = [
    "DEFINITIONS",
    "DICE_DEFINITION",
    "LabelScore",
    "MetricDefinition",
    "MetricSummary",
    "Structure",
    "Summary",
    "dice",
    "score_case",
    "structures_of",
    "summarize_scores",
    "summarize_values",
]
