"""Thirty mistakes and more, typed where nothing but the wheel is, and what each must be told."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.cli.test_mistakes import MISTAKES, status_of

HERE = Path(__file__).parent
EXTRAS = [
    ("search --cache cache --semantic red", ["sentence_transformers"], "'.[semantic]'"),
    ("serve --cache cache", ["uvicorn"], "'.[web]'"),
    ("gallery out.html --cache cache", ["jinja2"], "'.[web]'"),
    ("report out.png --cache cache", ["matplotlib"], "'.[plot]'"),
    ("export out.parquet --cache cache", ["pyarrow"], "'.[parquet]'"),
    ("extract a.mp4 --cache fresh --model tiny --scenes", ["scenedetect"], "'.[scenes]'"),
    ("extract a.mp4 --cache fresh --model tiny --engine ray", ["ray"], "'.[ray]'"),
    ("caption --cache cache --json-schema a.json", ["llguidance"], "'.[structured]'"),
]
"""Typed, what is not installed, and the line to type that the message must name."""
MISSING = [
    ("export moved.jsonl --cache moved", "cogcache extract"),
    ("caption --cache clipless --model tiny", "`cogcache extract` makes them"),
]
"""Nothing is misused, and what was asked for is not there: exit status 1."""
MORE = [
    ("extract a.mp4 --cache new-one", "no model was named"),
    ("extract a.mp4 --cache fresh --model tiny --devices cuda:0", "there is no cuda device here"),
    ("forget --cache cache", "which captions to forget"),
    ("export film.vtt --cache cache --cut segment:24", "no caption has --cut segment:24"),
]


def test_each_mistake_is_told_with_what_to_do(installed, tmp_path):
    (tmp_path / "a.json").write_text('{"type": "object"}')
    asked = [[typed, []] for typed, _ in (*MISTAKES, *MISSING, *MORE)]
    asked += [[typed, missing] for typed, missing, _ in EXTRAS]
    done = subprocess.run(
        [installed / "python", HERE / "mistakes_from_wheel.py"], cwd=tmp_path, text=True,
        input=json.dumps(asked), capture_output=True, check=True,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1",
             "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    answer = json.loads(done.stdout)
    assert Path(answer["package"]).is_relative_to(installed.parent)
    said = {each["typed"]: each for each in answer["found"]}
    wanted = {typed: (told, status_of(typed)) for typed, told in MISTAKES}
    wanted |= {typed: (told, 1) for typed, told in MISSING}
    wanted |= {typed: (told, 1 if "no caption" in told else 2) for typed, told in MORE}
    wanted |= {typed: (told, 2) for typed, _, told in EXTRAS}
    assert len(wanted) >= 45
    wrong = [
        f"{typed!r} ended with {said[typed]['status']}: {said[typed]['said']}"
        for typed, (told, status) in wanted.items()
        if told not in " ".join(said[typed]["said"].split())
        or said[typed]["status"] != status
        or "Traceback" in said[typed]["said"]
    ]
    assert not wrong, "\n".join(wrong)
