"""What the window says about a model of regions that overlap."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from MambaSegmentationLib.model_details import matches, modelHtml

from MambaSegLib.bundle import load_bundle
from MambaSegLib.manifest import not_measured
from MambaSegLib.model_zoo import ListedModel
from MambaSegLib.plan import Region


def test_a_model_of_regions_names_them_and_is_found_by_them(modelPath: Path) -> None:
    manifest = load_bundle(modelPath).manifest
    plain = ListedModel(manifest.name, "installed", modelPath, manifest, "")
    regions = (Region("Hippocampus <whole>", (1, 2), 1), Region("Posterior", (2,), 2))
    model = replace(plain, manifest=replace(manifest, plan=replace(manifest.plan, regions=regions)))
    assert "Regions" not in modelHtml(plain)
    assert "Hippocampus &lt;whole&gt; = Anterior + Posterior" in modelHtml(model)
    assert matches(model, "whole hippocampus")
    assert not matches(plain, "whole")


def test_the_mean_of_all_structures_comes_first(modelPath: Path) -> None:
    manifest = load_bundle(modelPath).manifest
    (mean,) = manifest.metrics
    metrics = (replace(mean, label="Anterior"), replace(mean, label="Posterior"), mean)
    html = modelHtml(ListedModel(manifest.name, "installed", modelPath, replace(manifest, metrics=metrics)))
    assert html.index("DSC mean") < html.index("DSC Anterior") < html.index("DSC Posterior")


def test_a_model_nobody_measured_shows_a_sentence_and_no_figures(modelPath: Path) -> None:
    manifest = replace(load_bundle(modelPath).manifest, metrics=(not_measured("Not measured <here>."),))
    html = modelHtml(ListedModel(manifest.name, "installed", modelPath, manifest))
    assert "Not measured &lt;here&gt;." in html
    assert "0.000" not in html
