"""What a person reads about a model before choosing it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from MambaSegLib.manifest import BundleManifest, Metric
from MambaSegLib.model_zoo import ListedModel
from MambaSegLib.plan import Channel, Label, Plan
from MambaSegmentationLib.translation import tr as _


def modelTitle(model: ListedModel) -> str:
    """Line of the model picker."""
    return model.name if not model.problem else _("{name} (cannot be used)").format(name=model.name)


def matches(model: ListedModel, words: str) -> bool:
    """Whether every word of a search occurs in what the model says about itself."""
    text = model.name
    if model.manifest is not None:
        plan = model.manifest.plan
        parts = [model.manifest.description, model.manifest.provenance.dataset]
        parts += [f"{channel.name} {channel.modality}" for channel in plan.channels]
        text = " ".join([text, *parts, *(label.name for label in plan.predicted_labels), *plan.structure_names])
    return all(word in text.lower() for word in words.lower().split())


def modelHtml(model: ListedModel) -> str:
    """Details of a model as HTML; what it says is escaped, since a stranger may have written it."""
    if model.manifest is None:
        sentence = _("{name} cannot be used: {problem}")
        return f"<p>{sentence.format(name=f'<b>{escape(model.name)}</b>', problem=escape(model.problem))}</p>"
    manifest = model.manifest
    rows = [
        (_("Input"), escape(", ".join(map(_channelText, manifest.plan.channels)))),
        (_("Segments"), ", ".join(map(_labelHtml, manifest.plan.predicted_labels))),
        (_("Regions"), escape(_regions(manifest.plan))),
        (_("Anatomy"), escape(", ".join(_anatomy(manifest)))),
        (_("Network"), escape(_networkText(manifest))),
        (_("Accuracy"), _accuracyHtml(manifest.metrics)),
        (_("Trained on"), escape(_training(manifest))),
        (_("License"), escape(_("{license} (weights)").format(license=manifest.provenance.weights_license))),
        (_("Intended use"), escape(manifest.intended_use)),
        (_("Limits"), escape(manifest.limits)),
        (_("On disk"), escape(f"{sum(fold.bytes for fold in manifest.folds) / 1e6:.1f} MB, {model.path}")),
    ]
    table = "".join(
        f"<tr><td valign='top'><b>{name}</b>&nbsp;&nbsp;</td><td>{value}</td></tr>" for name, value in rows if value
    )
    title = f"<small>{escape(manifest.name)} {escape(manifest.version)} ({model.origin})</small>"
    return f"<p><b>{escape(manifest.description)}</b><br>{title}</p><table>{table}</table>"


def _networkText(manifest: BundleManifest) -> str:
    return _("{network}, {count} fold(s)").format(network=manifest.plan.network.name, count=len(manifest.folds))


def _channelText(channel: Channel) -> str:
    return f"{channel.name} ({channel.modality})" if channel.modality else channel.name


def _anatomy(manifest: BundleManifest) -> list[str]:
    """What the terminology of the labels calls the structures, each once."""
    codes = [label.terminology.type.meaning for label in manifest.plan.labels if label.terminology is not None]
    return list(dict.fromkeys(codes))


def _regions(plan: Plan) -> str:
    """Structures of several labels, where the network predicts such."""
    names = {label.value: label.name for label in plan.predicted_labels}
    return "; ".join(
        f"{region.name} = {' + '.join(names[value] for value in region.labels)}" for region in plan.compound_regions
    )


def _labelHtml(label: Label) -> str:
    color = "#{:02x}{:02x}{:02x}".format(*label.color)
    return f"<span style='color:{color}'>&#9632;</span>&nbsp;{escape(label.name)}"


def _accuracyHtml(metrics: Sequence[Metric]) -> str:
    """The figures, then what they mean, once each."""
    if metrics and not any(metric.is_measured for metric in metrics):
        return "<br>".join(escape(metric.definition) for metric in metrics)
    # What holds for all structures comes first: it is what a person compares.
    lines = [_metricText(metric) for metric in sorted(metrics, key=lambda metric: metric.label != "mean")]
    definitions = dict.fromkeys(f"{metric.name}: {metric.definition} {metric.protocol}".strip() for metric in metrics)
    small = "".join(f"<br><small>{escape(text)}</small>" for text in definitions)
    return "<br>".join(map(escape, lines)) + small if lines else _("not stated")


def _metricText(metric: Metric) -> str:
    unit = f" {metric.unit}" if metric.unit else ""
    return f"{metric.name} {metric.label}: {metric.mean:.3f} \u00b1 {metric.std:.3f}{unit} (n = {metric.n})"


def _training(manifest: BundleManifest) -> str:
    provenance = manifest.provenance
    cases = _(", {count} cases").format(count=provenance.training_cases) if provenance.training_cases else ""
    return f"{provenance.dataset}{cases} ({provenance.dataset_license}). {provenance.dataset_attribution}".strip()
