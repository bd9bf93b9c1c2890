"""A classifier's features beside the labels."""

import copy

import pytest
import timm
import torch
from safetensors.torch import save_file

from sam_edge.errors import CheckpointError, ModelError, TrainingError
from sam_edge.models.sam import EdgeSam
from sam_edge.training.features import HEAD, ClassifierFeatures, FeatureLoss, FeatureOptions, open_classifier

NAME = "mobilenetv3_small_050"


@pytest.fixture(scope="module")
def classifier():
    torch.manual_seed(0)
    return timm.create_model(NAME, pretrained=False)


@pytest.fixture(scope="module")
def weights(classifier, tmp_path_factory):
    path = tmp_path_factory.mktemp("timm") / "weights.safetensors"
    save_file(classifier.state_dict(), path)
    return path


@pytest.fixture
def model(tiny_config):
    torch.manual_seed(1)
    return EdgeSam(tiny_config)


@pytest.fixture
def image(tiny_config):
    size = tiny_config.image_size
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(2)) * 255


def test_features_are_the_classifiers_last_maps_normalised_at_each_place(classifier, image):
    features = ClassifierFeatures(classifier)
    found = features(image, 4)
    assert found.shape == (2, features.channels, 4, 4)
    mean, std = (torch.tensor(classifier.pretrained_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        last = classifier.eval().forward_features((image / 255 - mean) / std)
    assert classifier.feature_info[-1]["num_chs"] < features.channels
    # the deepest map is the smallest: one place of it covers the whole picture here, and is normal there
    deepest = found[:, -classifier.feature_info[-1]["num_chs"] :]
    torch.testing.assert_close(deepest.mean(1), torch.zeros(2, 4, 4), atol=1e-4, rtol=0)
    assert last.shape[0] == 2


def test_the_head_is_there_while_training_alone_and_starts_silent(model, weights, image):
    names = set(model.state_dict())
    loss = FeatureLoss(FeatureOptions(f"{NAME}={weights}", weight=2.0))
    pixels = (image - model.pixel_mean) / model.pixel_std
    with loss.beside(model):
        assert {name for name in model.state_dict() if name not in names} == {f"{HEAD}.weight", f"{HEAD}.bias"}
        model.requires_grad_(True)
        model.encode(pixels)
        value = loss(model, image)
        target = loss.features(image, model.config.grid)
        expected = 2 * torch.nn.functional.smooth_l1_loss(torch.zeros_like(target), target)
        torch.testing.assert_close(value.detach(), expected)
        value.backward()
        # nothing is asked of the encoder before the head has learned something
        assert all(p.grad is None or not p.grad.any() for p in model.image_encoder.parameters())
        assert model.get_submodule(HEAD).weight.grad.any()
    assert set(model.state_dict()) == names
    model.encode(pixels)
    assert loss.tokens is None


def test_a_few_steps_bring_tokens_nearer_to_the_features(model, weights, image):
    loss = FeatureLoss(FeatureOptions(f"{NAME}={weights}"))
    pixels = (image - model.pixel_mean) / model.pixel_std
    values = []
    with loss.beside(model):
        model.requires_grad_(True)
        optimizer = torch.optim.Adam([*model.image_encoder.parameters(), *model.get_submodule(HEAD).parameters()], 0.01)
        for _ in range(30):
            optimizer.zero_grad()
            model.encode(pixels)
            value = loss(model, image)
            value.backward()
            optimizer.step()
            values.append(value.item())
    assert values[-1] < 0.5 * values[0]


def test_a_copy_of_the_model_has_no_classifier(model, weights):
    loss = FeatureLoss(FeatureOptions(f"{NAME}={weights}"))
    with loss.beside(model):
        copied = copy.deepcopy(model)
    copied.encode(torch.zeros(1, 3, model.config.image_size, model.config.image_size))
    assert loss.tokens is not None
    assert not any(isinstance(module, ClassifierFeatures) for module in copied.modules())


def test_a_file_with_other_names_is_taken_in_its_own_order(classifier, tmp_path):
    path = tmp_path / "other.pth"
    torch.save({f"{index:04d}": value for index, value in enumerate(classifier.state_dict().values())}, path)
    opened = open_classifier(f"{NAME}={path}")
    for mine, theirs in zip(opened.state_dict().values(), classifier.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_file_of_another_network_is_refused(classifier, tmp_path):
    path = tmp_path / "other.safetensors"
    save_file(dict(list(classifier.state_dict().items())[:-1]), path)
    with pytest.raises(CheckpointError, match="their number or shapes differ"):
        open_classifier(f"{NAME}={path}")


def test_an_unknown_classifier_is_refused_with_names_like_it():
    with pytest.raises(ModelError, match=r"timm has no network 'mobilenetv3_smal': did you mean mobilenetv3"):
        open_classifier("mobilenetv3_smal")


def test_a_weight_must_be_positive():
    with pytest.raises(TrainingError, match="must be positive, got 0"):
        FeatureOptions(NAME, 0)
