from __future__ import annotations

import gc
import io
import json
import tarfile
import tomllib
from pathlib import Path

import av
import pytest

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.search.selection import Selection
from cogcache.errors import ConfigError
from cogcache.export.exporting import Options, export
from cogcache.export.target import MARK
from cogcache.export.trainer_folders import LAYOUTS
from cogcache.export.wording import one_line
from cogcache.video.file_state import file_digest
from tests.support.exported import CUT, HOSTILE, PLAIN, add_caption, make_cache, tree

CAPTIONS = [PLAIN, one_line(HOSTILE), CUT]
NAMES = ["00000000.mp4", "00000001.mp4", "00000002.mp4"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return make_cache(tmp_path_factory.mktemp("made"))


@pytest.fixture(scope="module")
def exported(cache, tmp_path_factory):
    """Return each layout, exported once."""
    root = tmp_path_factory.mktemp("out")
    for name in (*LAYOUTS, "webdataset"):
        export(cache / "catalog.sqlite", root / name, name, Selection(), Options())
    return root


@pytest.mark.parametrize("name", [*LAYOUTS, "webdataset"])
def test_no_text_file_breaks_a_rule_that_readers_share(exported, name):
    for file, content in tree(exported / name).items():
        if not file.endswith((".mp4", ".tar")):
            text = content.decode()
            assert "\ufeff" not in text
            assert text.endswith("\n"), file
            assert not text.endswith("\n\n"), file
            assert "\r" not in text
            if not file.endswith(".toml"):
                assert all(line.strip() for line in text.splitlines()), file


@pytest.mark.parametrize("name", LAYOUTS)
def test_names_are_digits_and_no_media_folder_holds_what_a_reader_takes_for_media(exported, name):
    media = exported / name / LAYOUTS[name].media
    assert sorted(p.name for p in media.iterdir() if p.suffix != ".txt") == NAMES


def test_clips_are_cut_and_whole_videos_of_another_kind_are_made_mp4(exported):
    lengths = []
    for name in NAMES:
        with av.open(str(exported / "cogvideox" / "videos" / name)) as container:
            assert "mp4" in container.format.name
            frames = list(container.decode(video=0))
            lengths.append((len(frames), frames[0].time, frames[-1].width))
    whole = lengths[1][0]
    assert lengths == [(lengths[0][0], 0.0, 112), (whole, 0.0, 112), (8, 0.0, 112)]
    assert lengths[0][0] >= 8


def test_what_is_cut_shows_the_frames_of_its_span(cache, exported):
    with Catalog(cache / "catalog.sqlite") as catalog:
        source = next(v["path"] for v in catalog.files.videos() if v["path"].endswith(".mp4"))
    with av.open(source) as container:
        wanted = [f for f in container.decode(video=0) if 0.5 <= f.time < 1.5]
    with av.open(str(exported / "cogvideox" / "videos" / NAMES[2])) as container:
        found = list(container.decode(video=0))
    for before, after in zip(wanted, found, strict=True):
        difference = before.to_ndarray(format="rgb24").astype(int) - after.to_ndarray(
            format="rgb24"
        )
        assert abs(difference).mean() < 3
        assert after.time == pytest.approx(before.time - 0.5, abs=1e-3)


def test_cogvideox_pairs_lines_as_its_loader_does(exported):
    root = exported / "cogvideox"
    lines = {}
    for name in ("prompts.txt", "videos.txt"):  # as diffusers' train_cogvideox_lora.py reads them
        with (root / name).open(encoding="utf-8") as file:
            lines[name] = [line.strip() for line in file if len(line.strip()) > 0]
        assert len((root / name).read_text(encoding="utf-8").splitlines()) == 3
    assert lines["prompts.txt"] == CAPTIONS
    assert all((root / line).is_file() for line in lines["videos.txt"])
    assert lines["videos.txt"] == [f"videos/{name}" for name in NAMES]


def test_finetrainers_finds_pairs_at_the_root_that_its_config_names(exported):
    (dataset,) = json.loads((exported / "finetrainers" / "training.json").read_text())["datasets"]
    root = Path(dataset["data_root"])
    assert root.is_absolute()
    names = {path.name for path in root.iterdir()}
    # Any of these would make it read the folder in another way.
    assert not names & {"metadata.json", "metadata.jsonl", "metadata.csv"}
    assert not any(name.endswith((".tar", ".parquet")) for name in tree(root))
    assert not names & {f"{n}.txt" for n in ("caption", "captions", "prompt", "prompts", "videos")}
    texts = [(root / name).with_suffix(".txt").read_text(encoding="utf-8") for name in NAMES]
    assert [text.strip() for text in texts] == CAPTIONS
    assert dataset["dataset_type"] == "video"


def test_musubi_config_is_of_its_strict_schema_and_every_video_has_its_caption(exported):
    config = tomllib.loads((exported / "musubi" / "dataset.toml").read_text())
    general = {"resolution", "caption_extension", "batch_size", "enable_bucket"}
    per_set = {"video_directory", "cache_directory", "target_frames", "frame_extraction"}
    (dataset,) = config["datasets"]
    assert {*config["general"]} <= general | {"bucket_no_upscale"}
    assert {*dataset} <= per_set | {"num_repeats"}
    assert config["general"]["caption_extension"] == ".txt"
    assert all((frames - 1) % 4 == 0 for frames in dataset["target_frames"])
    folder = Path(dataset["video_directory"])
    assert Path(dataset["cache_directory"]) != folder
    texts = [(folder / name).with_suffix(".txt").read_text(encoding="utf-8") for name in NAMES]
    assert [text.strip() for text in texts] == CAPTIONS


def test_diffusion_pipe_finds_captions_and_no_captions_json(exported):
    config = tomllib.loads((exported / "diffusion-pipe" / "dataset.toml").read_text())
    assert {"min_ar", "max_ar", "num_ar_buckets"} <= {*config}
    folder = Path(config["directory"][0]["path"])
    assert {path.suffix for path in folder.glob("*")} == {".mp4", ".txt"}
    texts = [(folder / name).with_suffix(".txt").read_text(encoding="utf-8") for name in NAMES]
    assert [text.strip() for text in texts] == CAPTIONS


def test_datasets_loads_the_videofolder_with_all_captions(exported, tmp_path):
    import datasets

    rows = datasets.load_dataset(
        "videofolder",
        data_dir=str(exported / "videofolder"),
        split="train",
        cache_dir=str(tmp_path / "hf"),
    )
    rows = rows.cast_column("video", datasets.Video(decode=False))
    assert rows["text"] == CAPTIONS
    assert [Path(row["path"]).name for row in rows["video"]] == NAMES
    assert rows["num_frames"][2] == 8
    assert rows["source_path"][0].endswith("b.mkv")


# webdataset leaves the closing of its files to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_samples_in_order(exported):
    import webdataset

    path = str(exported / "webdataset" / "00000.tar")
    samples = list(webdataset.WebDataset(path, shardshuffle=False, empty_check=False).decode())
    assert [sample["txt"] for sample in samples] == CAPTIONS
    assert [sample["json"]["num_frames"] for sample in samples][2] == 8
    with av.open(io.BytesIO(samples[2]["mp4"])) as container:
        assert len(list(container.decode(video=0))) == 8
    gc.collect()


def test_datasets_reads_the_shards_too(exported, tmp_path):
    import datasets

    rows = datasets.load_dataset(
        "webdataset",
        data_dir=str(exported / "webdataset"),
        split="train",
        cache_dir=str(tmp_path / "hf"),
    )
    assert [row["txt"] for row in rows.remove_columns("mp4")] == CAPTIONS


def test_shards_hold_a_thousand_samples_and_nothing_lies_beside_them(exported):
    assert sorted(tree(exported / "webdataset")) == [MARK, "00000.tar"]
    with tarfile.open(exported / "webdataset" / "00000.tar") as tar:
        members = tar.getmembers()
    fields = ("mp4", "txt", "json")
    assert [m.name for m in members] == [f"{n:08}.{field}" for n in range(3) for field in fields]
    assert {(m.mtime, m.uid, m.uname) for m in members} == {(0, 0, "")}


def test_more_samples_go_into_the_next_shard(cache, tmp_path, monkeypatch):
    monkeypatch.setattr("cogcache.export.webdataset.PER_TAR", 2)
    export(cache / "catalog.sqlite", tmp_path / "o", "webdataset", Selection(), Options())
    with tarfile.open(tmp_path / "o" / "00001.tar") as tar:
        assert tar.getnames()[0] == "00000002.mp4"


def test_several_captions_of_a_clip_are_refused_with_the_filters_to_choose(tmp_path):
    cache = make_cache(tmp_path)
    with Catalog(cache / "catalog.sqlite") as catalog:
        video = Path(catalog.captions.rows()[0]["video"])
        add_caption(catalog, video, 0.0, None, "Another.", prompt_name="short")
        with pytest.raises(ConfigError, match="--prompt-name short --model tiny"):
            export(catalog.path, tmp_path / "o", "musubi", Selection(), Options())
        chosen = Selection(prompts=("short",))
        assert export(catalog.path, tmp_path / "o", "musubi", chosen, Options()).captions == 1


def test_links_lead_to_whole_videos(cache, tmp_path):
    options = Options(media="link")
    export(cache / "catalog.sqlite", tmp_path / "o", "cogvideox", Selection(), options)
    links = [(tmp_path / "o" / "videos" / name).is_symlink() for name in NAMES]
    assert links == [False, True, False]
    assert (tmp_path / "o" / "videos" / NAMES[1]).read_bytes()


def test_a_missing_video_is_left_out_of_all_files_and_told(tmp_path):
    cache = make_cache(tmp_path)
    (tmp_path / "films" / "test set" / "b.mkv").unlink()
    out = tmp_path / "o"
    done = export(cache / "catalog.sqlite", out, "cogvideox", Selection(), Options())
    assert [(Path(one.video).name, done.captions) for one in done.absent] == [("b.mkv", 2)]
    assert (out / "prompts.txt").read_text(encoding="utf-8").splitlines() == CAPTIONS[1:]
    assert (out / "videos.txt").read_text().splitlines() == [
        f"videos/{name}" for name in NAMES[:-1]
    ]


def test_a_damaged_video_is_left_out(tmp_path):
    cache = make_cache(tmp_path)
    bad = tmp_path / "films" / "a.mkv"
    bad.write_bytes(b"no video at all")
    with Catalog(cache / "catalog.sqlite") as catalog:
        video = {**catalog.files.videos()[0], "path": str(bad), "size_bytes": 15}
        video["digest"] = file_digest(bad)
        catalog.files.add_videos([video])
        add_caption(catalog, bad, 0.0, None, "Nothing.")
    done = export(cache / "catalog.sqlite", tmp_path / "o", "musubi", Selection(), Options())
    assert "no video that can be opened" in done.left_out[0][1]
    assert not (tmp_path / "o" / "videos" / NAMES[0]).exists()


def test_captions_longer_than_the_encoder_reads_are_counted(tmp_path):
    cache = make_cache(tmp_path)
    with Catalog(cache / "catalog.sqlite") as catalog:
        video = Path(catalog.captions.rows()[0]["video"])
        add_caption(catalog, video, 1.0, 1.5, "word " * 200)
    done = export(cache / "catalog.sqlite", tmp_path / "o", "cogvideox", Selection(), Options())
    assert "1 captions have more than 150 words: the trainer may cut them" in done.notes
