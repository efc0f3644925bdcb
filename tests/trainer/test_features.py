"""Features at several depths are those of the vision encoder's own layers, in every family."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.tiny import MAKERS, save_tiny
from tvp.sdk.errors import ModelError
from tvp.trainer import families
from tvp.trainer.features import ALL, features, vision_layers

ZOO = ["blip2", "blip2-t5", "instructblip", "llava", "smolvlm", "qwen2vl"]
TOWERS = ("vision_model.encoder.layers", "encoder.layer", "visual.blocks", "visual.transformer.resblocks")


@pytest.fixture(scope="module", params=[*ZOO, *MAKERS])
def family(request, tmp_path_factory):
    return families.load(save_tiny(request.param, tmp_path_factory.mktemp("tiny") / request.param))


def test_the_layers_are_those_of_the_vision_encoder(family):
    names = {module: name for name, module in family.model.named_modules()}
    found = vision_layers(family)
    places = [names[layer].rpartition(".") for layer in found]
    assert len({place for place, _, _ in places}) == 1
    place = places[0][0]
    assert any(place.endswith(tower) for tower in TOWERS)
    assert [int(number) for _, _, number in places] == list(range(len(found)))
    assert not any(word in place for word in ("qformer", "language", "text"))
    inside = dict(family.model.named_modules())[place]
    assert len(found) == len(inside) > 1


def test_each_depth_depends_on_its_picture_alone(family):
    canvas = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    other = canvas.clone()
    other[1] = canvas[0]
    with torch.no_grad():
        encoded, seen = features(family, family.to_pixels(canvas), ALL)
        _, changed = features(family, family.to_pixels(other), ALL)
    assert len(seen) == len(vision_layers(family)) + 1
    output = encoded if family.reads_question else family.connect(encoded)
    torch.testing.assert_close(seen[-1], output)
    for before, after in zip(seen, changed, strict=True):
        assert before.ndim == 3
        assert len(before) == 2
        torch.testing.assert_close(before[0], after[0], atol=1e-4, rtol=1e-4)
        assert (before[1] - after[1]).abs().max() > 1e-3


def test_a_few_depths_lie_evenly_before_the_output(family):
    pixels = family.to_pixels(torch.rand(1, 3, 64, 64))
    n_layers = len(vision_layers(family))
    with torch.no_grad():
        every = features(family, pixels, ALL)[1]
        for n in range(1, n_layers + 3):
            some = features(family, pixels, n)[1]
            assert len(some) == min(n, n_layers + 1)
            torch.testing.assert_close(some[-1], every[-1])
            torch.testing.assert_close(some[0], every[0] if n > 1 else every[-1])


class Convolutional:
    """What a family needs to be compared at depths: a stem, two stages of two blocks, and a head."""

    name, reads_question = "convolutional", False

    def __init__(self, prefix="visual"):
        def block(n_in, n_out, stride):
            return nn.Sequential(nn.Conv2d(n_in, n_out, 3, stride, 1), nn.Identity(), nn.ReLU())

        torch.manual_seed(0)
        trunk = nn.Module()
        trunk.layer1 = nn.Sequential(block(3, 4, 2), block(4, 4, 1))
        trunk.layer2 = nn.Sequential(block(4, 6, 2), block(6, 6, 1))
        self.model = nn.Module()
        self.model.add_module(prefix, trunk)
        self.model.text_model = nn.Module()
        self.model.text_model.image_layers = nn.ModuleList(nn.Linear(2, 2) for _ in range(9))
        self.trunk = trunk

    def encode(self, pixels):
        return self.trunk.layer2(self.trunk.layer1(pixels)).mean((2, 3))[:, None]

    def connect(self, encoded):
        return encoded


def test_stages_of_a_convolutional_encoder_are_its_depths():
    family = Convolutional()
    assert vision_layers(family) == [*family.trunk.layer1, *family.trunk.layer2]
    encoded, seen = features(family, torch.rand(2, 3, 16, 16), ALL)
    assert [tuple(depth.shape) for depth in seen] == [(2, 64, 4), (2, 64, 4), (2, 16, 6), (2, 16, 6), (2, 1, 6)]
    torch.testing.assert_close(seen[3].mean(1, keepdim=True), encoded)  # a token is a place


def test_a_model_whose_layers_are_not_known_is_told_so():
    with pytest.raises(ModelError, match="--depths 1"):
        vision_layers(Convolutional("trunk"))
