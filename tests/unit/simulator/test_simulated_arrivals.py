"""Request sources: traces and generated arrivals."""

from itertools import islice, pairwise, takewhile
from pathlib import Path
from random import Random
from statistics import fmean, pstdev

import pytest

from services.simulator.arrivals import (
    Arrival,
    Curve,
    Lengths,
    Shape,
    TraceError,
    generate,
    read_azure_trace,
    replay,
)

HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
LENGTHS = Lengths(mean=500.0, cv=0.8, highest=4000)


def write(folder: Path, text: str) -> Path:
    path = folder / "trace.csv"
    path.write_text(text, encoding="utf-8", newline="")
    return path


def constant(value: float) -> Curve:
    return Curve([(0.0, value)])


def test_seven_digit_fractions_and_line_ends_of_the_published_traces_are_read(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        HEADER.replace("\n", "\r\n")
        + "2023-11-16 18:15:46.6805901,374,44\r\n2023-11-16 18:15:47,396,109\r\n2023-11-17 00:00:00.5,1,2",
    )
    trace = read_azure_trace(path)
    assert [a.time_s for a in trace] == pytest.approx([0.0, 0.3194099, 20653.8194099], abs=1e-6)
    assert [(a.input_tokens, a.output_tokens) for a in trace] == [(374, 44), (396, 109), (1, 2)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("time,in,out\n", ":1: 'time,in,out': expected TIMESTAMP"),
        (HEADER + "2023-11-16 18:15:46.1,374,44\nyesterday,1,1\n", ":3: 'yesterday,1,1': expected a date"),
        (HEADER + "2023-11-16 18:15:46.1,374,x\n", ":2: "),
        (
            HEADER + "2023-11-16 18:15:46+00:00,374,44\n",
            ":2: '2023-11-16 18:15:46+00:00,374,44': expected a date",
        ),
        ("", "expected TIMESTAMP"),
        (HEADER + "2023-11-16 18:15:46.1,374,0\n", "at least 1"),
        (HEADER + "2023-11-16 18:15:46,3,4\n2023-11-16 18:15:45,3,4\n", "do not run backwards"),
        (HEADER + "2023-11-16 18:15:46,3,4\n", "at least two"),
    ],
)
def test_a_malformed_trace_is_refused_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(TraceError) as caught:
        read_azure_trace(write(tmp_path, text))
    assert told in str(caught.value)
    assert "trace.csv" in str(caught.value)


def test_a_trace_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(HEADER.encode() + b"\xff\xfe")
    with pytest.raises(TraceError, match="expected a readable text file"):
        read_azure_trace(path)


def test_a_replay_starts_at_its_offset_and_loops_with_the_mean_gap_over_the_seam() -> None:
    trace = [Arrival(float(t), t + 1, t + 1) for t in range(5)]
    times = [(a.time_s, a.input_tokens) for a in islice(replay(trace, constant(1.0), 3.0, Random(0)), 8)]
    assert times == [(0, 4), (1, 5), (2, 1), (3, 2), (4, 3), (5, 4), (6, 5), (7, 1)]


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.5])
def test_a_scaled_replay_has_the_scaled_rate_and_time_that_never_runs_back(scale: float) -> None:
    rng = Random(5)
    times_s = [0.0]
    while len(times_s) < 4000:
        times_s.append(times_s[-1] + rng.expovariate(2.0))
    trace = [Arrival(t, 10, 10) for t in times_s]
    horizon_s = 4000.0
    got = list(takewhile(lambda a: a.time_s < horizon_s, replay(trace, constant(scale), 100.0, Random(1))))
    assert all(later.time_s >= earlier.time_s for earlier, later in pairwise(got))
    # Three standard deviations of a Poisson count of 2400 are 6 %.
    assert len(got) / horizon_s == pytest.approx(2.0 * scale, rel=0.06)


def test_generated_arrivals_follow_the_rate_and_the_burstiness() -> None:
    curve = Curve([(0.0, 1.0), (1000.0, 9.0), (2000.0, 1.0)], repeat=True)
    got = list(takewhile(lambda a: a.time_s < 10_000.0, generate(curve, 2.0, LENGTHS, LENGTHS, Random(2))))
    # Three standard deviations of a count of variation 2: 2.7 % of 50 000, 6.5 % of 8 600.
    assert len(got) == pytest.approx(5.0 * 10_000, rel=0.03)
    peak = [a for a in got if 900.0 <= a.time_s % 2000.0 < 1100.0]
    assert len(peak) / (5 * 200.0) == pytest.approx(8.6, rel=0.06)
    flat = list(islice(generate(constant(4.0), 2.0, LENGTHS, LENGTHS, Random(3)), 20_000))
    gaps_s = [later.time_s - earlier.time_s for earlier, later in pairwise(flat)]
    assert pstdev(gaps_s) / fmean(gaps_s) == pytest.approx(2.0, rel=0.05)


def test_generated_lengths_have_their_mean_and_stay_in_range() -> None:
    rng = Random(4)
    drawn = [LENGTHS.draw(rng) for _ in range(40_000)]
    assert fmean(drawn) == pytest.approx(500.0, rel=0.03)
    assert pstdev(drawn) / fmean(drawn) == pytest.approx(0.8, rel=0.06)
    assert min(drawn) >= 1
    assert max(drawn) <= 4000


def test_generated_arrivals_end_when_the_rate_is_zero_for_ever() -> None:
    curve = Curve([(0.0, 2.0), (100.0, 0.0)])
    got = list(generate(curve, 1.0, LENGTHS, LENGTHS, Random(6)))
    assert 60 < len(got) < 140
    assert got[-1].time_s <= 100.0


def test_the_same_seed_gives_the_same_arrivals() -> None:
    def draw(seed: int) -> list[Arrival]:
        return list(islice(generate(constant(3.0), 1.5, LENGTHS, LENGTHS, Random(seed)), 500))

    assert draw(7) == draw(7)
    assert draw(7) != draw(8)


def test_the_published_trace_is_read_whole(reference_data: Path) -> None:
    path = reference_data / "traces" / "azure-llm-2023-conv.csv"
    if not path.is_file():
        pytest.skip(f"no {path}")
    trace = read_azure_trace(path)
    assert len(trace) == 19366
    # From 18:15:46.6805900 to 19:14:08.4025270, to the precision of a double of that size.
    assert trace[-1].time_s == pytest.approx(3501.7219370, abs=1e-6)


@pytest.mark.parametrize(
    ("shape", "cv", "expected_cv"),
    [(Shape.UNIFORM, 0.5, 0.5), (Shape.EXPONENTIAL, 0.1, 1.0), (Shape.FIXED, 0.1, 0.0)],
)
def test_every_shape_of_lengths_has_its_mean_and_its_variation(
    shape: Shape, cv: float, expected_cv: float
) -> None:
    rng = Random(9)
    drawn = [Lengths(400.0, cv, 100_000, shape).draw(rng) for _ in range(20_000)]
    assert fmean(drawn) == pytest.approx(400.0, rel=0.03)
    assert pstdev(drawn) / fmean(drawn) == pytest.approx(expected_cv, abs=0.02)
