"""The samples the module offers: where they come from, that they are what their hashes say, and that they fit together."""

from __future__ import annotations

import importlib
import importlib.util
import types
from pathlib import Path

import pytest
import SampleData
import slicer
from MambaSegmentationLib import conversion, sample_data
from MambaSegmentationLib.region import regionBounds, regionBox

MODULE_FILE = Path(__file__).parents[2] / "MambaSegmentation" / "MambaSegmentation.py"
TEMPLATE = "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"


@pytest.fixture
def registered(scene):
    """What the module registers, by name; the Sample Data module knew nothing before."""
    slicer.modules.__dict__.pop("sampleDataSources", None)
    sample_data.register()
    sample_data.register()  # a reloaded module registers again
    (sources,) = slicer.modules.sampleDataSources.values()
    assert len(sources) == len({source["sampleName"] for source in sources}) == len(sample_data.samples())
    yield {source["sampleName"]: source for source in sources}
    slicer.modules.__dict__.pop("sampleDataSources", None)


@pytest.fixture
def mirror():
    """The template's address on the internet -> the same file inside the package nilearn."""
    package = importlib.util.find_spec("nilearn")
    if package is None:
        pytest.skip("the template is inside the package nilearn, which is not installed")
    address = next(
        file.address for sample in sample_data.samples() for file in sample.files if TEMPLATE in file.address
    )
    return {address: (Path(package.origin).parent / "datasets" / "data" / TEMPLATE).as_uri()}


def test_the_module_registers_its_samples_once_slicer_has_started(scene, monkeypatch):
    import headless_slicer

    waiting = []
    monkeypatch.setattr(headless_slicer.Application, "connect", lambda self, *args: waiting.append(args), raising=False)
    slicer.modules.__dict__.pop("sampleDataSources", None)
    module = importlib.import_module("MambaSegmentation")
    module.MambaSegmentation(types.SimpleNamespace(path=str(MODULE_FILE), name="MambaSegmentation"))
    assert not hasattr(slicer.modules, "sampleDataSources"), "the Sample Data module may not be there yet"
    ((signal, action),) = waiting
    assert signal == "startupCompleted()"
    action()
    assert list(slicer.modules.sampleDataSources) == [sample_data.CATEGORY]


def test_every_sample_is_what_its_hash_says_and_can_be_loaded(registered, mirror, tmp_path):
    for source in registered.values():
        nodes = SampleData.load(source, tmp_path, mirror)
        assert [node.GetName() for node in nodes] == source["nodeNames"]
        assert Path(source["thumbnailFileName"]).is_file()


def test_a_changed_file_is_refused(registered, mirror, tmp_path):
    other = tmp_path / "other.nii.gz"
    other.write_bytes(b"something else")
    with pytest.raises(ValueError, match="checksum"):
        SampleData.load(registered["HippocampusTemplateT1"], tmp_path, dict.fromkeys(mirror, other.as_uri()))


def test_only_the_whole_template_needs_a_network(registered):
    remote = [uri for source in registered.values() for uri in source["uris"] if not uri.startswith("file:")]
    assert [uri.split("/")[2] for uri in remote] == ["raw.githubusercontent.com"]
    assert remote[0].endswith(TEMPLATE)


def test_the_region_cuts_the_shipped_cut_out_from_the_template(registered, mirror, tmp_path):
    template, region = SampleData.load(registered["HippocampusTemplateT1"], tmp_path, mirror)
    (cutOut,) = SampleData.load(registered["LeftHippocampusT1"], tmp_path, mirror)
    whole, part = conversion.volumeFromNode(template), conversion.volumeFromNode(cutOut)
    box = regionBox(regionBounds(region, template), whole.geometry)
    assert whole.geometry.cropped(box).is_close(part.geometry)
    assert (whole.array[0][box.slices] == part.array[0]).all()
