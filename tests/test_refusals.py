"""What every public function refuses, and in which words, compared with what it did when that was recorded.

The fuzz asks that a strange argument is refused by us; this notices that a limit has moved, or that nobody looks any
more. Where a change is meant, ``RECORD=1 python -m pytest tests/test_refusals.py`` writes ``tests/refusals.json`` anew,
and its difference is read.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from pathlib import Path

import pytest
import test_fuzz as fuzz

RECORDED = Path(__file__).with_name("refusals.json")
PROBES = (-(10**12), -1, 0, 1, 2, 3, 0.5, 1.0, 1.5, 10**12, math.nan, math.inf, None, "x", True, [])
# Whether these end within a second depends on the machine.
LEFT_OUT = {"plots", "experiments.run", "experiments.cost"}


def said(name: str, argument: str) -> list[str]:
    """What each probe in this argument's place leads to: our words up to what was seen, "" where it is accepted."""
    function, make = fuzz.TARGETS[name]
    found = []
    for probe in PROBES:
        with tempfile.TemporaryDirectory() as empty, pytest.MonkeyPatch.context() as patch:
            patch.chdir(empty)  # a text is a file's name to some
            kind, words = fuzz.outcome(function, make() | {argument: probe})
        # A call that goes on and on was accepted.
        found.append(words.partition("; got")[0] if kind == "refused" else "deep" if kind == "deep" else "")
    return found


def names() -> list[str]:
    return [name for name in fuzz.TARGETS if not any(name.startswith(prefix) for prefix in LEFT_OUT)]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NCUTILS_CACHE", "off")
        patch.setenv("TQDM_DISABLE", "1")
        patch.setenv("NCUTILS_DATA", str(tmp_path_factory.mktemp("none")))
        if os.environ.get("RECORD"):
            words: dict[str, int] = {"": 0}
            calls = {f"{name} {argument}": [words.setdefault(text, len(words)) for text in said(name, argument)]
                     for name in names() for argument in sorted(fuzz.TARGETS[name][1]())}  # fmt: skip
            lines = [json.dumps(text, ensure_ascii=False) for text in words]
            told = [f"{json.dumps(call)}: {json.dumps(indices)}" for call, indices in calls.items()]
            whole = '{"words": [\n' + ",\n".join(lines) + '\n], "calls": {\n' + ",\n".join(told) + "\n}}\n"
            RECORDED.write_text(whole, encoding="utf-8")
        stored = json.loads(RECORDED.read_text(encoding="utf-8"))
        yield {call: [stored["words"][i] for i in indices] for call, indices in stored["calls"].items()}


@pytest.mark.parametrize("name", names())
def test_what_is_refused_is_what_was(name, recorded):
    for argument in sorted(fuzz.TARGETS[name][1]()):
        seen = said(name, argument)
        differ = [(p, was, now) for p, was, now in zip(PROBES, recorded[f"{name} {argument}"], seen, strict=True)
                  if was != now]  # fmt: skip
        assert not differ, f"{name}({argument}=...), was, is: {differ}"


def test_nothing_is_recorded_that_is_not_there(recorded):
    assert set(recorded) == {f"{name} {argument}" for name in names() for argument in fuzz.TARGETS[name][1]()}
