import pytest
import torch

import obhut
from obhut import errors, exceptions
from obhut.compat.virtual_worker import VirtualWorker


def test_every_old_name_is_one_of_our_errors() -> None:
    """`sy.exceptions` has only names of errors, none as wide as all of them."""
    for name in exceptions.__all__:
        alias = getattr(exceptions, name)
        assert issubclass(alias, errors.ObhutError)
        assert alias not in (errors.ObhutError, errors.CallError)


def test_old_programs_catch_what_they_meant_to(
    bob: VirtualWorker, alice: VirtualWorker
) -> None:
    """Each old name is raised where the seed's library raised it."""
    x, y = torch.ones(2).send(bob), torch.ones(2).send(alice)
    with pytest.raises(obhut.exceptions.TensorsNotCollocatedException):
        x + y
    x.get()
    with pytest.raises(obhut.exceptions.ObjectNotFoundError):
        x.get()
    with pytest.raises(obhut.exceptions.WorkerNotFoundException):
        torch.ones(2).send("nobody")
    with pytest.raises(obhut.exceptions.SendNotPermittedError):
        y.send(bob)


def test_every_name_of_the_old_module_is_there() -> None:
    """`from syft.exceptions import …` works for all that 0.2.9 had."""
    for name in OLD:
        assert name in exceptions.__all__
        assert issubclass(getattr(exceptions, name), Exception)


OLD = [
    "CannotRequestObjectAttribute",
    "CompressionNotFoundException",
    "DependencyError",
    "EmptyCryptoPrimitiveStoreError",
    "GetNotPermittedError",
    "IdNotUniqueError",
    "InvalidProtocolFileError",
    "InvalidTensorForRemoteGet",
    "ObjectNotFoundError",
    "PlanCommandUnknownError",
    "PureFrameworkTensorFoundError",
    "RemoteObjectFoundError",
    "ResponseSignatureError",
    "SendNotPermittedError",
    "TensorsNotCollocatedException",
    "TranslationUnavailableError",
    "UndefinedProtocolTypeError",
    "UndefinedProtocolTypePropertyError",
    "WorkerNotFoundException",
]


def test_what_a_policy_keeps_in_was_not_permitted() -> None:
    """get() behind a policy raises GetNotPermittedError, remote_get its old error."""
    policy = obhut.Quorum(aggregators=["agg"], contributors=["a", "b", "c"])
    with obhut.TorchHook(torch) as hook:
        x = torch.ones(2).send(obhut.VirtualWorker(hook, id="a", policy=policy))
        with pytest.raises(exceptions.GetNotPermittedError):
            x.get()
        with pytest.raises(exceptions.InvalidTensorForRemoteGet):
            x.remote_get()
