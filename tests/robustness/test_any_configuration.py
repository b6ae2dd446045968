"""Any JSON value at any place of the configuration's section: refused by our error, or a model of the shapes it says.

Nothing takes much memory, whatever the values are.
"""

import json
import resource
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from oracles import INTERESTING, places, refused_or_whole_configuration, replaced, small_models

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(INTERESTING)
JSON_VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
)
SUPPRESSED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]  # the machine may be
SMALL_LISTS = st.lists(st.integers(-1, 531), max_size=5)


@pytest.fixture(scope="module")
def configurations() -> list[dict[str, Any]]:
    found = [json.loads(model.config.to_json_string()) for model in small_models().values()]
    for fields in found:  # what is imported at the first is no memory that values took
        refused_or_whole_configuration(fields)
    return found


def test_the_configurations_themselves_are_whole(configurations: list[dict[str, Any]]) -> None:
    assert [refused_or_whole_configuration(fields) for fields in configurations] == [False, False]


@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=SUPPRESSED)
@given(data=st.data())
def test_any_values_in_any_places_are_refused_or_give_the_shapes_that_they_say(
    configurations: list[dict[str, Any]], data: st.DataObject
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    fields = data.draw(st.sampled_from(configurations))
    section = fields["projclust"]
    for value in data.draw(st.lists(JSON_VALUES | SMALL_LISTS, min_size=1, max_size=3)):
        section = replaced(section, data.draw(st.sampled_from(list(places(section)))), value)
    refused_or_whole_configuration({**fields, "projclust": section})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=SUPPRESSED)
@given(
    key=st.sampled_from(["base_model_type", "model_type", "vocab_size", "architectures", "dtype"]), value=JSON_VALUES
)
def test_any_value_beside_the_section_is_refused_or_harmless(
    configurations: list[dict[str, Any]], key: str, value: Any
) -> None:
    """Of native fields Transformers' own errors are as good, once the configuration is read."""
    from hf_projclust import ProjClustCheckpointError, ProjClustConfig

    try:
        config = ProjClustConfig.from_dict({**configurations[0], key: value})
    except ProjClustCheckpointError:
        return
    assert config.factor_layouts["embedding"].to_dict() == configurations[0]["projclust"]["embedding"]
