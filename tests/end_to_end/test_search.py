"""A folder of videos is indexed and searched by the binary as a user runs it."""

import json
import sys

import pytest

from vlp_jax.input import sources


@pytest.mark.slow
def test_a_trained_run_indexes_a_folder_once_and_finds_clips_in_it(finished, shapes, run, tmp_path):
    videos = tmp_path / "my videos"
    videos.mkdir()
    source = sources.TfdsSource(str(shapes), "test")
    for number in range(len(source)):
        (videos / f"{number}.mp4").write_bytes(source[number].video)
    (videos / "bad.mp4").write_bytes(b"")
    command = [sys.executable, "-m", "vlp_jax.search", f"--workdir={finished}", f"--videos={videos}"]
    made = run([*command, "--index-only"])
    assert made.returncode == 0 and made.stdout == "", made.stderr
    assert f"{len(source) + 1} new" in made.stderr and "bad.mp4: empty: 0 bytes" in made.stderr
    sheet = tmp_path / "sheet.html"
    found = run([*command, "--query", source.annotation(0).caption, "--json", "--html", str(sheet), "--top=5"])
    assert found.returncode == 0, found.stderr
    out = json.loads(found.stdout)
    assert out["index"]["new"] == 0 and out["index"]["unchanged"] == len(source) + 1
    assert len(out["results"]) == 5 and sheet.read_text().count("data:image/jpeg") == 5
    scores = [row["score"] for row in out["results"]]
    assert scores == sorted(scores, reverse=True) and out["results"][0]["path"].startswith(str(videos))
    refused = run([*command, "--query="])
    assert refused.returncode == 2 and refused.stdout == "" and "the query is empty" in refused.stderr
