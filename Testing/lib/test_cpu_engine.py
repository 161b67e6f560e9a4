"""The fused CPU form of networks computes what PyTorch computes, and the faster of the two is remembered."""

import json
import logging

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("numba")

from MambaSegLib.bundle import load_bundle
from MambaSegLib.cpu.choice import faster_engine, measure_engines
from MambaSegLib.cpu.layers import Convolution, FeatureMap, Norm, Upsampling, Workspace, add, padded, pooled
from MambaSegLib.cpu.network import CpuNetwork, prepared, why_not_fused
from MambaSegLib.cpu.unet import FusedUNet
from MambaSegLib.errors import BackendUnavailableError
from MambaSegLib.networks import create_network
from MambaSegLib.plan import NetworkPlan, StagePlan
from MambaSegLib.predictor import Predictor
from MambaSegLib.volume import Geometry, Volume

CPU = torch.device("cpu")
STAGES = (
    StagePlan(16, (1, 1, 1), (1, 3, 3), blocks=2, decoder_blocks=2),
    StagePlan(20, (1, 2, 2), (3, 3, 3), blocks=1, decoder_blocks=1),
    StagePlan(36, (2, 2, 2), (3, 3, 3), blocks=1, decoder_blocks=1),
)
# A sum of some hundred products rounds by about 1e-7 times a small factor; Winograd's transforms make it about 1e-6, and a
# network of a dozen layers some times that. A wrong tap or channel is off by 1e-2 and more.
LAYER_TOLERANCE, NETWORK_TOLERANCE = 3e-6, 2e-5


def error(found, expected):
    """Relative L2."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def feature_map(tensor):
    """(1, C, Z, Y, X) as kernels have it."""
    _, channels, *sizes = tensor.shape
    array = np.zeros((*sizes, padded(channels)), np.float32)
    array[..., :channels] = tensor[0].permute(1, 2, 3, 0).numpy()
    return FeatureMap(array, channels)


def tensor_of(found):
    """What a consumer of a feature map reads, (1, C, Z, Y, X)."""
    array = found.array if found.scale is None else found.array * found.scale + found.shift
    voxels = torch.from_numpy(array)[..., : found.channels].permute(3, 0, 1, 2)[None]
    return nn.functional.leaky_relu(voxels, found.slope)


def make_network(name, *, stages=STAGES, **options):
    """A network whose normalizations do not all start as 0 or 1."""
    torch.manual_seed(0)
    plan = NetworkPlan(name, 2, 3, (8, 16, 16), stages, deep_supervision=False, options=options)
    network = create_network(plan).eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, nn.InstanceNorm3d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return network


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize(
    ("inputs", "outputs", "sizes", "kernel", "stride"),
    [
        ((16,), 32, (3, 5, 7), (3, 3, 3), (1, 1, 1)),
        ((20,), 40, (2, 13, 18), (1, 3, 3), (1, 1, 1)),
        ((16, 24), 33, (5, 6, 9), (3, 3, 3), (1, 1, 1)),
        ((32,), 48, (7, 12, 10), (3, 3, 3), (2, 2, 2)),
        ((32,), 16, (3, 9, 11), (3, 3, 3), (1, 2, 2)),
        ((17,), 5, (1, 1, 1), (3, 3, 3), (1, 1, 1)),
        ((5,), 9, (3, 5, 7), (3, 3, 3), (1, 1, 1)),
        ((3, 4), 9, (3, 6, 8), (3, 3, 3), (1, 2, 2)),
        ((16, 16), 14, (2, 3, 29), (1, 1, 1), (1, 1, 1)),
        ((16,), 16, (4, 5, 6), (3, 3, 1), (1, 1, 1)),
        ((16,), 16, (6, 7, 8), (5, 5, 5), (1, 1, 1)),
    ],
)
def test_a_convolution_and_the_statistics_of_its_output_are_those_of_pytorch(
    inputs, outputs, sizes, kernel, stride, threads
):
    torch.manual_seed(0)
    module = nn.Conv3d(sum(inputs), outputs, kernel, stride, [k // 2 for k in kernel]).requires_grad_(False)
    images = [torch.randn(1, count, *sizes) for count in inputs]
    expected = module(torch.cat(images, 1))
    found, moments = Convolution(module, inputs).run([feature_map(image) for image in images], Workspace(), threads)
    assert error(tensor_of(found), expected) < LAYER_TOLERANCE
    voxels = expected[0].flatten(1).double()
    np.testing.assert_array_equal(moments[:outputs, 0], voxels.shape[1])
    np.testing.assert_allclose(moments[:outputs, 1], voxels.mean(1), atol=1e-5)
    np.testing.assert_allclose(
        moments[:outputs, 2] / voxels.shape[1], voxels.var(1, unbiased=False), rtol=1e-4, atol=1e-9
    )


@pytest.mark.parametrize(
    ("sizes", "tasks"), [((12, 96, 96), 16), ((12, 24, 96), 4), ((2, 8, 8), 1)], ids=["large", "flat", "small"]
)
def test_a_convolution_keeps_as_many_threads_busy_as_its_work_is_worth(sizes, tasks):
    """Strips of the cache's size would be 6, 2 and 1; flat ones would spend their time on the rows around them."""
    module = nn.Conv3d(32, 32, 3, padding=1).requires_grad_(False)
    convolution, made = Convolution(module, (32,)), []
    original = convolution._strips
    convolution._strips = lambda *arguments: made.append(original(*arguments)) or made[-1]
    image = torch.randn(1, 32, *sizes)
    found, _ = convolution.run([feature_map(image)], Workspace(), 16)
    assert error(tensor_of(found), module(image)) < LAYER_TOLERANCE
    assert len(made[0]) == tasks


def test_channels_that_only_fill_up_a_vector_stay_zero():
    module = nn.Conv3d(17, 21, 3, padding=1).requires_grad_(False)
    raw, moments = Convolution(module, (17,)).run([feature_map(torch.randn(1, 17, 3, 4, 5))], Workspace(), 1)
    normalized = Norm.of(nn.InstanceNorm3d(21, affine=True).requires_grad_(False)).apply(raw, moments)
    assert normalized.array.shape[3] == 32
    assert not (normalized.array * normalized.scale + normalized.shift)[..., 21:].any()


def test_normalization_keeps_its_precision_far_from_zero():
    """Mean 1000, deviation 1: a plain sum of squares would lose all digits of the variance."""
    torch.manual_seed(0)
    module, norm = nn.Conv3d(16, 16, 1).requires_grad_(False), nn.InstanceNorm3d(16, affine=True).requires_grad_(False)
    module.bias += 1000
    image = torch.randn(1, 16, 4, 24, 24)
    raw, moments = Convolution(module, (16,)).run([feature_map(image)], Workspace(), 2)
    expected = norm.double()(module.double()(image.double()))
    # The values themselves are rounded to 1000 * 6e-8 in float32.
    assert error(tensor_of(Norm.of(norm).apply(raw, moments)), expected) < 3e-4


def test_a_pending_normalization_and_activation_are_carried_out_by_the_next_layer():
    torch.manual_seed(0)
    first, second = (nn.Conv3d(16, 16, 3, padding=1).requires_grad_(False) for _ in range(2))
    norm = nn.InstanceNorm3d(16, affine=True).requires_grad_(False)
    image = torch.randn(1, 16, 3, 6, 9)
    raw, moments = Convolution(first, (16,)).run([feature_map(image)], Workspace(), 1)
    found, _ = Convolution(second, (16,)).run([Norm.of(norm).apply(raw, moments, 0.01)], Workspace(), 1)
    expected = second(nn.functional.leaky_relu(norm(first(image)), 0.01))
    assert error(tensor_of(found), expected) < LAYER_TOLERANCE


@pytest.mark.parametrize("stride", [(1, 2, 2), (2, 2, 2), (2, 1, 3)])
def test_enlarging_and_averaging_are_those_of_pytorch(stride):
    torch.manual_seed(0)
    module = nn.ConvTranspose3d(20, 24, stride, stride).requires_grad_(False)
    image = torch.randn(1, 20, 3, 5, 7)
    assert error(tensor_of(Upsampling(module).run(feature_map(image), Workspace(), 3)), module(image)) < LAYER_TOLERANCE
    found = tensor_of(pooled(feature_map(image), stride, Workspace(), 3))
    torch.testing.assert_close(found, nn.functional.avg_pool3d(image, stride, stride))


def test_sums_are_activated_once():
    torch.manual_seed(0)
    a, b = torch.randn(2, 1, 16, 3, 4, 5)
    torch.testing.assert_close(
        tensor_of(add(feature_map(a), feature_map(b), 0.01, 3)), nn.functional.leaky_relu(a + b, 0.01)
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("mamba_unet_unidirectional", {}),
        ("mamba_unet_bidirectional", {"preset": "released"}),
        ("mamba_unet_multidirectional", {"d_state_max": 4}),
        ("nnunet", {}),
        ("nnunet_resenc", {}),
    ],
)
def test_a_fused_network_gives_the_networks_own_logits(name, options):
    network = make_network(name, **options)
    fused = CpuNetwork(network, Workspace())
    with torch.inference_mode():
        for sizes in ((4, 8, 12), (2, 20, 16), (4, 8, 12)):  # memory is used again for other sizes
            images = torch.randn(2, 2, *sizes)
            (found,), (expected,) = fused(images), network(images)
            assert found.shape == expected.shape
            assert error(found, expected) < NETWORK_TOLERANCE


def test_a_result_does_not_change_when_the_next_image_is_computed():
    fused = CpuNetwork(make_network("nnunet"), Workspace())
    with torch.inference_mode():
        first = fused(torch.ones(1, 2, 4, 8, 8))[0]
        kept = first.clone()
        fused(torch.zeros(1, 2, 4, 8, 8))
    assert torch.equal(first, kept)


def test_memory_comes_back_after_work_that_ended_early_and_is_not_taken_again_and_again(monkeypatch):
    workspace = Workspace()
    fused = CpuNetwork(make_network("nnunet"), workspace)
    image = torch.ones(1, 2, 4, 8, 8)
    with torch.inference_mode():
        expected = fused(image)[0]
        held = len(workspace._free)
        with monkeypatch.context() as patched:
            patched.setattr(Upsampling, "run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                fused(image)
        assert torch.equal(fused(image)[0], expected)
    assert len(workspace._free) == held
    assert not workspace._taken


def test_a_size_the_strides_do_not_divide_is_refused_as_by_the_network():
    fused = CpuNetwork(make_network("nnunet"), Workspace())
    with torch.inference_mode(), pytest.raises(ValueError, match="must be a multiple of"):
        fused(torch.zeros(1, 2, 4, 8, 10))


def test_a_predictor_computes_by_the_engine_it_was_given(monkeypatch):
    volume = Volume(
        np.random.default_rng(0).normal(size=(1, 32, 48, 32)),
        Geometry((32, 48, 32), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), ((0.0, 0.0, 1.0), (0.0, 1.0, 0.0), (1.0, 0.0, 0.0))),
    )
    bundle = load_bundle("mamba_unet_multidirectional.hippocampus")
    original, calls = FusedUNet.__call__, []
    monkeypatch.setattr(FusedUNet, "__call__", lambda self, image: calls.append(1) or original(self, image))
    found = {}
    for engine in ("pytorch", "fused"):
        predictor = Predictor(bundle, device="cpu", folds=[0], engine=engine)
        found[engine] = predictor.predict(volume, uncertainty=True)
        assert len(calls) == (engine == "fused")
    np.testing.assert_allclose(found["fused"].uncertainty, found["pytorch"].uncertainty, atol=1e-4)


def test_gradients_and_other_types_go_to_the_network_itself():
    network = make_network("nnunet")
    fused = CpuNetwork(network, Workspace())
    image = torch.randn(1, 2, 4, 8, 8, requires_grad=True)
    fused(image)[0].sum().backward()
    assert image.grad is not None
    with torch.inference_mode():
        assert fused(image.double().detach().to(torch.float32))[0].dtype == torch.float32
        assert fused.double()(image.detach().double())[0].dtype == torch.float64


def test_networks_without_a_fused_form_run_in_pytorch_and_are_refused_by_name(caplog):
    network = make_network("umamba_bot")
    with caplog.at_level(logging.INFO, "MambaSegLib.cpu.network"):
        assert prepared([network], "auto", CPU) == [network]
    assert why_not_fused(network) in caplog.text
    with pytest.raises(BackendUnavailableError, match="no fused form"):
        prepared([network], "fused", CPU)


def test_without_numba_networks_run_in_pytorch(monkeypatch):
    monkeypatch.setattr("MambaSegLib.scan.numba_backend.why_unavailable", lambda *_, **__: "numba is broken")
    network = make_network("nnunet")
    assert prepared([network], "auto", CPU) == [network]
    with pytest.raises(BackendUnavailableError, match="numba is broken"):
        prepared([network], "fused", CPU)


def test_the_faster_engine_is_measured_once_per_computer_and_threads(tmp_path):
    file, calls = tmp_path / "new" / "cpu_engine.json", []

    def measure(threads):
        calls.append(threads)
        return {"fused": 1.0, "pytorch": 2.0 / threads}

    assert [faster_engine(threads, file, measure) for threads in (1, 4, 1, 4)] == [
        "fused",
        "pytorch",
        "fused",
        "pytorch",
    ]
    assert calls == [1, 4]
    assert set(json.loads(file.read_text()).values()) == {"fused", "pytorch"}


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"other": "fused"}', "\x00\xff"])
def test_a_damaged_file_of_choices_is_measured_and_written_again(content, tmp_path):
    file = tmp_path / "cpu_engine.json"
    file.write_bytes(content.encode("latin-1"))
    assert faster_engine(1, file, lambda _: {"fused": 2.0, "pytorch": 1.0}) == "pytorch"
    assert faster_engine(1, file, lambda _: pytest.fail("measured again")) == "pytorch"


def test_choices_that_cannot_be_written_are_made_all_the_same(tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert faster_engine(1, tmp_path / "file" / "cpu_engine.json", lambda _: {"fused": 1.0}) == "fused"


def test_an_unknown_remembered_engine_is_measured_again(tmp_path):
    file = tmp_path / "cpu_engine.json"
    faster_engine(1, file, lambda _: {"fused": 1.0})
    file.write_text(file.read_text().replace('"fused"', '"quantum"'))
    assert faster_engine(1, file, lambda _: {"pytorch": 1.0}) == "pytorch"


def test_both_engines_are_measured():
    assert all(0 < seconds < 60 for seconds in measure_engines(1).values())


@pytest.mark.parametrize("width", [3, 8, 15])
@pytest.mark.parametrize("name", ["nnunet", "nnunet_resenc", "mamba_unet_multidirectional"])
def test_networks_narrower_than_a_vector_give_their_own_logits(name, width):
    """Feature maps fill a vector up, an image does not, however many channels either has."""
    stages = (StagePlan(width, (1, 1, 1), (3, 3, 3), 1), StagePlan(width + 2, (2, 2, 2), (3, 3, 3), 1))
    network = make_network(name, stages=stages)
    image = torch.randn(1, 2, 4, 8, 10)
    with torch.inference_mode():
        assert error(FusedUNet(network, Workspace())(image), network(image)[0]) < NETWORK_TOLERANCE


def test_an_image_may_have_more_channels_than_a_vector():
    torch.manual_seed(0)
    module = nn.Conv3d(19, 24, 3, padding=1).requires_grad_(False)
    image = torch.randn(1, 19, 3, 5, 7)
    voxels = np.ascontiguousarray(image[0].permute(1, 2, 3, 0).numpy())
    found, _ = Convolution(module, ()).run((), Workspace(), 2, voxels)
    assert error(tensor_of(found), module(image)) < LAYER_TOLERANCE
