"""How compiled constraints come from the worker process."""

import ast

import numpy as np

from server.structured.compiler import packed, unpacked


def test_what_is_packed_comes_out_the_same():
    step = np.arange(12, dtype=np.int32).reshape(3, 4)
    lifted = {"step": step.T, "edge_src": step[0, ::2], "classes": np.zeros(0, np.int64), "accepts": step[0] > 1}
    arrays = unpacked(packed(lifted))
    assert sorted(arrays) == sorted(lifted)
    for name, array in lifted.items():
        assert arrays[name].dtype == array.dtype
        np.testing.assert_array_equal(arrays[name], array)


def test_to_unpack_parses_no_python(monkeypatch):
    """Two threads of CPython 3.11 that parse at once may raise SystemError, which was a 500."""
    monkeypatch.setattr(ast, "parse", lambda *_, **__: 1 / 0)
    assert unpacked(packed({"accepts": np.ones(2, bool)}))["accepts"].all()
