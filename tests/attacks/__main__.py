"""Run all attacks, and print which rule stops which: ``make attacks``."""

from __future__ import annotations

import argparse
import sys

import torch

from . import owner_sequences, report, sequences


def main() -> int:
    """Run attacks; return 0 if all is as it should be."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.attacks", description=__doc__
    )
    parser.add_argument("names", nargs="*", help="attacks, by name; all by default")
    parser.add_argument(
        "--sequences",
        type=int,
        default=1_000,
        metavar="COUNT",
        help="how many random sequences of requests are tried (default: 1000)",
    )
    asked = parser.parse_args()
    torch.set_num_threads(1)
    wrong = report.run(asked.names)
    if not asked.names and asked.sequences:
        wrong += sequences.report(asked.sequences)
        wrong += owner_sequences.report(asked.sequences)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
