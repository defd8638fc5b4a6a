"""Classes of a generator, by number and by name."""

import pytest

from ifsq.config import InputError
from ifsq.generators import Origin


def origin(*classes):
    return Origin(classes, "tokenizer", "0" * 64, "1" * 64, {})


def test_classes_are_given_by_number_or_by_name():
    animals = origin("cat", "dog", "grey wolf", "name:x")
    assert animals.labels(["dog", "0", 2, "grey wolf", "name:cat", "number:3", "name:x", "02"]) == [
        1,
        0,
        2,
        2,
        0,
        3,
        3,
        2,
    ]


def test_a_name_that_is_its_own_number_is_no_question():
    assert origin("0", "1", "2").labels(["2", "0", 1]) == [2, 0, 1]
    assert origin("3", "7").labels(["7", "0", 1]) == [1, 0, 1]


def test_a_name_that_is_the_number_of_another_class_must_say_which():
    digits = origin("0", "2", "4")
    with pytest.raises(InputError) as told:
        digits.labels(["0", "2"])
    assert str(told.value) == (
        "label 2: is the number of the class '4' and the name of class number 1; expected number:2 or name:2"
    )
    assert digits.labels(["number:2", "name:2", "4", 2, 1]) == [2, 1, 2, 2, 1]


@pytest.mark.parametrize("wrong", ["3", "-1", -1, "9" * 25, "cta", "", "1.0", "name:1", "number:cat", "٢", "Cat"])
def test_what_is_neither_is_named(wrong):
    with pytest.raises(InputError, match=r"^label .*: expected 0 to 2 \(0 cat, 1 dog, 2 elk\), or one of these names"):
        origin("cat", "dog", "elk").labels(["0", wrong])
    with pytest.raises(InputError, match="did you mean 'cat'"):
        origin("cat", "dog", "elk").labels(["cta"])
    with pytest.raises(InputError, match=r"^label 3: expected 0 to 2$"):
        origin("0", "1", "2").labels([3])
