"""The tree of errors: facts, words, and what survives a copy."""

from __future__ import annotations

import copy
import inspect
import pickle

import pytest

from obhut import errors

SAMPLES = {"str": "some {}", "int": 12_345, "Sequence[str]": ["here", "there"]}
"""A value for each type of fact."""


_OF_WORDS = (Exception.__init__, ConnectionError.__init__, RuntimeError.__init__)


def facts(name):
    """Return arguments for a class of error: all that it takes, or its words."""
    kind = getattr(errors, name)
    if kind.__init__ in _OF_WORDS:
        return ["the words"]
    taken = list(inspect.signature(kind).parameters.values())
    return [
        SAMPLES[one.annotation].format(one.name)
        if one.annotation == "str"
        else SAMPLES[one.annotation]
        for one in taken
    ]


def make(name):
    """Return an error of a class."""
    return getattr(errors, name)(*facts(name))


@pytest.mark.parametrize("name", errors.__all__)
def test_an_error_says_its_facts(name):
    """Each fact stands in the text, in words a person can read."""
    text = str(make(name))
    for fact in facts(name):
        for one in fact if isinstance(fact, list) else [fact]:
            assert (
                str(one) in text.replace(",", "")
                if isinstance(one, int)
                else (one in text)
            )
    assert "\n" not in text


@pytest.mark.parametrize("name", errors.__all__)
@pytest.mark.parametrize(
    "again", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy],
    ids=["pickle", "copy", "deepcopy"],
)  # fmt: skip
def test_an_error_survives_a_copy(name, again):
    """Pickled or copied, class, facts and words are the same."""
    error = make(name)
    error.add_note("a note")
    other = again(error)
    assert type(other) is type(error)
    assert str(other) == str(error)
    assert vars(other) == vars(error)
    assert other.args == error.args


@pytest.mark.parametrize("name", errors.__all__)
def test_an_error_can_be_caught_as_ours(name):
    """Everything derives from the root."""
    assert issubclass(getattr(errors, name), errors.ObhutError)


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("LocationError", RuntimeError),
        ("OpNotAdmittedError", RuntimeError),
        ("UnsupportedError", RuntimeError),
        ("NotSendableError", TypeError),
        ("ObjectNotFoundError", RuntimeError),
        ("WorkerNotFoundError", LookupError),
        ("DatasetNotFoundError", KeyError),
        ("AlignmentError", ValueError),
        ("RemoteExecutionError", RuntimeError),
        ("RemoteIndexError", IndexError),
        ("RemoteTypeError", TypeError),
        ("RemoteValueError", ValueError),
        ("RemoteNotImplementedError", NotImplementedError),
        ("MemoryLimitError", RuntimeError),
        ("TransportError", ConnectionError),
        ("WorkerClosedError", errors.TransportError),
    ],
)
def test_an_error_is_what_pytorch_users_would_catch(name, base):
    """Code that is written for local tensors catches the same classes."""
    assert issubclass(getattr(errors, name), base)


def test_the_tree_is_complete():
    """Every class of the module is exported, and drawn in its docstring."""
    classes = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.ObhutError)
    }
    assert classes == set(errors.__all__)
    assert all(name in errors.__doc__ for name in classes)


def test_texts_without_what_is_not_known():
    """An unknown line, and no known worker, leave no gap in the text."""
    assert "called at" not in str(errors.RemoteExecutionError("op", "bob", "no"))
    assert "called at" not in str(errors.MemoryLimitError("bob", 1, 2, 3, "op"))
    assert str(errors.WorkerNotFoundError("x", [])).endswith("known workers: none")
    unknown = str(errors.DatasetNotFoundError("bob", "data set", "x", []))
    assert unknown == "bob has no data set 'x'; it has: none that is public"


def test_long_lists_are_cut():
    """Names and differences beyond the twentieth are counted."""
    many = [f"a{place}" for place in range(25)]
    for text in (
        str(errors.DatasetNotFoundError("bob", "column", "x", many)),
        str(errors.AlignmentError(many, "align them")),
    ):
        assert "a19" in text
        assert "a20" not in text
        assert "and 5 more" in text
