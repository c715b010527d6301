"""The operator table against the torch that is installed."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from obhut.errors import OpNotAdmittedError
from obhut.ops import ROWS, Flag, Kind, Row, row
from obhut.ops.aten import OVERLOADS
from obhut.ops.table import admitted

ADMITTED = [r for r in ROWS.values() if r.kind is not Kind.REFUSED]


def _overload(name: str) -> torch._ops.OpOverload:
    _, packet, overload = name.split(".")
    func = getattr(getattr(torch.ops.aten, packet), overload)
    assert isinstance(func, torch._ops.OpOverload)
    return func


def _schema(r: Row) -> Any:
    return _overload(r.name)._schema


def _of(kind: Kind) -> list[Row]:
    found = [r for r in ADMITTED if r.kind is kind]
    assert found
    return found


def test_every_row_names_an_overload() -> None:
    """Every row, refused or not, names an overload that this torch has."""
    for name in ROWS:
        _overload(name)


def test_a_row_is_found_by_its_name_only() -> None:
    """A row is found under its own name, and a name without a row gives None."""
    found = row("aten.add.Tensor")
    assert found is not None
    assert found.name == "aten.add.Tensor"
    assert found.kind is Kind.FUNCTION
    assert row("aten.add") is None
    assert row("prim.add.Tensor") is None


def test_in_place_rows_return_what_they_change() -> None:
    """INPLACE rows change an argument, and return nothing else."""
    for r in _of(Kind.INPLACE):
        schema = _schema(r)
        assert schema.is_mutable, r.name
        changed = {
            s
            for a in schema.arguments
            if a.alias_info and a.alias_info.is_write
            for s in a.alias_info.before_set
        }
        for result in schema.returns:
            assert result.alias_info, r.name
            assert result.alias_info.before_set & changed, r.name


def test_out_rows_take_out_arguments() -> None:
    """OUT rows write into out arguments, and no other row has one."""
    for r in ADMITTED:
        has_out = any(a.is_out for a in _schema(r).arguments)
        assert has_out == (r.kind is Kind.OUT), r.name
        assert r.kind is not Kind.OUT or _schema(r).is_mutable, r.name


def test_view_rows_alias_and_change_nothing() -> None:
    """VIEW rows alias an argument and change none."""
    for r in _of(Kind.VIEW):
        schema = _schema(r)
        assert not schema.is_mutable, r.name
        assert any(a.alias_info for a in schema.arguments), r.name
        assert any(result.alias_info for result in schema.returns), r.name


def test_function_rows_change_nothing_without_saying_so() -> None:
    """FUNCTION rows take tensors and change none that their note doesn't name."""
    for r in _of(Kind.FUNCTION):
        marked = [a.name for a in _schema(r).arguments if a.alias_info]
        assert not marked or f"changes: {', '.join(marked)}" in r.note, r.name
        taken = [str(x.type) for x in _schema(r).arguments]
        assert any("Tensor" in kind for kind in taken), r.name


def test_factories_take_no_tensor() -> None:
    """FACTORY rows return tensors and take none."""
    for r in _of(Kind.FACTORY):
        schema = _schema(r)
        assert not any("Tensor" in str(a.type) for a in schema.arguments), r.name
        assert any("Tensor" in str(a.type) for a in schema.returns), r.name


def test_values_return_no_tensor() -> None:
    """VALUE rows return no tensor, and every other kind does or changes one."""
    for r in ADMITTED:
        schema = _schema(r)
        tensors = any("Tensor" in str(a.type) for a in schema.returns)
        if r.kind is Kind.VALUE:
            assert not tensors, r.name
            assert not schema.is_mutable, r.name
        else:
            assert tensors or schema.is_mutable, r.name


def test_refusals_have_a_reason_and_no_flags() -> None:
    """Each refused row says why; flags belong to what runs."""
    for r in _of_refused():
        assert r.note, r.name
        assert not r.flags, r.name


def _of_refused() -> list[Row]:
    found = [r for r in ROWS.values() if r.kind is Kind.REFUSED]
    assert found
    return found


def test_no_derivative_kernel_is_admitted() -> None:
    """A client can't call a backward kernel: forged indices crash a worker."""
    assert not [r.name for r in ADMITTED if "backward" in r.name]
    assert ROWS["aten.max_pool2d_with_indices_backward.default"].kind is Kind.REFUSED


@pytest.mark.parametrize(
    "name",
    [
        "aten.from_file.default",
        "aten.set_.source_Storage",
        "aten._reshape_alias.default",
        "aten._pin_memory.default",
        "aten._unsafe_index.Tensor",
        "aten._cummax_helper.default",
        "aten.record_stream.default",
    ],
)
def test_what_reaches_foreign_memory_is_refused(name: str) -> None:
    """Files, storages, streams and unchecked indexing are refused by name."""
    assert ROWS[name].kind is Kind.REFUSED


def test_no_admitted_argument_is_beyond_the_codec() -> None:
    """Admitted rows take no storage, stream, dimension name or script object."""
    foreign = ("Storage", "Stream", "Dimname", "__torch__")
    for r in ADMITTED:
        for a in _schema(r).arguments:
            assert not any(f in str(a.type) for f in foreign), (r.name, a.name)
            if "Generator" in str(a.type) and not a.has_default_value():
                assert "generator must be None" in r.note, r.name


def test_whole_composites_are_composites() -> None:
    """WHOLE rows are those that the client would decompose, and all of them."""
    for r in ADMITTED:
        schema = _schema(r)
        full = schema.name + f".{schema.overload_name}".rstrip(".")
        composite = torch._C._dispatch_has_kernel_for_dispatch_key(
            full, "CompositeImplicitAutograd"
        )
        if Flag.WHOLE in r.flags:
            assert composite, r.name
    assert Flag.WHOLE in ROWS["aten.lstm.input"].flags
    assert Flag.WHOLE in ROWS["aten.matmul.default"].flags


def test_flags_follow_tags() -> None:
    """Tags of random, dynamic and reshaping overloads are flags of their rows."""
    exempt = {"aten._ctc_loss.default", "aten._ctc_loss.Tensor", "aten.detach_.default"}
    tags = {
        torch.Tag.nondeterministic_seeded: Flag.RANDOM,
        torch.Tag.dynamic_output_shape: Flag.DYNAMIC,
        torch.Tag.inplace_view: Flag.RESHAPES,
    }
    for r in ADMITTED:
        for tag in set(_overload(r.name).tags) & set(tags):
            assert tags[tag] in r.flags or r.name in exempt, (r.name, tag)


def test_uninitialised_results_are_zeroed() -> None:
    """Every admitted `empty` is flagged ZEROED, and nothing else is."""
    for r in ADMITTED:
        empty = r.name.split(".")[1].removeprefix("new_").startswith("empty")
        assert empty == (Flag.ZEROED in r.flags), r.name


def test_dynamic_shapes_stay_behind_the_guard() -> None:
    """A shape that tells values is refused, but for indices and written lengths."""
    for r in ADMITTED:
        if Flag.DYNAMIC in r.flags:
            free = r.name.startswith("aten.index.") or r.name.endswith(".data")
            how = "CHECKED" if free else "REFUSED"
            assert Flag[f"GUARD_{how}"] in r.flags, r.name


def test_unchecked_kernels_do_not_run_unchecked_behind_a_guard() -> None:
    """What trusts its arguments is refused behind a guard, or checked before."""
    unchecked = [r for r in ADMITTED if "unchecked:" in r.note]
    assert unchecked
    for r in unchecked:
        assert r.flags & {Flag.GUARD_REFUSED, Flag.GUARD_CHECKED}, r.name


def test_a_guard_refuses_with_a_reason() -> None:
    """Each row that a guard refuses says why, and no other row does."""
    for r in ADMITTED:
        assert bool(r.guard_reason) == (Flag.GUARD_REFUSED in r.flags), r.name
    with pytest.raises(OpNotAdmittedError, match="behind a guard its shape tells"):
        admitted("aten.nonzero.default", guarded=True)
    assert admitted("aten.nonzero.default").name == "aten.nonzero.default"
    assert admitted("aten.add.Tensor", guarded=True).name == "aten.add.Tensor"


def test_no_value_leaves_a_guard_as_an_operators_result() -> None:
    """Of what returns no tensor only a check that returns nothing runs."""
    found = [r.name for r in _of(Kind.VALUE) if Flag.GUARD_REFUSED not in r.flags]
    assert found == ["aten._linalg_check_errors.default"]


def test_each_device_kernel_names_its_twin() -> None:
    """An admitted CPU kernel names an admitted twin that runs elsewhere."""
    twins = [r.note.partition("twin: ")[2] for r in ADMITTED if "cpu kernel" in r.note]
    assert twins
    for twin in twins:
        assert ROWS[twin.partition(";")[0]].kind is not Kind.REFUSED


def test_functions_work_on_meta_as_the_flags_say() -> None:
    """Rows without NO_META or DYNAMIC have a kernel for meta tensors."""
    for r in ADMITTED:
        if r.flags & {Flag.NO_META, Flag.DYNAMIC} or r.kind is Kind.VALUE:
            continue
        schema = _schema(r)
        full = schema.name + f".{schema.overload_name}".rstrip(".")
        has = torch._C._dispatch_has_computed_kernel_for_dispatch_key
        assert has(full, "Meta") or not schema.returns, r.name


def test_rows_are_sorted_and_unique() -> None:
    """The generated file keeps its order, so that its changes can be read."""
    names = [name for name, *_ in OVERLOADS]
    assert names == sorted(set(names))


def test_the_table_loads_without_torch() -> None:
    """A parent process can read the table and hold no operator."""
    code = "import sys, obhut.ops; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"
