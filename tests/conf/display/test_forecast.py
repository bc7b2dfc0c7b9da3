"""The forecast of a run in words."""

from __future__ import annotations

from conf.display.forecast import describe_epochs


def test_many_epochs_come_with_advice() -> None:
    assert describe_epochs({"a": 0.0123, "b": 3.96}) == "0.012 over a, 4.0 over b"
    assert (
        describe_epochs({"a": 1, "b": 1106.7})
        == "1.0 over a, 1,106.7 over b; watch the validation loss for overfitting"
    )
