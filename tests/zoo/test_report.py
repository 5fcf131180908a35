"""Which rows of several sweeps count in the table."""

import zoo_report

WHOLE = {"name": "m", "status": "ok", "compared": "shapes", "load_ms": 5}
DIED = {"name": "m", "status": "failed", "reason": "memory"}
BLANK = {"name": "m", "status": "ok", "compared": "shapes, without data", "only": "blank"}
SAME = {"name": "m", "status": "ok", "compared": "numbers", "only": "numbers"}
OTHER = {"name": "m", "status": "failed", "reason": "differs", "only": "numbers"}


def test_the_last_row_of_a_model_counts() -> None:
    assert zoo_report.joined([DIED, WHOLE, {**WHOLE, "name": "n"}, BLANK]) == [
        BLANK,
        {**WHOLE, "name": "n"},
    ]


def test_a_comparison_of_numbers_adds_to_the_row_before_it() -> None:
    assert zoo_report.joined([WHOLE, SAME]) == [{**WHOLE, **SAME}]
    assert zoo_report.joined([WHOLE, OTHER])[0]["status"] == "failed"


def test_a_comparison_of_numbers_hides_no_failure() -> None:
    assert zoo_report.joined([DIED, SAME]) == [DIED]
