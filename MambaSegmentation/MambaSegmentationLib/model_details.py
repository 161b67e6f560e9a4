"""What a person reads about a model before choosing it."""

from __future__ import annotations

from html import escape

from MambaSegLib.manifest import BundleManifest, Metric
from MambaSegLib.model_zoo import ListedModel
from MambaSegLib.plan import Label

OPEN_LICENSES = ("Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "CC-BY-4.0", "CC-BY-SA-4.0")
"""Licenses of weights that allow any use, commercial use too."""


def licenseQuestion(model: ListedModel) -> str:
    """What to ask a person who installs a model whose weights may not be used for everything; "" if they may."""
    if model.manifest is None or model.manifest.provenance.weights_license in OPEN_LICENSES:
        return ""
    found = model.manifest.provenance.weights_license
    return (
        f'The weights of {model.name} are under the license "{found}", which may forbid some uses, such as commercial '
        "ones. Do you accept it and keep the model?"
    )


def modelTitle(model: ListedModel) -> str:
    """Line of the model picker."""
    return model.name if not model.problem else f"{model.name} (cannot be used)"


def matches(model: ListedModel, words: str) -> bool:
    """Whether every word of a search occurs in what the model says about itself."""
    text = model.name
    if model.manifest is not None:
        plan = model.manifest.plan
        parts = [model.manifest.description, model.manifest.provenance.dataset]
        parts += [f"{channel.name} {channel.modality}" for channel in plan.channels]
        text = " ".join([text, *parts, *(label.name for label in plan.labels)])
    return all(word in text.lower() for word in words.lower().split())


def modelHtml(model: ListedModel) -> str:
    """Details of a model as HTML; what it says is escaped, since a stranger may have written it."""
    if model.manifest is None:
        return f"<p><b>{escape(model.name)}</b> cannot be used: {escape(model.problem)}</p>"
    manifest = model.manifest
    channels = ", ".join(f"{channel.name} {channel.modality}".strip() for channel in manifest.plan.channels)
    rows = [
        ("Input", escape(channels)),
        ("Segments", ", ".join(map(_labelHtml, manifest.plan.labels))),
        ("Network", escape(f"{manifest.plan.network.name}, {len(manifest.folds)} fold(s)")),
        ("Accuracy", "<br>".join(map(_metricHtml, manifest.metrics)) or "not stated"),
        ("Trained on", escape(_training(manifest))),
        ("License of the weights", escape(manifest.provenance.weights_license)),
        ("Intended use", escape(manifest.intended_use)),
        ("Limits", escape(manifest.limits)),
        ("On disk", escape(f"{sum(fold.bytes for fold in manifest.folds) / 1e6:.1f} MB, {model.path}")),
    ]
    table = "".join(f"<tr><td valign='top'><b>{name}</b>&nbsp;</td><td>{value}</td></tr>" for name, value in rows)
    head = f"<b>{escape(manifest.name)} {escape(manifest.version)}</b> ({model.origin})"
    return f"<p>{head}<br>{escape(manifest.description)}</p><table>{table}</table>"


def _labelHtml(label: Label) -> str:
    color = "#{:02x}{:02x}{:02x}".format(*label.color)
    return f"<span style='color:{color}'>&#9632;</span>&nbsp;{escape(label.name)}"


def _metricHtml(metric: Metric) -> str:
    unit = f" {metric.unit}" if metric.unit else ""
    value = f"{metric.name} {metric.label}: {metric.mean:.3f} &plusmn; {metric.std:.3f}{escape(unit)} (n = {metric.n})"
    return f"{value}<br><small>{escape(metric.definition)} {escape(metric.protocol)}</small>"


def _training(manifest: BundleManifest) -> str:
    provenance = manifest.provenance
    cases = f", {provenance.training_cases} cases" if provenance.training_cases else ""
    return f"{provenance.dataset}{cases} ({provenance.dataset_license}). {provenance.dataset_attribution}".strip()
