"""Where `zoo:NAME` is looked up: in $TVP_ZOO, else in the checkout; and what is said where neither has it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tvp.sdk.errors import ModelError
from tvp.trainer import families, zoo
from tvp.trainer.losses import Guide

ROOT = Path(__file__).parents[2]


@pytest.fixture
def moved(tmp_path, monkeypatch):
    """A folder with two models in it, one of open_clip's layout, that $TVP_ZOO names."""
    for name, file in (("parrot", "config.json"), ("guide", "open_clip_config.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
    monkeypatch.setenv("TVP_ZOO", str(tmp_path))
    return tmp_path


def test_a_checkout_has_its_zoo(monkeypatch):
    monkeypatch.delenv("TVP_ZOO", raising=False)
    assert zoo.zoo_folder() == ROOT / "samples" / "zoo"
    assert zoo.locate("zoo:blip2") == str(ROOT / "samples" / "zoo" / "blip2")


def test_the_variable_comes_before_the_checkout(moved):
    assert zoo.zoo_folder() == moved
    assert zoo.locate("zoo:parrot") == families.locate("zoo:parrot") == str(moved / "parrot")
    with pytest.raises(
        ModelError, match=r"There is no 'zoo:parot'; the zoo has guide, parrot\. Did you mean zoo:parrot"
    ):
        zoo.locate("zoo:parot")


@pytest.mark.parametrize("name", ["blip2", "Salesforce/blip2-opt-2.7b", Path("models/zoo:blip2")])
def test_other_names_stay_as_they_are_and_need_no_zoo(name, monkeypatch, tmp_path):
    monkeypatch.setenv("TVP_ZOO", str(tmp_path / "nowhere"))
    assert zoo.locate(name) == str(name)


def test_a_variable_that_names_no_zoo_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("TVP_ZOO", str(tmp_path))
    with pytest.raises(
        ModelError, match=rf"TVP_ZOO is set to {tmp_path}, and that folder holds no models\..*samples/zoo"
    ):
        families.load("zoo:blip2")


def test_an_installed_package_says_where_the_zoo_is(monkeypatch, tmp_path):
    monkeypatch.delenv("TVP_ZOO", raising=False)
    monkeypatch.setattr(zoo, "IN_CHECKOUT", tmp_path / "samples" / "zoo")
    with pytest.raises(ModelError, match=r"in TVP's repository, not in the installed package\. Clone .*TVP_ZOO"):
        families.load("zoo:blip2")
    with pytest.raises(ModelError, match=r"not in the installed package"):
        Guide("zoo:guide")
