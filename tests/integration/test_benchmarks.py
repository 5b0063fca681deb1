"""The benchmarks run, with little of each work and without the peers."""

import json
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_benchmarks_measure_what_the_goals_need_and_draw_it(tmp_path: Path) -> None:
    figures, drawing = tmp_path / "figures.json", tmp_path / "figures.svg"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks", "--quick", "--rounds", "1", "--only", "^turn$"),
            *("--json", str(figures), "--plot", str(drawing)),
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    medians = json.loads(figures.read_text())["medians of rounds"]
    assert set(medians["turn"]) == {"none", "ours", "files", "limit"}
    for count in ("statements", "round trips", "commits"):
        assert medians[f"turn: {count}"]["ours"] == [2.0]
    assert "a further turn, beyond no session manager, against the limit" in done.stdout
    assert drawing.read_text().startswith("<svg")
