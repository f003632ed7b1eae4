"""ncutils._arguments: each kind of argument just inside and just outside its limits, and the words of its refusals."""

import enum
import math
import re
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from ncutils import _arguments as arguments
from ncutils._arguments import check_fields, checked, integer, many, number, one_of, one_or_many, optional, pair, table


def says(kind, value):
    """The class and the words of a refusal, None where the value is accepted."""
    try:
        assert kind("it", value) is None
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


# --- how a value is shown


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (3, "3"),
        ("a" * 58, repr("a" * 58)),  # 60 characters with its quotes
        ("a" * 59, "'" + "a" * 56 + "..."),
        ("a" * 500, "'" + "a" * 56 + "..."),
        (torch.zeros(2, 3), "Tensor of torch.float32, shape (2, 3)"),
        (np.zeros((4, 1)), "ndarray of float64, shape (4, 1)"),
        (np.array(2.5), "array(2.5)"),
        (torch.tensor(7), "tensor(7)"),
    ],
)
def test_a_value_in_an_error_is_short(value, words):
    assert arguments.shown(value) == words and len(words) <= 60


@pytest.mark.parametrize(
    ("value", "plain"),
    [(np.float32(0.5), 0.5), (np.array(3), 3), (torch.tensor(2.5), 2.5), (np.bool_(True), True), (4, 4), ("a", "a")],
)
def test_a_number_in_an_array_is_a_number_of_python(value, plain):
    found = arguments.scalar(value)
    assert found == plain and type(found) is type(plain)


@pytest.mark.parametrize("value", [np.zeros(1), torch.zeros(1), np.zeros((1, 1)), [1]])
def test_an_array_that_has_dimensions_is_left_as_it_is(value):
    assert arguments.scalar(value) is value


# --- numbers


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        (integer(), 10**9, None),
        (integer(), 10**9 + 1, "ValueError: it must be at most 1e+09; got 1000000001"),
        (integer(), -(10**9), None),
        (integer(), -(10**9) - 1, "ValueError: it must be at most 1e+09; got -1000000001"),
        (integer(), np.int8(3), None),
        (integer(), True, "TypeError: it must be an integer; got True"),
        (integer(), 2.0, "TypeError: it must be an integer; got 2.0"),
        (integer(least=3), 3, None),
        (integer(least=3), 2, "ValueError: it must be at least 3; got 2"),
        (integer(least=3), 4, None),
        (integer(least=0, most=5), 5, None),
        (integer(least=0, most=5), 6, "ValueError: it must be at most 5; got 6"),
        (integer(least=0, most=5), 0, None),
        (integer(least=0, most=5), -1, "ValueError: it must be at least 0; got -1"),
        (integer(most=5), -6, "ValueError: it must be at most 5; got -6"),
        (integer(most=5), -5, None),
        (number(), math.nan, None),
        (number(), -math.inf, None),
        (number(), 10**300, None),
        (number(), 10**400, f"ValueError: it must be a number that float64 can hold; got 1{'0' * 56}..."),
        (number(least=1), 10**400, f"ValueError: it must be at least 1; got 1{'0' * 56}..."),
        (number(), True, "TypeError: it must be a number; got True"),
        (number(), np.bool_(True), "TypeError: it must be a number; got True"),
        (number(), "1", "TypeError: it must be a number; got '1'"),
        (number(), 1j, "TypeError: it must be a number; got 1j"),
        (number(), np.float32(1), None),
        (number(), torch.tensor(1.5), None),
        (number(), torch.ones(1), "TypeError: it must be a number; got Tensor of torch.float32, shape (1,)"),
        (number(least=2), 2, None),
        (number(least=2), 1.999, "ValueError: it must be at least 2; got 1.999"),
        (number(least=2), 2.001, None),
        (number(least=2), math.nan, "ValueError: it must be at least 2; got nan"),
        (number(above=2), 2, "ValueError: it must be above 2; got 2"),
        (number(above=2), 2.001, None),
        (number(above=2), 1, "ValueError: it must be above 2; got 1"),
        (number(most=2), 2, None),
        (number(most=2), 2.001, "ValueError: it must be at most 2; got 2.001"),
        (number(most=2), 1.999, None),
        (number(most=2), math.nan, "ValueError: it must be at most 2; got nan"),
        (number(below=2), 2, "ValueError: it must be below 2; got 2"),
        (number(below=2), 1.999, None),
        (number(below=2), 3, "ValueError: it must be below 2; got 3"),
        (number(finite=True), math.inf, "ValueError: it must be finite; got inf"),
        (number(finite=True), math.nan, "ValueError: it must be finite; got nan"),
        (number(finite=True), -1e308, None),
        (number(least=0), math.inf, None),
        (number(least=0, below=1), 1, "ValueError: it must be at least 0, below 1; got 1"),
        (number(least=0, below=1), -0.5, "ValueError: it must be at least 0, below 1; got -0.5"),
        (number(above=0.5, most=1.5, finite=True), 2, "ValueError: it must be above 0.5, at most 1.5, finite; got 2"),
        (number(above=0.5, most=1.5, finite=True), 1, None),
        (arguments.positive, 0, "ValueError: it must be above 0, finite; got 0"),
        (arguments.positive, 1e-300, None),
        (arguments.positive, math.inf, "ValueError: it must be above 0, finite; got inf"),
    ],
)
def test_a_number_is_in_its_range(kind, value, words):
    assert says(kind, value) == words


# --- one of some values, texts, functions, arrays


class Colour(enum.Enum):
    RED = 1


class FramesLike:
    def __iter__(self):
        return iter(())


class Module(nn.Module):
    pass


NOTHING_OF = "it must be a sequence; got"


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        (one_of(2, "b"), 2, None),
        (one_of(2, "b"), "b", None),
        (one_of(2, "b"), 1, "ValueError: it must be one of 2, 'b'; got 1"),
        (one_of(2, "b"), 3, "ValueError: it must be one of 2, 'b'; got 3"),
        (one_of(2, "b"), "a", "ValueError: it must be one of 2, 'b'; got 'a'"),
        (one_of(2, "b"), "c", "ValueError: it must be one of 2, 'b'; got 'c'"),
        (one_of(1), True, "ValueError: it must be one of 1; got True"),
        (arguments.text, "", None),
        (arguments.text, b"a", "TypeError: it must be a string; got b'a'"),
        (arguments.flag, False, None),
        (arguments.flag, np.bool_(True), None),
        (arguments.flag, torch.tensor(True), None),
        (arguments.flag, 1, "TypeError: it must be True or False; got 1"),
        (arguments.flag, torch.tensor([True]), "TypeError: it must be True or False; got Tensor of torch.bool, "
         "shape (1,)"),
        (arguments.function, len, None),
        (arguments.function, 3, "TypeError: it must be a function; got 3"),
        (arguments.array, torch.ones(2), None),
        (arguments.array, torch.ones(2, dtype=torch.int8), None),
        (arguments.array, torch.ones(2, dtype=torch.complex64), "TypeError: it must hold real numbers; got Tensor of "
         "torch.complex64, shape (2,)"),
        (arguments.array, np.ones(2, bool), None),
        (arguments.array, np.ones(2, np.uint8), None),
        (arguments.array, np.ones(2, complex), "TypeError: it must hold real numbers; got ndarray of complex128, "
         "shape (2,)"),
        (arguments.array, np.array(["a"]), "TypeError: it must hold real numbers; got ndarray of <U1, shape (1,)"),
        (arguments.array, [1.0], "TypeError: it must be a tensor or array; got [1.0]"),
        (arguments.tensor, torch.ones(2), None),
        (arguments.tensor, np.ones(2), "TypeError: it must be a tensor; got ndarray of float64, shape (2,)"),
        (arguments.tensor, torch.ones(1) * 1j, "TypeError: it must hold real numbers; got Tensor of torch.complex64, "
         "shape (1,)"),
        (many(integer()), [1, 2], None),
        (many(integer()), (), None),
        (many(integer()), [1, 2.5, 3], "TypeError: it[1] must be an integer; got 2.5"),
        (many(integer()), np.array([3, 4]), None),
        (many(integer()), "12", f"TypeError: {NOTHING_OF} '12'"),
        (many(integer()), b"12", f"TypeError: {NOTHING_OF} b'12'"),
        (many(integer()), {1: 2}, f"TypeError: {NOTHING_OF} {{1: 2}}"),
        (many(integer()), OrderedDict(), f"TypeError: {NOTHING_OF} {OrderedDict()!r}"),
        (many(integer()), 3, f"TypeError: {NOTHING_OF} 3"),
        (many(integer()), Colour, f"TypeError: {NOTHING_OF} <enum 'Colour'>"),
        (many(integer()), np.array(3), f"TypeError: {NOTHING_OF} array(3)"),
        (many(integer()), torch.tensor(3), f"TypeError: {NOTHING_OF} tensor(3)"),
        (many(integer()), FramesLike(), None),  # how many it holds is not known
        (many(integer(), least=2), [1], "ValueError: it must hold at least 2; got 1"),
        (many(integer(), least=2), [1, 2], None),
        (many(integer(), least=2), [1, 2, 3], None),
        (many(integer(), least=1), [], "ValueError: it must hold at least 1; got 0"),
        (one_or_many(integer()), 3, None),
        (one_or_many(integer()), [3, 4], None),
        (one_or_many(integer()), [3], None),
        (one_or_many(integer()), (), "ValueError: it must hold at least 1; got 0"),
        (one_or_many(integer()), [], "ValueError: it must hold at least 1; got 0"),
        (one_or_many(integer()), "a", "TypeError: it must be an integer; got 'a'"),
        (one_or_many(integer()), [3, "a"], "TypeError: it[1] must be an integer; got 'a'"),
        (pair(integer()), (1, 2), None),
        (pair(integer()), [1, 2], None),
        (pair(integer()), (1,), "ValueError: it must be a pair; got (1,)"),
        (pair(integer()), (1, 2, 3), "ValueError: it must be a pair; got (1, 2, 3)"),
        (pair(integer()), np.array([1, 2]), "ValueError: it must be a pair; got ndarray of int64, shape (2,)"),
        (pair(integer()), (1, "a"), "TypeError: it[1] must be an integer; got 'a'"),
        (pair(integer()), 5, f"TypeError: {NOTHING_OF} 5"),
        (arguments.instance("Module"), Module(), None),
        (arguments.instance("Module", "Linear"), 3, "TypeError: it must be a Module or Linear; got 3"),
        (arguments.instance("Linear"), nn.Linear(1, 1), None),
        (table("a", "b"), pd.DataFrame({"a": [1], "b": [2], "c": [3]}), None),
        (table("a", "b"), pd.DataFrame({"a": [1]}), "ValueError: it must have the columns a, b; got none of b"),
        (table("a", "b"), pd.DataFrame({"c": [1]}), "ValueError: it must have the columns a, b; got none of a, b"),
        (table("a"), pd.DataFrame({"a": []}), "ValueError: it must have rows; got none"),
        (table("a"), {"a": [1]}, "TypeError: it must be a data frame; got {'a': [1]}"),
        (arguments.path, "a/b", None),
        (arguments.path, Path("a"), None),
        (arguments.path, "a\0b", "TypeError: it must be a path; got 'a\\x00b'"),
        (arguments.path, 3, "TypeError: it must be a path; got 3"),
        (arguments.path, b"a", "TypeError: it must be a path; got b'a'"),
        (arguments.device, "cpu", None),
        (arguments.device, torch.device("cpu"), None),
        (arguments.device, "nowhere", "ValueError: it must be a device of this machine; got 'nowhere'"),
        (arguments.device, [], "ValueError: it must be a device of this machine; got []"),
        (arguments.floating, torch.bfloat16, None),
        (arguments.floating, torch.int32, "ValueError: it must be a floating point dtype; got torch.int32"),
        (arguments.floating, "float32", "ValueError: it must be a floating point dtype; got 'float32'"),
        (arguments.having("real", "imag"), 3, None),
        (arguments.having("real", "x", "y"), 3, "TypeError: it must be a Dataset, with real, x, y; got int, without "
         "x, y"),
        (optional(integer()), None, None),
        (optional(integer()), 3, None),
        (optional(integer()), "a", "TypeError: it must be an integer; got 'a'"),
        (arguments.anything, object, None),
    ],
)  # fmt: skip
def test_what_is_something_else_is_refused(kind, value, words):
    assert says(kind, value) == words


def test_a_generator_is_not_used_up_by_looking_at_it():
    numbers = (n for n in "ab")
    many(integer(), least=5)("it", numbers)
    assert list(numbers) == ["a", "b"]


@pytest.mark.parametrize("value", ["x", [[1, 2], [3]], object(), [2**100]])
def test_what_torch_makes_no_tensor_of_is_refused_in_our_words(value):
    words = f"it must be a tensor, or numbers to make one of; got {arguments.shown(value)}"
    with pytest.raises(TypeError, match=re.escape(words)):
        arguments.as_tensor("it", value)


def test_numbers_become_a_tensor():
    assert torch.equal(arguments.as_tensor("it", [1, 2]), torch.tensor([1, 2]))


# --- annotations


@pytest.mark.parametrize(
    ("annotation", "right", "wrong"),
    [
        ("int", 3, 2.5),
        (int, 3, 2.5),
        ("float", 2.5, "a"),
        ("str", "a", 3),
        ("bool", True, 1),
        ("Tensor", np.ones(2), [1]),
        ("np.ndarray", np.ones(2), [1]),
        ("nn.Module", nn.Linear(1, 1), 3),
        ("Sequence", [torch.ones(1)], [1]),
        ("Sequence[Tensor]", [torch.ones(1)], [1]),
        ("Sequence[int]", [1], [1.5]),
        ("Sequence[float]", [1.5], ["a"]),
        ("tuple[int, ...]", (1,), (1.5,)),
        ("tuple[float, ...]", (1.5,), ("a",)),
        ("Sequence[str]", ["a"], [1]),
        ("dict", {}, []),
        ("str | os.PathLike", "a", 3),
        ("torch.dtype", torch.float64, torch.int64),
        ("str | torch.device", "cpu", "nowhere"),
        ("float | tuple[float, ...]", (1.0, 2.0), ()),
        ("tuple[float, float]", (1.0, 2.0), (1.0,)),
        ("Callable", len, 3),
        ("Callable[[int], int]", len, 3),
        ("Callable[[int], int] | None", None, 3),
        ("int | None", None, 2.5),
        ("int | None", 3, 2.5),
    ],
)
def test_an_annotation_says_what_an_argument_is(annotation, right, wrong):
    kind = arguments.annotated(annotation)
    assert says(kind, right) is None
    assert re.match(r"(TypeError|ValueError): it(\[0\])? must ", says(kind, wrong))


@pytest.mark.parametrize("annotation", ["Another", "Another | None", Path, object(), "list[int]"])
def test_an_annotation_that_is_not_known_checks_nothing(annotation):
    assert arguments.annotated(annotation) is None


def test_an_argument_without_none_refuses_none():
    assert says(arguments.annotated("int"), None) == "TypeError: it must be an integer; got None"


# --- functions


@checked(many_of=integer(least=2), maybe=integer())
def example(first: "int", many_of, *rest: "int", last: "int" = 0, maybe=None, free=None, **others: "int"):
    """What it does."""
    return first, many_of, rest, last, maybe, free, others


def test_arguments_are_checked_by_position_and_by_name():
    assert example(1, 2) == (1, 2, (), 0, None, None, {})
    assert example(1, 2, "x", "y", last=3, free="z", more="w") == (1, 2, ("x", "y"), 3, None, "z", {"more": "w"})
    assert example(many_of=5, first=4, maybe=None)[:2] == (4, 5)


@pytest.mark.parametrize(
    ("given", "named", "words"),
    [
        ((1.5, 2), {}, "first must be an integer; got 1.5"),
        ((1,), {"many_of": 1}, "many_of must be at least 2; got 1"),
        ((1, 1), {}, "many_of must be at least 2; got 1"),
        ((None, 2), {}, "first must be an integer; got None"),
        ((1, 2), {"last": "a"}, "last must be an integer; got 'a'"),
        ((1, 2), {"last": None}, "last must be an integer; got None"),
        ((1, 2), {"maybe": "a"}, "maybe must be an integer; got 'a'"),
        ((1,), {}, "missing 1 required positional argument: 'many_of'"),
    ],
)
def test_a_wrong_argument_is_refused_by_its_name(given, named, words):
    with pytest.raises((TypeError, ValueError), match=words):
        example(*given, **named)


def test_a_checked_function_keeps_its_name_and_its_text():
    assert (example.__name__, example.__doc__) == ("example", "What it does.")
    assert list(example.__wrapped__.__annotations__) == ["first", "rest", "last", "others"]


def test_a_range_for_an_argument_that_is_not_there_is_a_mistake():
    with pytest.raises(AssertionError, match=r"f has no \{'b'\}"):

        @checked(a=integer(), b=integer())
        def f(a): ...


def test_what_is_said_of_an_argument_goes_before_its_annotation():
    @checked(a=one_of("x"))
    def f(a: "int", b: "int"):
        return a, b

    assert f("x", 1) == ("x", 1)
    with pytest.raises(ValueError, match="a must be one of 'x'; got 1"):
        f(1, 1)
    with pytest.raises(TypeError, match="b must be an integer; got 'x'"):
        f("x", "x")


# --- dataclasses


@dataclass(frozen=True)
class Options:
    size: "int"
    rate: "float" = 0.5
    limit: "int" = None
    words: "Another" = field(default="free", compare=False)  # noqa: F821

    def __post_init__(self):
        check_fields(self, size=integer(least=1, most=9))


def test_the_fields_of_a_dataclass_are_checked_like_arguments():
    assert Options(1) == Options(np.int64(1), np.float64(0.5), None, "other")
    assert [type(value) for value in vars(Options(np.int32(2), np.float32(0.5))).values()][:2] == [int, float]
    for given, words in (
        ((0,), "size must be at least 1; got 0"),
        ((10,), "size must be at most 9; got 10"),
        ((1, "a"), "rate must be a number; got 'a'"),
        ((1, None), "rate must be a number; got None"),
        ((1, 0.5, 2.5), "limit must be an integer; got 2.5"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            Options(*given)
