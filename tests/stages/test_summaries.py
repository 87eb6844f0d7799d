"""One caption of a whole video from those of its clips: when it can be made, and from what."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scenes import catalog_of, settings
from videos import write_video

from cogcache.catalog.catalog import Catalog
from cogcache.catalog.rows import Failure
from cogcache.catalog.search.selection import Selection
from cogcache.errors import ConfigError, VideoError
from cogcache.export.items import select_items
from cogcache.export.wording import Wording
from cogcache.generation.batches import generate
from cogcache.models.checkpoints.checkpoint import Checkpoint
from cogcache.models.halves.identity import identify
from cogcache.models.halves.load import WholeModel, load_half, load_whole
from cogcache.models.registry import family_of
from cogcache.settings.settings import Settings
from cogcache.settings.stage_two import Generation
from cogcache.stages.caption import caption
from cogcache.stages.captioning.results import Made
from cogcache.stages.captioning.stage_two import StageTwo
from cogcache.stages.captioning.summaries import list_all
from cogcache.stages.captioning.tasks import CaptionList, Task
from cogcache.stages.clips.worklist import Clip, Wanted, clip_row
from cogcache.stages.extract import extract
from cogcache.video.cutting import Span
from cogcache.web.gallery import write_gallery

DIGEST = "d" * 64
VIDEO = Path("/videos/long.mp4")
SEGMENT_S = 10.0


class Desk:
    """A catalog with one video of given length, cut into clips that nobody has encoded."""

    def __init__(self, folder: Path) -> None:
        self.catalog = Catalog(folder / "catalog.sqlite")
        self.family = family_of(Checkpoint.open("tiny"))
        self.identity = identify(self.family, "language", self.catalog.files)
        self.vision = identify(self.family, "vision", self.catalog.files)

    def settings(self, **options: object) -> Settings:
        return settings(summarize=True, **{"segment_s": SEGMENT_S, **options})

    def add_clips(
        self, count: int, *, but: tuple[int, ...] = (), step_s: float = SEGMENT_S
    ) -> None:
        """Add clips as `extract` does; the last has no end."""
        video = {
            "digest": DIGEST, "path": str(VIDEO), "duration_s": count * step_s, "fps": 1.0,
            "width": 8, "height": 8, "total_num_frames": 99, "codec": "h264", "size_bytes": 1,
        }  # fmt: skip
        self.catalog.files.add_videos([video])
        wanted = Wanted(self.settings(), self.family, self.vision)
        ends = [*(step_s * n for n in range(1, count)), None]
        for number, end_s in enumerate(ends):
            if number not in but:
                clip = Clip(VIDEO, wanted.key(DIGEST, (number * step_s, end_s)))
                self.catalog.clips.add([clip_row(clip, "tiny", self.run)])

    @property
    def run(self) -> int:
        return self.catalog.runs.start("extract", "tiny", {})

    def list(self, spans: tuple[Span, ...] = (), **options: object) -> CaptionList:
        made = self.settings(**options)
        return list_all(StageTwo(made, self.family, self.identity), self.catalog, None, spans)

    def say(self, tasks: list[Task], text: str = "", **made: object) -> None:
        """Make captions as the language half would; the text is the clip's begin if none."""
        rows = []
        for task in tasks:
            said = text or f"Scene at {task.clip['start_s']:g}."
            facts = {"num_tokens": 3, "seconds": 0.1, "flags": (), **made}
            rows.append(Made(task, said, **facts).row(self.settings(), self.run))
        self.catalog.captions.add(rows)


@pytest.fixture
def desk(tmp_path):
    made = Desk(tmp_path)
    yield made
    made.catalog.close()


def names(found: CaptionList) -> list[str]:
    return [task.prompt_name for task in found.missing]


# When


def test_a_summary_waits_for_the_captions_of_all_clips(desk):
    desk.add_clips(3)
    found = desk.list()
    assert (names(found), found.num_waiting) == (["default"] * 3, 1)
    desk.say(found.missing[:2])
    assert desk.list().num_waiting == 1
    desk.say(found.missing)
    assert names(desk.list()) == ["summary"]


def test_a_summary_that_is_there_is_not_made_again(desk):
    desk.add_clips(3)
    desk.say(desk.list().missing)
    desk.say(desk.list().missing, "All of it.")
    found = desk.list()
    assert (found.missing, found.num_cached, found.num_waiting) == ([], 4, 0)


def test_other_captions_or_another_question_make_another_summary(desk):
    desk.add_clips(3)
    desk.say(desk.list().missing)
    desk.say(desk.list().missing, "All of it.")
    assert names(desk.list(summary_prompt="Why? {captions}")) == ["summary"]
    desk.say(desk.list(prompts={"default": "What else?"}).missing)
    assert names(desk.list(prompts={"default": "What else?"})) == ["summary"]


def test_a_video_that_is_one_clip_needs_no_summary(desk):
    desk.add_clips(1)
    desk.say(desk.list().missing)
    assert desk.list().missing == []


def test_no_summary_is_made_while_stage_one_still_adds_clips(desk):
    desk.add_clips(4, but=(2,))
    desk.say(desk.list().missing)
    found = desk.list()
    assert (found.missing, found.num_waiting) == ([], 0)


def test_a_clip_that_failed_is_left_out_and_the_summary_says_so(desk):
    desk.add_clips(4, but=(3,))
    error = VideoError("decode_failed", "it cannot be read")
    desk.catalog.failures.add(Failure((30.0, None), error, key="k").row(VIDEO))
    desk.say(desk.list().missing)
    (task,) = desk.list().missing
    assert task.gaps
    assert (task.clip["start_s"], task.clip["end_s"]) == (0.0, None)
    assert task.words.count("Scene at") == 3


def test_of_several_ways_to_cut_the_settings_say_which(desk):
    desk.add_clips(4)
    desk.add_clips(2, step_s=20.0)
    desk.say(desk.list().missing)
    (task,) = desk.list().missing
    assert task.words.count("Scene at") == 4
    ((clip, error),) = desk.list(segment_s=0).refused
    assert (clip["video"], error.reason) == (str(VIDEO), "several_cuttings")


def test_without_a_way_to_cut_the_clips_that_are_there_are_summed_up(desk):
    desk.add_clips(4, but=(3,))
    desk.say(desk.list(segment_s=0).missing)
    (task,) = desk.list(segment_s=0).missing
    assert (task.clip["start_s"], task.clip["end_s"], task.gaps) == (0.0, 30.0, False)


def test_of_clips_that_are_named_just_these_are_summed_up(desk):
    desk.add_clips(4)
    desk.say(desk.list().missing)
    (task,) = desk.list(((10.0, 20.0), (20.0, 30.0))).missing
    assert (task.clip["start_s"], task.clip["end_s"]) == (10.0, 30.0)
    assert task.words.count("Scene at") == 2


# From what


def test_the_captions_stand_in_the_prompt_with_the_videos_times(desk):
    desk.add_clips(2)
    desk.say(desk.list().missing)
    (task,) = desk.list(summary_prompt="Look: {captions} So?").missing
    assert task.words == (
        "Look: \n[0:00:00 - 0:00:10] Scene at 0.\n[0:00:10 - 0:00:20] Scene at 10.\n So?"
    )
    assert task.prompt == "Look: {captions} So?"


def test_a_mark_of_the_tokenizer_in_a_caption_is_words(desk):
    desk.add_clips(2)
    desk.say(desk.list().missing, "It ends.<|end_of_text|>")
    (task,) = desk.list().missing
    assert task.words.count("It ends.< |end_of_text|>") == 2


def test_the_captions_of_the_first_prompt_are_summed_up_unless_another_is_named(desk):
    prompts = {"one": "First?", "two": "Second?"}
    desk.add_clips(2)
    for task in desk.list(prompts=prompts).missing:
        desk.say([task], f"Of {task.prompt_name}.")
    assert desk.list(prompts=prompts).missing[0].words.count("Of one.") == 2
    assert desk.list(prompts=prompts, summary_of="two").missing[0].words.count("Of two.") == 2


def test_empty_captions_are_left_out_and_flags_are_handed_on(desk):
    desk.add_clips(3)
    empty, *others = desk.list().missing
    desk.say(others)
    desk.catalog.captions.add([Made(empty, "", 0, 0.1, ("empty",)).row(desk.settings(), desk.run)])
    (task,) = desk.list().missing
    assert task.words.count("Scene at") == 2


def test_a_video_of_which_nothing_is_said_is_refused_with_a_reason(desk):
    desk.add_clips(2)
    tasks = desk.list().missing
    rows = [Made(each, "", 0, 0.1, ("empty",)).row(desk.settings(), desk.run) for each in tasks]
    desk.catalog.captions.add(rows)
    ((_, error),) = desk.list().refused
    assert error.reason == "no_captions"


def test_a_caption_that_is_flagged_flags_the_summary(desk):
    desk.add_clips(2)
    desk.say(desk.list().missing, flags=("no_end",))
    (task,) = desk.list().missing
    assert task.from_flagged


# What does not fit is summed up in groups, and the groups' summaries again


def test_groups_are_summed_up_first_and_nothing_is_asked_twice(desk):
    desk.add_clips(24)
    small = {"summary_tokens": 120, "summary_prompt": "So? {captions}", "max_new_tokens": 8}
    desk.say(desk.list(**small).missing)
    levels, asked = [], set()
    while found := desk.list(**small).missing:
        # A run that is stopped here goes on with what is left of the level.
        desk.say(found[:1])
        rest = desk.list(**small).missing
        assert len(found) == 1 or [t.key.digest for t in rest] == [t.key.digest for t in found[1:]]
        desk.say(found[1:])
        levels.append([task.prompt_name for task in found])
        assert not asked & {task.key.digest for task in found}
        asked |= {task.key.digest for task in found}
        longest = max(desk.family.text_row(task.words, "chat").length for task in found)
        assert longest <= 120
    assert len(levels) > 2
    assert levels[-1] == ["summary"]
    assert {name for level in levels[:-1] for name in level} == {"summary-part"}
    assert [len(level) for level in levels] == sorted(map(len, levels), reverse=True)


def test_summaries_of_parts_span_their_parts(desk):
    desk.add_clips(6)
    small = {"summary_tokens": 120, "summary_prompt": "So? {captions}", "max_new_tokens": 8}
    desk.say(desk.list(**small).missing)
    spans = [(task.clip["start_s"], task.clip["end_s"]) for task in desk.list(**small).missing]
    assert spans[0][0] == 0.0
    assert spans[-1][1] is None
    assert [end for _, end in spans[:-1]] == [start for start, _ in spans[1:]]


# Settings


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"summary_prompt": "Sum it up."}, "must hold {captions} once"),
        ({"summary_of": "absent"}, "summary_of names no prompt: 'absent'"),
        ({"prompts": {"summary": "What?"}}, "give that prompt another name"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, said):
    with pytest.raises(ConfigError, match=said.replace("{", r"\{")):
        settings(summarize=True, **options)


# With the model


def test_words_alone_give_the_tokens_of_the_whole_model():
    family = family_of(Checkpoint.open("tiny"))
    whole = WholeModel.of(family.checkpoint)
    language = load_half(whole, "language", dtype=torch.float32).model
    monolith = load_whole(whole, dtype=torch.float32)
    rows = [family.text_row(text, "chat") for text in ("What?", "Two circles, then one. So?")]
    rule = Generation(max_new_tokens=12)
    told = [generate(model, family, rows, rule) for model in (language, monolith)]
    assert told[0] == told[1]
    alone = [generate(language, family, [row], rule)[0] for row in rows]
    assert told[0] == alone


@pytest.fixture(scope="module")
def summed_up(tmp_path_factory):
    """Return a cache of two videos with the same bytes that went through both stages, and runs."""
    folder = tmp_path_factory.mktemp("summed up")
    write_video(folder / "a.mp4", num_frames=120)
    (folder / "b.mp4").write_bytes((folder / "a.mp4").read_bytes())
    made = settings(segment_s=4.0, max_frames=4, summarize=True, max_new_tokens=16)
    extract([folder], folder / "cache", made)
    return folder / "cache", [caption(folder / "cache", made) for _ in range(2)]


def test_a_run_makes_the_captions_and_then_the_summary(summed_up):
    first, second = summed_up[1]
    assert (first.counts.done, first.counts.failed) == (4, 0)
    assert (second.counts.done, second.counts.cached, second.counts.found) == (0, 4, 4)


def test_a_summary_is_a_caption_of_the_whole_of_each_file(summed_up):
    with catalog_of(summed_up[0]) as catalog:
        rows = catalog.captions.rows(prompt_name="summary")
        (length_s,) = {row["duration_s"] for row in catalog.files.videos()}
    assert [Path(row["video"]).name for row in rows] == ["a.mp4", "b.mp4"]
    assert {(row["start_s"], row["end_s"]) for row in rows} == {(0.0, None)}
    path, selection = summed_up[0] / "catalog.sqlite", Selection(prompts=("summary",))
    (item,) = select_items(path, selection, Wording()).items
    assert item.end_s == length_s
    longer = replace(selection, min_duration_s=length_s - 1)
    assert len(select_items(path, longer, Wording()).items) == 1


def test_a_summary_has_the_picture_of_the_videos_first_clip(summed_up, tmp_path):
    chosen = Selection(prompts=("summary",))
    assert write_gallery(summed_up[0], tmp_path / "page.html", chosen).clips == 1
    assert "data:image/jpeg" in (tmp_path / "page.html").read_text()
