"""What the benchmark adds up, divides and refuses."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fresh import REPOSITORY

from bench.ingest import __main__ as bench_ingest
from bench.ingest.figures import Cost, Trial, bars, fastest, ratio, summary, table
from bench.ingest.floor import FLOOR_SQL, floor_statements
from bench.ingest.processes import (
    cpu_seconds,
    parse_cpu_seconds,
    parse_peak_rss_mb,
    peak_rss_mb,
)
from bench.ingest.warehouse import BenchError


def cost(cpu_s: float, records: int = 1_000_000, seconds: float = 10, rows: int = -1) -> Cost:
    return Cost(
        records=records,
        seconds=seconds,
        cpu_s=cpu_s,
        warehouse_cpu_s=cpu_s / 2,
        settle_cpu_s=0.1,
        startup_cpu_s=0.5,
        warehouse_rss_mb=500,
        parts={"ingest": cpu_s / 2},
        rows=records if rows < 0 else rows,
    )


class TestFigures:
    def test_ratios_are_of_cpu_a_record(self) -> None:
        """A peer that ran over fewer records is not flattered by it."""
        costs = {
            "file": cost(4.0),
            "collector": cost(2.2, records=100_000),
            "rotel": cost(12.0),
            "floor": cost(2.5),
        }
        assert ratio(costs["collector"], costs["file"]) == pytest.approx(5.5)
        assert summary(costs, 200.0, 210.0) == {
            "ratio_to_floor": 1.6,
            "cpu_ratio_to_collector": 5.5,
            "cpu_ratio_to_rotel": 3.0,
            "ingest_rss_mb": 200.0,
            "ingest_rss_mb_10x": 210.0,
        }

    def test_start_up_is_in_no_ratio(self) -> None:
        slow_start = Cost(**{**vars(cost(4.0)), "startup_cpu_s": 99.0})
        assert ratio(slow_start, cost(4.0)) == 1

    def test_each_bar_says_whether_it_is_met(self) -> None:
        figures = {
            "ratio_to_floor": 2.0,
            "cpu_ratio_to_collector": 4.99,
            "cpu_ratio_to_rotel": 2.5,
            "ingest_rss_mb": 250.0,
            "ingest_rss_mb_10x": 280.0,
        }
        met = {line.split()[1]: line.startswith("met") for line in bars(figures)}
        assert met == {
            "cpu_ratio_to_collector": False,
            "cpu_ratio_to_rotel": True,
            "ratio_to_floor": True,
            "ingest_rss_mb": True,
            "ingest_rss_mb_10x": False,  # its growth, the last of the two lines
        }
        assert sum("MISSED" in line for line in bars(figures)) == 2

    def test_a_batch_size_that_lost_rows_is_not_the_fastest(self) -> None:
        lossy = Trial(10, cost(1, seconds=1, rows=999_999))
        slow, quick = Trial(20, cost(1, seconds=9)), Trial(30, cost(9, seconds=8))
        assert fastest([lossy, slow, quick]) is quick
        assert fastest([lossy]) is lossy

    def test_the_table_has_a_line_for_each_path(self) -> None:
        lines = table({"file": cost(4.0)}, {"file": "(a)"}).splitlines()
        figures = ["1,000,000", "100,000", "4.00", "4.00", "2.00", "0.10", "0.50"]
        assert lines[1].split() == ["(a)", *figures]

    def test_the_json_of_a_path_splits_its_cpu_by_process(self) -> None:
        said = cost(4.0).as_json()
        assert (said["ingest_cpu_s"], said["warehouse_cpu_s"], said["cpu_s"]) == (2.0, 2.0, 4.0)
        assert (said["records_per_s"], said["cpu_us_per_record"]) == (100_000, 4.0)


class TestProcesses:
    def test_cpu_is_own_and_waited_for_children_whatever_the_name(self) -> None:
        stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 10 20 0 0 100 50 25 5 20 0 1 0 99 0 0"
        assert parse_cpu_seconds(stat) == 180 / os.sysconf("SC_CLK_TCK")

    def test_cpu_of_a_real_process_grows_by_what_it_used(self) -> None:
        before, clock = cpu_seconds(os.getpid()), time.process_time()
        while time.process_time() - clock < 0.3:
            pass
        assert 0.25 < cpu_seconds(os.getpid()) - before < 0.6

    def test_the_peak_is_what_was_once_held(self) -> None:
        assert parse_peak_rss_mb("VmRSS:\t 5 kB\nVmHWM:\t 2000 kB\n") == 2.048
        code = (
            "from bench.ingest.processes import peak_rss_mb; before = peak_rss_mb();"
            "held = bytes(range(256)) * 400_000; del held; print(peak_rss_mb() - before)"
        )
        said = subprocess.check_output([sys.executable, "-c", code], cwd=REPOSITORY, text=True)
        assert 95 < float(said) < 130
        assert peak_rss_mb() > 10


class TestFloor:
    def test_is_the_text_that_everybody_is_measured_by(self) -> None:
        """The comparison is worth nothing if somebody makes the floor slower."""
        assert hashlib.sha256(FLOOR_SQL.read_bytes()).hexdigest() == (
            "46c1fda3fd6f0ed79edd549a4aa9d8ad9b6d04ca10134eceb484f62f97330ba2"
        )

    def test_has_two_statements_in_which_only_places_are_filled_in(self) -> None:
        statements = floor_statements("/lines", "/rows", "raw.copy")

        assert len(statements) == 2
        joined = ";".join(statements).strip()
        for place, value in (
            ("{lines}", "/lines"),
            ("{rows}", "/rows"),
            ("{raw_copy}", "raw.copy"),
        ):
            assert place not in joined and value in joined
        restored = (
            joined.replace("/lines", "{lines}")
            .replace("/rows", "{rows}")
            .replace("raw.copy", "{raw_copy}")
        )
        assert restored + ";" == FLOOR_SQL.read_text().strip()


class TestCommand:
    def test_a_missing_part_ends_it_without_figures(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def missing() -> None:
            raise BenchError("a service is missing")

        monkeypatch.setattr(bench_ingest, "fetch_services", missing)
        monkeypatch.setattr(sys, "argv", ["bench", "--records", "10000"])

        assert bench_ingest.main() == 1
        said = capsys.readouterr()
        assert said.out == ""
        assert "bench-ingest: a service is missing" in said.err

    def test_its_own_paths_run_and_the_last_line_is_json(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "bench.ingest", "--records", "10000", "--seed", "5"]
        done = subprocess.run(
            [*command, "--cache", str(tmp_path), "--only"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr

        said = json.loads(done.stdout.splitlines()[-1])
        assert (said["records"], said["seed"]) == (10_000, 5)
        assert set(said["paths"]) == {"file", "floor"}
        file, floor = said["paths"]["file"], said["paths"]["floor"]
        assert said["ratio_to_floor"] == pytest.approx(file["cpu_s"] / floor["cpu_s"], abs=0.01)
        assert file["rows"] == floor["rows"] == 10_000
        assert file["cpu_s"] == pytest.approx(
            file["warehouse_cpu_s"] + file["ingest_cpu_s"], abs=0.01
        )
        assert list(tmp_path.iterdir()) == [tmp_path / "5-10000"], "only the records stay"
