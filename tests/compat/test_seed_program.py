import runpy
import sys
from pathlib import Path

import pytest

import obhut

SEED = Path(__file__).with_name("seed_program.py")

BOB = "0.3798 0.1807 0.1216 0.0964 0.0805 0.0683 0.0582 0.0496 0.0423 0.0361"
ALICE = "3.9786 0.2432 0.1788 0.1486 0.1237 0.1030 0.0857 0.0713 0.0594 0.0494"
BOB_ROUNDS = "0.0107 0.0029 0.0005 0.0001 0.0002 0.0004 0.0004 0.0005 0.0004 0.0004"
ALICE_ROUNDS = (
    "0.0364 0.0174 0.0080 0.0037 0.0017 0.0008 0.0004 0.0002 0.0001 5.8271e-05"
)
LOSSES = "".join(
    f"Bob:tensor({bob}) Alice:tensor({alice})\n"
    for bobs, alices in ((BOB, ALICE), (BOB_ROUNDS, ALICE_ROUNDS))
    for bob, alice in zip(bobs.split(), alices.split(), strict=True)
)
PRINTED = (
    LOSSES
    + """\
tensor([[0.0633],
        [0.0565],
        [0.9277],
        [0.9209]], grad_fn=<AddmmBackward0>)
tensor([[0.],
        [0.],
        [1.],
        [1.]], requires_grad=True)
tensor(0.0187)
"""
)


def test_the_program_runs_as_it_is_after_install_as_syft(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Unchanged, with `import syft as sy`, it prints its own library's figures."""
    obhut.install_as_syft()
    runpy.run_path(str(SEED), run_name="__main__")
    assert capsys.readouterr().out == PRINTED


def test_the_program_runs_with_obhut_imported_as_sy(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """With the import's one word changed it prints the same, and needs no syft."""
    program = tmp_path / "program.py"
    program.write_text(SEED.read_text().replace("import syft as", "import obhut as"))
    runpy.run_path(str(program), run_name="__main__")
    assert capsys.readouterr().out == PRINTED
    assert "syft" not in sys.modules


@pytest.mark.parametrize("encode", [True, False])
def test_the_figures_do_not_depend_on_the_codec(
    capsys: pytest.CaptureFixture[str], encode: bool, tmp_path: Path
) -> None:
    """The same figures come with and without encoding of messages."""
    program = tmp_path / "program.py"
    program.write_text(
        SEED.read_text()
        .replace("import syft as", "import obhut as")
        .replace("VirtualWorker(hook, ", f"VirtualWorker(hook, encode={encode}, ")
    )
    runpy.run_path(str(program), run_name="__main__")
    assert capsys.readouterr().out == PRINTED


def test_the_figures_do_not_depend_on_batching(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Waiting after each request (OBHUT_BLOCKING=1) changes nothing."""
    monkeypatch.setenv("OBHUT_BLOCKING", "1")
    obhut.install_as_syft()
    runpy.run_path(str(SEED), run_name="__main__")
    assert capsys.readouterr().out == PRINTED


def test_the_program_can_run_twice_in_a_process(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Run again, as a notebook's cells are, it warns and works."""
    obhut.install_as_syft()
    runpy.run_path(str(SEED), run_name="__main__")
    with (
        pytest.warns(UserWarning, match="already hooked"),
        pytest.warns(UserWarning, match="there is a worker 'bob' already"),
        pytest.warns(UserWarning, match="there is a worker 'alice' already"),
        pytest.warns(UserWarning, match="there is a worker 'secure_worker' already"),
    ):
        runpy.run_path(str(SEED), run_name="__main__")
    assert capsys.readouterr().out == PRINTED * 2
