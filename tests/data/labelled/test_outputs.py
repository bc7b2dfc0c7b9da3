"""The results file survives a kill after any byte: no result is lost or duplicated, other settings are refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from data import InputError
from data.labelled.outputs import Outputs

SIZES, ORDER = np.array([3, 2, 3, 1]), np.array([4, 0, 8, 2, 3, 7, 6, 1, 5])
ROWS = [{"index": int(place), "text": f"é\n\r\u2028{place}" * int(place)} for place in ORDER]
ENDS = np.cumsum(SIZES)
ABOUT = {"prompts": "abc", "stop": ("x",), "top_p": None}


def opened(folder, **about):
    return Outputs(folder / "out.jsonl", about=ABOUT | about, sizes=SIZES, order=ORDER)


def work(folder, until=4):
    """Adds the missing batches up to `until`, and publishes when all are there. Returns the number added."""
    with opened(folder) as outputs:
        first = outputs.done
        for number in range(first, until):
            outputs.add(ROWS[ENDS[number] - SIZES[number] : ENDS[number]])
        if outputs.done == len(SIZES):
            outputs.publish()
    return until - first


def results(folder):
    return (folder / "out.jsonl").read_bytes()


def test_results_are_published_in_order_when_all_are_there(tmp_path):
    assert work(tmp_path, until=3) == 3
    assert not (tmp_path / "out.jsonl").exists()
    assert work(tmp_path) == 1
    lines = results(tmp_path).decode().split("\n")
    assert [json.loads(line) for line in lines[:-1]] == sorted(ROWS, key=lambda row: row["index"]) and not lines[-1]
    assert {path.name for path in tmp_path.iterdir()} == {"out.jsonl", "out.jsonl.about.json"}
    with opened(tmp_path) as outputs:
        assert outputs.finished


def test_a_kill_after_any_byte_loses_at_most_one_batch(tmp_path):
    work(tmp_path)
    expected = results(tmp_path)
    (tmp_path / "out.jsonl").unlink()
    work(tmp_path, until=len(SIZES) - 1)
    partial = tmp_path / "out.jsonl.partial"
    whole = partial.read_bytes()
    added = []
    for length in (*range(0, len(whole), 3), len(whole)):
        partial.write_bytes(whole[:length])
        added.append(work(tmp_path))
        assert results(tmp_path) == expected
        (tmp_path / "out.jsonl").unlink()
    assert added[0] == 4 and added[-1] == 1 and added == sorted(added, reverse=True)


def test_batches_garbled_by_a_power_failure_are_computed_again(tmp_path):
    work(tmp_path)
    expected = results(tmp_path)
    (tmp_path / "out.jsonl").unlink()
    work(tmp_path, until=3)
    partial = tmp_path / "out.jsonl.partial"
    whole = partial.read_bytes()
    for place in range(0, len(whole), 3):
        partial.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert work(tmp_path) > 1
        assert results(tmp_path) == expected
        (tmp_path / "out.jsonl").unlink()
    partial.write_bytes(whole + b"\0" * 100)
    assert work(tmp_path) == 1
    assert results(tmp_path) == expected


def test_a_kill_after_the_rename_leaves_the_results_finished(tmp_path):
    work(tmp_path, until=3)
    partial = (tmp_path / "out.jsonl.partial").read_bytes()
    work(tmp_path)
    (tmp_path / "out.jsonl.partial").write_bytes(partial)
    with opened(tmp_path) as outputs:
        assert outputs.finished
    assert not (tmp_path / "out.jsonl.partial").exists()


@pytest.mark.parametrize("until", [0, 2, 4])
def test_results_of_other_settings_are_refused_and_unchanged(tmp_path, until):
    work(tmp_path, until=until)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError) as caught, opened(tmp_path, top_p=0.5, prompts="abd"):
        pass
    (line,) = caught.value.args
    assert 'prompts="abc" (now "abd"), top_p=null (now 0.5)' in line and "stop" not in line
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_file_of_another_program_is_refused(tmp_path):
    (tmp_path / "out.jsonl").write_text("precious")
    with pytest.raises(InputError, match="another program made it"), opened(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_damaged_description_is_refused_and_an_empty_one_is_written_again(tmp_path):
    about = tmp_path / "out.jsonl.about.json"
    about.touch()  # as after a kill before it was written
    work(tmp_path, until=2)
    about.write_text("{")
    with pytest.raises(InputError, match="is damaged"), opened(tmp_path):
        pass


def test_two_processes_cannot_write_the_same_results(tmp_path):
    with opened(tmp_path):
        with pytest.raises(InputError, match="another process"), opened(tmp_path):
            pass
    with opened(tmp_path) as outputs:
        assert outputs.done == 0


def test_an_error_keeps_the_batches_added_before(tmp_path):
    with pytest.raises(KeyboardInterrupt), opened(tmp_path) as outputs:
        outputs.add(ROWS[:3])
        raise KeyboardInterrupt
    with opened(tmp_path) as outputs:
        assert (outputs.done, outputs.rows) == (1, 3)
