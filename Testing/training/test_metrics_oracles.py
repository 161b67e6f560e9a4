"""Surface distances against two other libraries, on random shapes. They are slow to import."""

from __future__ import annotations

import numpy as np
import pytest
from MambaSegTraining.metrics.surface import surface_distances

from MambaSegLib.volume import Array

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # their imports warn

SPACINGS = ((1.0, 1.0, 1.0), (3.0, 0.8, 0.8), (5.0, 1.5, 1.5), (0.5, 2.0, 1.0))


def blobs(seed: int) -> tuple[Array, Array]:
    from scipy.ndimage import gaussian_filter

    generator = np.random.default_rng(seed)
    first, second = (gaussian_filter(generator.normal(size=(18, 28, 28)), 2.5) for _ in range(2))
    return first > 0.8 * first.std(), first + 0.3 * second > 0.8 * first.std()


@pytest.mark.parametrize("spacing_mm", SPACINGS)
def test_distances_agree_with_meshmetrics(spacing_mm: tuple[float, float, float]) -> None:
    meshmetrics = pytest.importorskip("meshmetrics", reason="pymeshmetrics is not installed")
    for seed in (1, 2):
        prediction, reference = blobs(seed)
        other = meshmetrics.DistanceMetrics(verbose=False)
        other.set_input(ref=reference, pred=prediction, spacing=spacing_mm)
        ours = surface_distances(prediction, reference, spacing_mm)
        # Both measure between marching-cubes surfaces; on diagonal neighbors they cut some cells another way.
        assert ours.hausdorff_mm() == pytest.approx(other.hd(95), rel=0.06)
        assert ours.surface_dice(2.0) == pytest.approx(other.nsd(2.0), abs=0.01)
        assert ours.average_mm() == pytest.approx(other.assd(), rel=0.06)


@pytest.mark.parametrize("spacing_mm", SPACINGS)
def test_distances_agree_with_monai_within_a_voxel(spacing_mm: tuple[float, float, float]) -> None:
    metrics = pytest.importorskip("monai.metrics", reason="MONAI is not installed")
    import torch

    prediction, reference = blobs(4)
    tensors = [torch.as_tensor(mask)[None, None] for mask in (prediction, reference)]
    ours = surface_distances(prediction, reference, spacing_mm)
    arguments = {"include_background": True, "spacing": spacing_mm}
    hd95 = float(metrics.compute_hausdorff_distance(*tensors, percentile=95, **arguments))
    assd = float(metrics.compute_average_surface_distance(*tensors, symmetric=True, **arguments))
    # MONAI measures between the centers of surface voxels, which come in whole voxels, and counts each the same.
    assert ours.hausdorff_mm() == pytest.approx(hd95, abs=max(spacing_mm) / 2)
    assert ours.average_mm() == pytest.approx(assd, abs=max(spacing_mm) / 4)
