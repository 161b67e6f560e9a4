"""The model card: what a person must know before using a model, written from its manifest so that both agree."""

from __future__ import annotations

import json
from collections.abc import Iterable

from MambaSegLib.manifest import BundleManifest, Metric, Provenance
from MambaSegLib.plan import Plan

DISCLAIMER = "For research only. Not a medical device. Not for clinical use."


def model_card(manifest: BundleManifest) -> str:
    """Markdown with the front matter model hubs read."""
    sections = (
        _front_matter(manifest),
        f"# {manifest.name} {manifest.version}\n\n{manifest.description}\n\n**{DISCLAIMER}**",
        f"## Intended use\n\n{manifest.intended_use}",
        f"## Limits\n\n{manifest.limits}",
        _input_and_output(manifest.plan),
        _metrics(manifest.metrics),
        _training(manifest.provenance),
        _licenses(manifest.provenance),
        _references(manifest.references),
    )
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(manifest: BundleManifest) -> str:
    def quoted(text: str) -> str:
        return json.dumps(text, ensure_ascii=False)  # JSON text is YAML text

    tags = ["medical", "image-segmentation", "3d", "mamba", manifest.plan.network.name]
    lines = [
        "---",
        f"license: {quoted(manifest.provenance.weights_license)}",
        "library_name: mambasegmentation",
        "pipeline_tag: image-segmentation",
        f"tags: {json.dumps(tags)}",
        f"datasets: [{quoted(manifest.provenance.dataset)}]",
        "---",
    ]
    return "\n".join(lines)


def _input_and_output(plan: Plan) -> str:
    channels = [
        f"* {channel.name}" + (f" ({channel.modality})" if channel.modality else "") for channel in plan.channels
    ]
    volumes = dict(zip(plan.labels, plan.fingerprint.volumes if plan.fingerprint else (), strict=False))
    seen = {label: f" {known.smallest_ml:.3g} to {known.largest_ml:.3g} |" for label, known in volumes.items()}
    labels = [f"| {label.value} | {_cell(label.name)} |{seen.get(label, '')}" for label in plan.predicted_labels]
    spacing = " x ".join(f"{step:g}" for step in plan.spacing_mm)
    return "\n".join(
        [
            "## Input and output",
            "",
            "Input channels:",
            "",
            *channels,
            "",
            f"The network works at {spacing} mm (array order, orientation {plan.orientation}).",
            "Volumes are resampled to that and the result back to the volume's own grid.",
            "",
            "| Value | Structure |" + " In training images, ml |" * bool(seen),
            "| ---: | --- |" + " --- |" * bool(seen),
            *labels,
            *_components(plan),
            *(_regions(plan) if plan.regions else ()),
        ]
    )


def _components(plan: Plan) -> list[str]:
    names = [label.name for label in plan.labels if label.value in plan.keep_largest]
    return ["", f"Of these only the largest connected component is kept: {', '.join(names)}."] if names else []


def _regions(plan: Plan) -> Iterable[str]:
    """What is predicted, where that is not the labels themselves; regions may hold labels that are never predicted."""
    known = {label.value for label in plan.predicted_labels}
    rows = [
        f"| {_cell(region.name)} | {' + '.join(str(value) for value in sorted(known & set(region.labels)))} | {region.value} |"
        for region in plan.regions
    ]
    return (
        "",
        "The network predicts regions that may overlap, each with a probability of its own. In the label map a region is all",
        "its values together: regions are painted one over the other in this order, each where its probability is above 0.5.",
        "",
        "| Region | Values | Painted as |",
        "| --- | --- | ---: |",
        *rows,
    )


def _metrics(metrics: Iterable[Metric]) -> str:
    listed = list(metrics)
    if not any(metric.is_measured for metric in listed):
        return "\n\n".join(["## Measured quality", *(metric.definition for metric in listed)])
    rows = [
        f"| {_cell(metric.name)} | {_cell(metric.label)} | {_number(metric)} | {_interval(metric)} | {metric.n} | "
        f"{metric.excluded} | {_cell(metric.protocol)} |"
        for metric in listed
    ]
    definitions = dict.fromkeys(f"* **{metric.name}**: {metric.definition}" for metric in listed)
    return "\n".join(
        [
            "## Measured quality",
            "",
            "| Metric | Structure | Mean (std) | 95 % interval | Cases | Excluded | Measured on |",
            "| --- | --- | --- | --- | ---: | ---: | --- |",
            *rows,
            "",
            *definitions,
        ]
    )


def _number(metric: Metric) -> str:
    unit = f" {metric.unit}" if metric.unit else ""
    return f"{metric.mean:.3f} ({metric.std:.3f}){unit}"


def _interval(metric: Metric) -> str:
    if metric.ci_low is None or metric.ci_high is None:
        return ""
    return f"{metric.ci_low:.3f} to {metric.ci_high:.3f}"


def _training(provenance: Provenance) -> str:
    facts = {
        "Data": _with_link(provenance.dataset, provenance.dataset_url),
        "Cases": str(provenance.training_cases or ""),
        "Recipe": provenance.recipe,
        "Epochs per fold": str(provenance.epochs or ""),
        "Seeds": ", ".join(str(seed) for seed in provenance.seeds),
        "SHA-256 of the split file": provenance.splits_sha256,
        "Leaks between training and measured cases": provenance.leakage.replace("\n", " "),
        "Code": provenance.code_version,
        "Software": ", ".join(provenance.software),
        "Hardware": provenance.hardware,
        "Exported": provenance.created,
    }
    return "\n".join(["## Training", "", *(f"* {name}: {fact}" for name, fact in facts.items() if fact)])


def _licenses(provenance: Provenance) -> str:
    lines = [
        "## Licenses",
        "",
        f"* Weights: {provenance.weights_license}",
        f"* Training data: {provenance.dataset}, {provenance.dataset_license}",
    ]
    if provenance.dataset_attribution:
        lines += ["", provenance.dataset_attribution]
    return "\n".join(lines)


def _references(references: Iterable[str]) -> str:
    lines = [f"* {reference}" for reference in references]
    return "\n".join(["## References", "", *lines]) if lines else ""


def _with_link(text: str, url: str) -> str:
    return f"[{text}]({url})" if url.startswith("https://") else text


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
