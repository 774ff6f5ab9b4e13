"""Every named format of traces, and what is said of what cannot be read."""

from pathlib import Path

import numpy as np
import pytest

from services.predictor.traces import TraceRefused, read


def written(folder: Path, text: str) -> Path:
    path = folder / "trace"
    path.write_text(text)
    return path


def test_a_rate_csv_has_its_own_windows_and_what_is_absent_is_missing(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "window_start_s,total_rps,active_clients,a_rps\n600,1,9,0.5\n0,3,9,\n1800,4,9,nan\n2400,5,9,1\n600,2,9,0.5\n",
    )
    found = read(path, 60.0)
    assert (found.start_s, found.width_s) == (0.0, 600.0)
    assert list(found.rates_rps) == ["total_rps", "a_rps"]
    np.testing.assert_array_equal(found.rates_rps["total_rps"], [3, 2, np.nan, 4, 5])
    np.testing.assert_array_equal(found.rates_rps["a_rps"], [np.nan, 0.5, np.nan, np.nan, 1])
    assert list(read(path, 60.0, ["a_rps"]).rates_rps) == ["a_rps"]


def test_dates_are_read_as_utc(tmp_path: Path) -> None:
    path = written(tmp_path, "timestamp,rps\n2024-01-01 00:00:00,1\n2024-01-01 00:10:00,2\n")
    assert read(path, 60.0).start_s == 1_704_067_200.0


def test_a_moment_that_names_its_offset_is_not_taken_for_utc(tmp_path: Path) -> None:
    path = written(
        tmp_path, "timestamp,rps\n2024-01-01 02:00:00.000000+02:00,1\n2024-01-01 02:10:00.0000000+02:00,2\n"
    )
    assert read(path, 60.0).start_s == 1_704_067_200.0


def test_a_byte_order_mark_and_spaces_about_names_are_no_part_of_them(tmp_path: Path) -> None:
    path = written(tmp_path, "\ufefftimestamp , a_rps ,b_rps\n0, 1 ,2\n60,3,4\n")
    np.testing.assert_array_equal(read(path, 60.0, ["a_rps"]).rates_rps["a_rps"], [1, 3])


def test_the_line_that_is_named_is_that_of_the_file_whatever_is_empty_above_it(tmp_path: Path) -> None:
    with pytest.raises(TraceRefused, match=":5: a_rps is 'x'"):
        read(written(tmp_path, "timestamp,a_rps\n0,1\n\n\n60,x\n"), 60.0)


@pytest.mark.parametrize(("last_s", "windows"), [(119.0, 2), (113.0, 1), (100.0, 1), (61.0, 1)])
def test_a_last_window_that_the_log_does_not_fill_is_left_out(
    tmp_path: Path, last_s: float, windows: int
) -> None:
    text = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
        f"{at_s},1,1\n" for at_s in (0.0, 30.0, last_s)
    )
    assert read(written(tmp_path, text), 60.0).rates_rps["total_rps"].tolist() == [2 / 60, 1 / 60][:windows]


@pytest.mark.parametrize(
    "text",
    [
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:00.0000000,100,10\n2023-11-16 18:15:30.5000000,300,30\n"
        "2023-11-16 18:18:00.0000000,200,20\n",
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,A,100,10,110,x\n35.5,A,300,30,330,x\n185,A,200,20,220,x\n",
        '{"timestamp": 0, "input_length": 100, "output_length": 10, "hash_ids": []}\n'
        '{"timestamp": 30500, "input_length": 300, "output_length": 30}\n\n'
        '{"timestamp": 180000, "input_length": 200, "output_length": 20}\n',
    ],
    ids=["azure", "burstgpt", "mooncake"],
)
def test_requests_are_counted_in_windows_and_none_is_a_zero(tmp_path: Path, text: str) -> None:
    found = read(written(tmp_path, text), 60.0)
    assert found.rates_rps["total_rps"].tolist() == [2 / 60, 0.0, 0.0]
    # The request at 180 s begins a window that is not over.
    inputs, outputs = found.tokens["total_rps"]
    np.testing.assert_array_equal(inputs, [200.0, np.nan, np.nan])
    np.testing.assert_array_equal(outputs, [20.0, np.nan, np.nan])


def test_each_model_of_a_burstgpt_log_is_a_series(tmp_path: Path) -> None:
    text = "Timestamp,Model,Request tokens,Response tokens\n0,A,1,1\n10,B,3,3\n20,B,3,3\n60,A,1,1\n"
    found = read(written(tmp_path, text), 60.0)
    assert {name: rates.tolist() for name, rates in found.rates_rps.items()} == {
        "total_rps": [3 / 60],
        "A": [1 / 60],
        "B": [2 / 60],
    }
    assert [means.tolist() for means in found.tokens["B"]] == [[3.0], [3.0]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected one of window_start_s"),
        ("a,b\n1,2\n", "expected one of window_start_s"),
        ("window_start_s,rps\n0,1\n", "1 windows: expected at least 2"),
        ("window_start_s,rps\n0,1\n0,1\n", "expected a window after another"),
        ("window_start_s,rps\n0,1\nx,1\n", ":3: window_start_s is 'x': expected seconds"),
        ("window_start_s,rps\n0,1\n600,-1\n", ":3: rps is '-1': expected at least 0"),
        ("window_start_s,rps\n0,1\n600,much\n", ":3: rps is 'much': expected a number"),
        ("window_start_s,rps\n0,1\n1,1\n2,1\n9e9,1\n", "expected at most 1000000"),
        ("TIMESTAMP,ContextTokens,GeneratedTokens\n", "no requests"),
        ('{"timestamp": 1}\n', ":1: KeyError('input_length')"),
        ("{nonsense\n", "expected an object with timestamp"),
    ],
)
def test_what_cannot_be_read_is_named_with_what_was_expected(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(TraceRefused) as refused:
        read(path, 60.0)
    assert str(path) in str(refused.value)
    assert said in str(refused.value)


def test_a_file_that_does_not_exist_and_a_column_that_is_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(TraceRefused, match="cannot be read"):
        read(tmp_path / "none", 60.0)
    path = written(tmp_path, "window_start_s,rps\n0,1\n600,1\n")
    with pytest.raises(TraceRefused, match="column 'b' does not exist; there is: rps"):
        read(path, 60.0, ["b"])
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(TraceRefused, match="cannot be read"):
        read(path, 60.0)
