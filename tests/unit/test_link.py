"""The state of a worker's connection: a change is told once, and who fails again and again is asked less often."""

import pytest

from queue_kit._link import STEADY, Link


@pytest.fixture
def link() -> Link:
    return Link(lease=30.0, on_change=lambda _: None, on_trouble=lambda: None)


def test_a_change_is_told_and_logged_once(caplog):
    states, troubles = [], []
    link = Link(lease=30.0, on_change=states.append, on_trouble=lambda: troubles.append(1))
    for _ in range(3):
        link.failed(OSError("gone"))
    for _ in range(3):
        link.answered()
    assert states == ["database_down", "database_up"]
    assert len(troubles) == 1
    assert [record.message.split(":")[0] for record in caplog.records] == [
        "the database does not answer, waiting for it",
        "the database answers again",
    ]


def test_the_pauses_between_probes_grow_to_two_seconds(link):
    link.failed(OSError("gone"))
    pauses = [link.backoff() for _ in range(8)]
    assert pauses[:2] == [0.0, 0.0]
    assert 0.25 <= pauses[2] <= 0.5
    assert all(1.0 <= pause <= 2.0 for pause in pauses[4:])


def test_with_a_short_lease_no_pause_is_longer_than_between_two_renewals():
    link = Link(lease=3.0, on_change=lambda _: None, on_trouble=lambda: None)
    link.failed(OSError("gone"))
    assert max(link.backoff() for _ in range(8)) <= 1.0


def test_a_long_outage_is_asked_about_for_ever(link):
    link.failed(OSError("gone"))
    pauses = [link.backoff() for _ in range(2_000)]
    assert all(1.0 <= pause <= 2.0 for pause in pauses[4:])


def test_a_statement_that_always_fails_is_tried_less_and_less_often_though_the_probe_goes_well(frozen, link):
    for _ in range(8):
        link.failed(OSError("refused"))
        pause = link.backoff()
        link.answered()
    assert pause >= 1.0


def test_an_outage_after_a_steady_time_is_asked_about_at_once(frozen, link):
    for _ in range(8):
        link.failed(OSError("gone"))
        assert link.backoff() == 0.0
        link.answered()
        frozen.forward(STEADY + 0.01)
