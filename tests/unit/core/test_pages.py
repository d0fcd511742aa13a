"""The page catalogue."""

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from plpm_ray.core.errors import ConfigError, DataError
from plpm_ray.core.pages import PageCatalogue


def test_names_aliases_and_other():
    pages = PageCatalogue(pages=({"name": "featured", "values": [1, "f"]}, "following", "rest"), other="rest")
    assert pages.names == ("featured", "following", "rest")
    assert pages.encode(["f", "following", "featured", "zzz", None]).tolist() == [0, 1, 0, 2, -1]
    assert pages.encode(pa.chunked_array([[1, 7], [None]])).tolist() == [0, 2, -1]
    assert pages.encode(pa.array(["f", "x"]).dictionary_encode()).tolist() == [0, 2]


def test_without_other_unknown_values_are_minus_one():
    pages = PageCatalogue.model_validate(["a", "b"])
    codes = pages.encode(["b", "c"])
    assert codes.dtype == np.int16 and codes.tolist() == [1, -1]


@pytest.mark.parametrize(
    "bad", [["a"], [str(i) for i in range(33)], ["a", "a"], [{"name": "a", "values": ["b"]}, "b"]]
)
def test_refused_catalogues(bad):
    with pytest.raises(ValidationError):
        PageCatalogue.model_validate(bad)


def test_other_must_be_a_page():
    with pytest.raises(ValidationError, match="not one of the pages"):
        PageCatalogue(pages=("a", "b"), other="c")


def test_index_names_the_nearest_page():
    pages = PageCatalogue.model_validate(["featured", "following"])
    assert pages.index("following") == 1
    with pytest.raises(ConfigError, match="did you mean 'featured'"):
        pages.index("featurd")


def test_floats_are_refused():
    with pytest.raises(DataError, match="page values are double"):
        PageCatalogue.model_validate(["a", "b"]).encode(pa.array([1.0]))
