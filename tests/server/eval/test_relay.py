"""`python -m server.eval.relay`: its table, and that all computed again is as if nothing were taken over."""

import server.eval.relay as measured
from server.eval.relay import main


async def test_a_table_of_both_cases(capsys, monkeypatch):
    monkeypatch.setattr(measured, "SHARES", (0.0, 1.0))
    await main(["--limit", "2", "--cache", "window"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[4:]]
    assert len(rows) == 6
    assert [row[2:] for row in rows[::3]] == [row[2:] for row in rows[2::3]]
    assert all(float(part.rstrip(" |")) < 1 for *_, part in rows[1::3])
