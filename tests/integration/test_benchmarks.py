"""The benchmarks run, with little of each work and without the peers."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import processes as contenders
from benchmarks import server
from support import processes
from support.servers import QuickServer

WORK = "import sys; from benchmarks.worker import _main; _main(*sys.argv[1:])"


def start(command: list[str], **options: Any) -> Any:
    """Start a contender's process, all but one forked from one that has done the imports."""
    _, _, _, contender, *arguments = command
    return (
        subprocess.Popen(command, **options) if contender == "none" else processes.Forked(WORK, contender, *arguments)
    )


@contextmanager
def quick_server() -> Iterator[str]:
    with QuickServer() as server:
        yield server.dsn


def test_benchmarks_measure_what_the_goals_need_and_draw_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    figures, drawing = tmp_path / "figures.json", tmp_path / "figures.svg"
    arguments = ["--quick", "--rounds", "1", "--only", "^turn$", "--json", str(figures), "--plot", str(drawing)]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    monkeypatch.setattr(contenders, "subprocess", SimpleNamespace(Popen=start, PIPE=subprocess.PIPE))
    monkeypatch.setattr(server, "postgres", quick_server)

    benchmarks._main()

    medians = json.loads(figures.read_text())["medians of rounds"]
    assert set(medians["turn"]) == {"none", "ours", "files", "limit"}
    for count in ("statements", "round trips", "commits"):
        assert medians[f"turn: {count}"]["ours"] == [2.0]
    assert "a further turn, beyond no session manager, against the limit" in capsys.readouterr().out
    drawn = drawing.read_text()
    assert drawn.startswith("<svg")
    assert "lower is better" in drawn
    assert drawn.count('opacity="0.1"') == 1  # the ground of every other row
