"""The table of mutations is true of the package: each line stands there once, each test exists.

All of them are tried by ``make mutations``, and here where slow tests run.
"""

import ast

import pytest
from tests.mutations.lines import MUTATIONS
from tests.mutations.tried import PACKAGE, ROOT, attempt, spoiled

every_mutation = pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda one: one.name)


@every_mutation
def test_each_line_stands_once_and_the_wrong_one_is_python(mutation):
    ast.parse(spoiled(mutation, (PACKAGE / mutation.file).read_text()))


@every_mutation
def test_each_test_exists(mutation):
    file, _, name = mutation.test.partition("::")
    functions = [one.name for one in ast.parse((ROOT / "tests" / file).read_text()).body if hasattr(one, "name")]
    assert name in functions


def test_names_are_told_apart():
    assert len({one.name for one in MUTATIONS}) == len(MUTATIONS)


@pytest.mark.slow
@every_mutation
def test_each_is_caught(mutation, tmp_path):
    tried = attempt(mutation, tmp_path)
    assert tried.caught, tried.because
