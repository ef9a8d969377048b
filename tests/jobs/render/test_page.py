"""A render job's page, of 100,000 rows and of few, read as a person reads it."""

import hashlib
import io
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.media import image, video
from cluster.results import manifest
from cluster.results.attempts import Attempts
from cluster.results.manifest import Manifest, Success
from cluster.store import Store, open_store
from cluster.work.plan import SHARD_SIZE, SPEC_KEY, plan_items, specification
from cluster.work.prompts import Prompt
from jobs.render import page as render_page
from jobs.render.config import REPORT_KEY
from jobs.render.gallery import SAMPLES
from jobs.render.page import plain
from jobs.render.schedules import SHIPPED
from meancache import Schedule
from meancache.json_values import canonical_json
from meancache.tiny.captions import HELD_OUT
from tests.support.browser import needs_browser, views
from tests.support.manifest_rows import finish, row_of

EVIL = "</bdi><script>document.title = 'owned'</script> a red \x00 circle\n\u202e & \"square\""
START = datetime(2026, 1, 31, 22, tzinfo=UTC)
MANY = 100_000


def moving(hue: int, height: int = 64, width: int = 64, frames: int = 9) -> np.ndarray:
    """A coloured disc that crosses the picture."""
    y, x = np.mgrid[:height, :width]
    video_frames = np.full((frames, height, width, 3), 28 if hue % 2 else 235, np.uint8)
    for number, frame in enumerate(video_frames):
        centre = width * (0.25 + 0.5 * number / max(1, frames - 1))
        disc = (x - centre) ** 2 + (y - height / 2) ** 2 < (height / 5) ** 2
        frame[disc] = np.roll([220, 60 + 20 * hue % 160, 40], hue)
    return video_frames


def many(store: Store, model, rows: int, failed: int = 30) -> None:
    """A finished root of so many rows, as a large job leaves it, in fewer parts and no receipts."""
    schedule = Schedule.load(SHIPPED / "tiny" / "fitted-b10.json")
    store.put_new(
        SPEC_KEY, canonical_json(specification("render", [], model, model.defaults, schedule))
    )
    videos = [video.encode(moving(hue), 8) for hue in range(8)]
    prompts = [Prompt(line, "", f"id-{line}") for line in range(SHARD_SIZE)]
    (shard, job) = plan_items(prompts, model, model.defaults), Manifest(store)
    noise = np.random.default_rng(0)
    base = []
    for item in shard:
        prompt = (
            f"{HELD_OUT[item.index % len(HELD_OUT)].text} {EVIL if item.index % 5 == 0 else ''}"
        )
        times = {
            "render_s": 1.1 + noise.gamma(2, 0.1),
            "encode_s": 0.03 + noise.gamma(2, 0.002),
            "upload_s": 0.01 + noise.gamma(1, 0.02),
        }
        metrics = {
            "text_s": 0.05,
            "denoise_s": 0.9 * times["render_s"],
            "decode_s": 0.07,
            "gang_s": 1.2 * times["render_s"],
            "ideal_s": 0.9 * times["render_s"],
            "ssim": float(noise.choice([0.75, 1.0])),
        }
        of_row = row_of(item, job, data=videos[item.index % 8], nfe=10, **times, metrics=metrics)
        of_row |= {"attempts": 1 + (item.index % 50 == 3), "prompt": prompt}
        base.append(of_row)
    table = pa.concat_tables([manifest.read_table(manifest.to_parquet(base))] * 20)
    parts = []
    for first in range(0, rows, len(table)):
        part = table.slice(0, min(len(table), rows - first))
        rush = 1 + 0.6 * np.sin(first / rows * 20)
        ready = [START + timedelta(seconds=0.05 * (first + n * rush)) for n in range(len(part))]
        ids = pa.array([f"{first + n:032x}" for n in range(len(part))])
        part = part.set_column(0, part.field("item_id"), ids)
        field = part.field("created_at")
        place = part.schema.get_field_index(field.name)
        part = part.set_column(place, field, pa.array(ready, field.type))
        sink = io.BytesIO()
        pq.write_table(part, sink)
        key = job.part_key(first // SHARD_SIZE)
        store.put_new(key, sink.getvalue())
        parts.append((key, hashlib.sha256(sink.getvalue()).hexdigest()))
    reasons = ["rank 1 died with exit code -9", f"rank 0 failed: ValueError: {EVIL}"]
    lost = [row_of(item, job, "failed", error=reasons[item.index % 2]) for item in shard[:failed]]
    failures = []
    if lost:
        store.put_new(job.failures_key(0), manifest.to_parquet(lost))
        data = store.get(job.failures_key(0))
        failures = [(job.failures_key(0), hashlib.sha256(data).hexdigest())]
    for item in shard[: failed + 10]:
        Attempts(job.store).record(item, "rank 0 did not answer within 60 s")
    success = Success(rows, len(lost), tuple(parts), tuple(failures))
    store.put_new(job.success_key, success.to_json())


@pytest.fixture(scope="module")
def large(model, tmp_path_factory) -> Store:
    """A finished root of 100,000 rows with its page."""
    store = open_store(str(tmp_path_factory.mktemp("large") / "it's large"))
    many(store, model, MANY)
    render_page.write_page(store)
    return store


@pytest.fixture
def small(model, tmp_path) -> Store:
    """A finished root of three rows, the second of which failed; without a page."""
    prompts = [Prompt(line, f"prompt {line}", f"id-{line}") for line in range(3)]
    items, store = plan_items(prompts, model, model.defaults), open_store(str(tmp_path))
    spec = specification("render", items, model, model.defaults)
    store.put_new(SPEC_KEY, canonical_json(spec))
    finish(Manifest(store), items, failed={1})
    return store


def page_of(store: Store) -> str:
    render_page.write_page(store)
    return store.get(REPORT_KEY).decode()


def test_the_page_of_100000_rows_says_what_became_of_them(large):
    page = large.get(REPORT_KEY).decode()
    assert "100,000 videos" in page
    assert "30 failed" in page
    assert page.count('<figure class="shot') == SAMPLES
    for text in (
        "2,000 videos came at attempt 2",
        "rank 1 died with exit code -9",
        "rank 0 did not answer within 60 s",
        "10 forwards for 50 steps",
        "<td>denoise</td>",
        "<td>ssim</td><td>100,000</td>",
    ):
        assert text in page
    assert "python -m jobs.replay &#39;" in page  # the root's quote is quoted, for shell and page
    assert page.count('<i class="on">') == 10
    assert len(page) < 3_000_000


def test_no_text_of_a_prompt_or_an_error_becomes_markup(large):
    page = large.get(REPORT_KEY).decode()
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not {"\x00", "\u202e"} & set(page)


def test_the_same_root_gives_the_same_page(large):
    assert large.get(REPORT_KEY).decode() == page_of(large)


def test_stages_are_summed_over_all_rows(large):
    page = large.get(REPORT_KEY).decode()
    told = re.findall(r"<tr[^>]*><td>(\w+)</td>(?:<td>[^<]*</td>\s*){3}<td>([\d.]+)%", page)
    shares = {name: float(share) for name, share in told}
    whole = sum(shares[name] for name in ("render", "encode", "upload"))
    assert whole == pytest.approx(100, abs=0.2)
    assert shares["denoise"] == pytest.approx(0.9 * shares["render"], abs=0.2)
    assert not {"gang", "ideal"} & set(shares)  # waiting is no stage of a video
    assert "<b>75%</b><span>goodput" in page


def test_a_card_leads_to_its_video_and_names_its_row(small):
    page = page_of(small)
    for key in small.list(manifest.PARTS):
        for row in manifest.read_part(small, key):
            assert f">{row['prompt_id']}<" in page
            assert row["prompt"] in page
    assert "id-1: prompt 1" in page  # the one that failed
    assert f"python -m jobs.replay {small.uri('x')[:-2]} " in page
    assert "ITEM_ID" not in page


def test_less_than_a_minute_has_no_rate_and_no_chart(large, small):
    assert 'class="bars"' in large.get(REPORT_KEY).decode()
    page = page_of(small)
    assert 'class="bars"' not in page
    assert " an hour" not in page


def test_what_an_audit_found_worst_comes_first(model, tmp_path):
    prompts = [Prompt(line, f"prompt {line}", f"id-{line}") for line in range(40)]
    items, store = plan_items(prompts, model, model.defaults), open_store(str(tmp_path))
    spec = specification("render", items, model, model.defaults)
    store.put_new(SPEC_KEY, canonical_json(spec))
    job, audited = Manifest(store), {7: 31.0, 20: 22.0, 33: 40.0}
    data = video.encode(moving(1), 8)
    for item in items:
        metrics = {"psnr": audited[item.index]} if item.index in audited else {}
        job.commit(row_of(item, job, "ok", data, metrics=metrics))
    job.close_shard(0, items)
    job.finish([0])
    page = page_of(store)
    shown = re.findall(r"<b>(id-\d+)</b>", page)
    assert shown[:3] == ["id-20", "id-7", "id-33"]
    assert len(shown) == len(set(shown)) > SAMPLES - 4
    assert page.count('<a href="videos/') == len(shown)
    assert "The 3 worst that were audited, and" in " ".join(page.split())
    assert "22.0 dB" in page
    assert "<td>psnr, dB</td>" in page


def test_a_video_that_is_gone_or_damaged_leaves_the_page_whole(small):
    first, *_ = small.list("videos/")  # they are no videos at all, and the other one is missing:
    small.delete(first)
    page = page_of(small)
    assert page.count("missing or damaged") == 2
    assert '2 videos, <span class="bad">1 failed' in page
    assert "every step ran the transformer" in page


def test_a_job_without_a_video_has_a_page(model, tmp_path):
    store = open_store(str(tmp_path))
    items = plan_items([Prompt(1, "a", "a")], model, model.defaults)
    store.put_new(SPEC_KEY, canonical_json(specification("render", items, model, model.defaults)))
    finish(Manifest(store), items, failed={0})
    page = page_of(store)
    assert "0 videos" in page
    assert "rank 1 died" in page


def test_pictures_are_shown_as_pictures(model, tmp_path):
    store = open_store(str(tmp_path))
    items = plan_items([Prompt(1, "a", "a")], model, model.defaults)
    spec = specification("render", items, model, model.defaults)
    store.put_new(SPEC_KEY, canonical_json(spec | {"model": {**spec["model"], "fps": 0}}))
    job, data = Manifest(store), image.encode(moving(1, frames=1))
    job.commit(row_of(items[0], job, "ok", data, "png", fps=0.0, num_frames=1))
    job.close_shard(0, items)
    job.finish([0])
    page = page_of(store)
    assert ">1 picture<" in page
    assert "data:image/webp" in page
    assert "missing or damaged" not in page


def test_a_job_that_has_not_finished_has_none(tmp_path):
    with pytest.raises(Exception, match="finish the job first"):
        render_page.write_page(open_store(str(tmp_path)))


def test_text_of_any_origin_becomes_one_short_line():
    assert plain("a\nb\x00c\u202ed") == "a b c d"
    assert plain("é ✓ 猫") == "é ✓ 猫"
    assert len(plain("x" * 10**6)) < 300


@needs_browser
def test_a_real_browser_opens_it_in_3_s_on_phone_and_desktop_in_light_and_dark(large):
    for view in views(Path(large.uri(REPORT_KEY)).as_uri(), timeout_s=3.0):
        assert view.title() == "MeanCache: 100,000 videos"
        pictures = view.locator(".shot img")
        assert pictures.count() == SAMPLES
        assert pictures.evaluate_all("all => all.every(one => one.complete && one.naturalWidth)")
        assert view.locator("text=<script>document.title").count() > 0
        heights = view.locator(".bars i").evaluate_all("all => all.map(one => one.offsetHeight)")
        assert max(heights) > 60
        assert len(set(heights)) > 3
