"""`tests/FAULTS.md` tells the truth: every fault of the matrix is there once, with a test of its number that exists, or
with the reason why there is none."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

CHECKOUT = Path(__file__).parents[2]
MATRIX = {"P": 14, "D": 18, "N": 10, "T": 9, "I": 9, "C": 9, "U": 5, "S": 8}
"""How many faults of each kind there are."""

NUMBERS = [f"{kind}{number}" for kind, count in MATRIX.items() for number in range(1, count + 1)]


class Row(NamedTuple):
    number: str
    fault: str
    injected: str
    invariant: str
    figure: str
    shown: str


def rows() -> list[Row]:
    lines = (CHECKOUT / "tests" / "FAULTS.md").read_text().splitlines()
    cells = [re.split(r"(?<!\\)\|", line.strip().strip("|")) for line in lines if re.match(r"\| [A-Z]\d+ \|", line)]
    return [Row(*(cell.strip() for cell in row)) for row in cells]


def test_every_fault_is_there_once_and_in_order():
    assert [row.number for row in rows()] == NUMBERS


@pytest.mark.parametrize("number", NUMBERS)
def test_a_fault_is_shown_by_tests_of_its_number_or_says_why_not(number):
    (row,) = (row for row in rows() if row.number == number)
    assert all(row), row
    named = re.findall(r"(tests/[\w/]+\.py)::(test_\w+)", row.shown)
    if not named:
        assert re.match(r"— not offered: \w", row.shown), row
        return
    for file, test in named:
        assert re.search(rf"^(async )?def {test}\(", (CHECKOUT / file).read_text(), re.MULTILINE), f"{file}::{test}"
    assert any(f"_{number.lower()}_" in test for _, test in named), named
