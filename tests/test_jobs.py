import pytest

from voldriverd.errors import InUse
from voldriverd.jobs import Job, Jobs

MIB = 1 << 20
GIB = 1 << 30


class Clock:
    """A clock that stands until it is set."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def job_at(*steps: tuple[float, int], total_bytes: int | None = None) -> Job:
    """Return a job that had done so many bytes at so many seconds after its beginning."""
    clock = Clock()
    job = Job("backup", clock=clock)
    job.expect(total_bytes)
    for after_s, done_bytes in steps:
        clock.now_s = 100.0 + after_s
        job.advance(done_bytes)
    return job


def test_a_job_says_how_far_it_is_how_fast_and_how_long_it_takes() -> None:
    job = job_at((5, GIB), (10, 2 * GIB), total_bytes=int(2.9 * GIB))
    assert job.percent == 68
    assert job.message() == "68 % (2 of 2.9 GiB, 205 MiB/s, 4 s left)"


def test_both_sizes_are_in_the_unit_of_the_whole() -> None:
    assert job_at((2, 100 * MIB), total_bytes=12 * GIB).message() == "0 % (0.1 of 12 GiB, 50 MiB/s, 4 min 4 s left)"


def test_a_long_time_is_told_in_hours() -> None:
    assert job_at((10, 100 * MIB), total_bytes=100 * GIB).message().endswith("10 MiB/s, 2 h 50 min left)")


def test_a_job_of_unknown_length_says_what_is_done() -> None:
    job = job_at((4, 2 * MIB))
    assert job.percent is None
    assert job.message() == "2 MiB, 512 KiB/s"


def test_a_job_that_has_just_begun_tells_no_rate() -> None:
    assert job_at((0.1, 10), total_bytes=100).message() == "10 % (10 of 100 B)"


def test_a_job_that_comes_to_more_than_expected_is_never_done_before_its_end() -> None:
    assert job_at((2, 30 * MIB), total_bytes=20 * MIB).message() == "99 % (30 of 30 MiB, 15 MiB/s)"


def test_the_rate_is_that_of_the_last_seconds() -> None:
    slow = [(float(second), second * MIB) for second in range(1, 61)]
    fast = [(60.0 + second, 60 * MIB + second * 10 * MIB) for second in range(1, 12)]
    assert job_at(*slow, *fast, total_bytes=GIB).rate == pytest.approx(10 * MIB, rel=0.01)


def test_many_small_steps_do_not_hide_the_rate() -> None:
    steps = [(number / 100, number * MIB) for number in range(1, 2_000)]
    assert job_at(*steps, total_bytes=GIB).rate == pytest.approx(100 * MIB, rel=0.06)


def test_a_job_that_counts_anew_forgets_what_it_did_before() -> None:
    job = job_at((5, GIB), total_bytes=GIB)
    job.restart()
    assert (job.percent, job.done_bytes, job.rate) == (None, 0, None)


def test_a_job_that_waits_says_for_what() -> None:
    job = job_at(total_bytes=GIB)
    job.waits_for = "another backup"
    assert job.message() == "waits for another backup"


def test_a_job_is_found_for_as_long_as_it_runs() -> None:
    jobs = Jobs()
    with jobs.running("1b5", "backup") as job:
        assert jobs.get("1b5") is job
    assert jobs.get("1b5") is None


def test_a_job_that_fails_is_listed_no_more() -> None:
    jobs = Jobs()
    with pytest.raises(OSError, match="full"), jobs.running("1b5", "backup"):
        raise OSError("full")
    assert jobs.get("1b5") is None


def test_a_second_job_of_one_id_is_refused_naming_the_first() -> None:
    jobs = Jobs()
    told = "cannot verify 1b5: backup of it is running: 0 B"
    with jobs.running("1b5", "backup"), pytest.raises(InUse, match=told), jobs.running("1b5", "verify"):
        pytest.fail("it began")
    with jobs.running("1b5", "verify"):
        pass


def test_what_a_job_needs_is_told() -> None:
    jobs = Jobs()
    with jobs.running("1v7", "restore", uses=frozenset({"1b5", "1bt1"})):
        assert jobs.using("1b5") == "restore of 1v7"
        assert jobs.using("1bt1") == "restore of 1v7"
        assert jobs.using("1v7") == "restore of 1v7"
        assert jobs.using("1b6") is None


def test_a_cancelled_job_is_told_from_one_that_the_daemon_stops() -> None:
    jobs = Jobs()
    with jobs.running("1b1", "backup") as first, jobs.running("1b2", "backup") as second:
        first.cancel()
        assert (first.is_given_up, first.cancelled.is_set(), second.cancelled.is_set()) == (True, True, False)
        jobs.stop()
        assert (second.is_given_up, second.cancelled.is_set()) == (False, True)


def test_a_job_that_begins_while_the_daemon_stops_ends_at_once() -> None:
    jobs = Jobs()
    jobs.stop()
    with jobs.running("1b1", "backup") as job:
        assert (job.is_given_up, job.cancelled.is_set()) == (False, True)
