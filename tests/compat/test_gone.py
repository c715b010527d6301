import importlib

import pytest

import obhut
from obhut.compat import gone
from obhut.compat.exceptions import NotHereError
from obhut.compat.install import _MODULES


@pytest.mark.parametrize("name", sorted(gone.NAMES))
def test_a_name_can_be_imported_and_tells_on_use(name: str) -> None:
    """Importing it is nothing; making one, calling or deriving says what to write."""
    stands_in = getattr(gone, name)
    assert stands_in is getattr(gone, name)
    with pytest.raises(NotHereError, match=f"^{name} of the older library is not here"):
        stands_in(hook=None, id="bob", host="localhost", port=8777)
    with pytest.raises(NotHereError, match=f"^{name} of the older library"):
        type("Mine", (stands_in,), {})


def test_each_name_can_be_reached() -> None:
    """From the package or from an old import path; none leads nowhere."""
    paths = {
        name for names in _MODULES.values() for name, home in names.items()
        if home.startswith("obhut.compat.gone:")
    }  # fmt: skip
    assert set(obhut._GONE) | paths == gone.NAMES
    for name in obhut._GONE:
        assert getattr(obhut, name) is getattr(gone, name)
        assert name not in dir(obhut)


def test_a_websocket_worker_says_what_replaces_it() -> None:
    """Its old import path works, and its use names `obhut worker` and connect."""
    obhut.install_as_syft()
    for module, name in (
        ("syft.workers.websocket_client", "WebsocketClientWorker"),
        ("syft.workers.websocket_server", "WebsocketServerWorker"),
        ("syft", "WebsocketClientWorker"),
    ):
        stands_in = getattr(importlib.import_module(module), name)
        with pytest.raises(NotHereError, match=r"`obhut worker`.*obhut\.connect"):
            stands_in("localhost", 8777, hook=None)


def test_a_plan_says_what_to_write() -> None:
    """@sy.func2plan() is refused where it stands."""
    with pytest.raises(NotHereError, match="call it with remote tensors"):

        @obhut.func2plan()
        def plan(x):
            return x


def test_other_names_are_not_there() -> None:
    """The table is closed."""
    with pytest.raises(AttributeError, match="no_such_name"):
        gone.no_such_name  # noqa: B018
