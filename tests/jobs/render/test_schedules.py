"""`render --schedule current`: resolved once, and then the job's; what is refused."""

import pytest

from cluster.results.registry import Succession, setting_of
from cluster.store import open_store
from cluster.work import plan
from jobs._shared import cli as _cli
from jobs.refresh import __main__ as refresh
from jobs.render import __main__ as render
from jobs.render.workflow import Prepared, prepare
from meancache import Schedule
from tests.support.configs import configured

STEPS = 8


@pytest.fixture
def refused(capsys, monkeypatch):
    """Runs a job that must be refused; returns what it said."""

    def run(main, *arguments: str) -> str:
        monkeypatch.setattr(
            "cluster.fleet.connection.connect", lambda *_: pytest.fail("a rank was asked for")
        )
        assert main(list(arguments)) == _cli.EXIT_REFUSED
        (said,) = capsys.readouterr().err.strip().splitlines()
        return said

    return run


@pytest.fixture
def succession(tmp_path, model) -> Succession:
    setting = setting_of(model, {**model.defaults, "num_inference_steps": STEPS})
    return Succession(open_store(str(tmp_path / "registry")), {**setting, "budget": 2})


@pytest.fixture
def schedules(model) -> list[Schedule]:
    return [
        Schedule.from_edges(
            model.grid(STEPS).sigmas,
            [{"start": 0, "stop": step, "span": 1}, {"start": step, "stop": STEPS, "span": 1}],
        )
        for step in (3, 4)
    ]


@pytest.fixture
def command(tmp_path, prompts) -> list[str]:
    flags = ["--model", "tiny", "--prompts", prompts, "--steps", str(STEPS)]
    registry = ["--schedule", "current", "--registry", str(tmp_path / "registry")]
    return [*flags, *registry, "--output", str(tmp_path / "out")]


def prepared(command: list[str]) -> Prepared:
    return prepare(configured("render", command))


def test_a_job_keeps_the_schedule_it_began_with_and_the_next_takes_the_new_one(
    succession, schedules, command, tmp_path
):
    first = succession.promote(schedules[0], {}, None)
    begun = prepared(command)
    assert begun.schedule == schedules[0]
    assert {item.id for item in begun.items} == {
        item.id for item in prepared([*command, "--budget", "2"]).items
    }
    plan.freeze(begun.store, begun.spec)
    succession.promote(schedules[1], {}, first)
    assert prepared(command).schedule == schedules[0]
    assert prepared(command).spec == begun.spec
    elsewhere = [*command[:-1], str(tmp_path / "another")]
    assert prepared(elsewhere).schedule == schedules[1]


def test_a_job_that_renders_every_step_is_not_taken_over(succession, schedules, command, refused):
    succession.promote(schedules[0], {}, None)
    flags = [*command[:6], *command[-2:]]
    full = prepared(flags)
    plan.freeze(full.store, full.spec)
    said = refused(render.main, *command)
    assert "belongs to another job" in said
    assert "schedule" in said


def test_audits_are_counted_among_the_forwards(succession, schedules, command, capsys):
    succession.promote(schedules[0], {}, None)
    assert render.main([*command, "--dry-run"]) == 0
    assert "3 videos to do (6 forwards)" in capsys.readouterr().out
    assert render.main([*command, "--dry-run", "--audit", "1.0"]) == 0
    assert f"3 videos to do ({3 * (2 + STEPS)} forwards)" in capsys.readouterr().out


def test_an_audit_needs_something_to_compare(command, refused):
    said = refused(render.main, *command[:6], *command[-2:], "--audit", "0.5")
    assert "without a schedule every video is one" in said


@pytest.mark.parametrize("left_out", ["--schedule", "--registry"])
def test_current_and_registry_go_together(command, refused, left_out):
    place = command.index(left_out)
    said = refused(render.main, *command[:place], *command[place + 2 :])
    assert "go together" in said


def test_a_key_that_does_not_match_names_the_field_and_the_nearest_key(
    succession, schedules, command, refused
):
    succession.promote(schedules[0], {}, None)
    said = refused(render.main, *command, "--guidance-scale", "3")
    assert "guidance_scale is 6.0 there and 3.0 here" in said
    assert succession.folder.split("/")[1] in said


class TestRefresh:
    """What jobs.refresh refuses before any rank starts."""

    @pytest.fixture
    def flags(self, tmp_path) -> list[str]:
        root = str(tmp_path / "refresh")
        return ["--model", "tiny", "--steps", "8", "--budgets", "2", "--output", root]

    def test_prompts_are_needed_unless_for_a_rollback(self, flags, prompts, refused):
        assert "--prompts P says what to calibrate on" in refused(refresh.main, *flags)
        said = refused(refresh.main, *flags, "--rollback", "--prompts", prompts)
        assert "leave --prompts out" in said

    def test_there_must_be_something_to_roll_back_to(self, flags, refused):
        said = refused(refresh.main, *flags, "--rollback")
        assert "nothing was promoted" in said

    def test_too_few_prompts(self, flags, tmp_path, refused):
        file = tmp_path / "two.txt"
        file.write_text("a\nb\n")
        assert "too few" in refused(refresh.main, *flags, "--prompts", str(file))
        alone = tmp_path / "one.txt"
        alone.write_text("c\n")
        more = ["--prompts", str(file), "--held-out", str(alone)]
        assert "1 held-out pair has no spread" in refused(refresh.main, *flags, *more)

    def test_a_budget_beyond_the_steps(self, flags, prompts, refused):
        said = refused(refresh.main, *flags, "--prompts", prompts, "--budgets", "2,9")
        assert "budget 9 must be between 1 and the 8 steps" in said

    def test_audits_of_what_is_no_render_root(self, flags, prompts, tmp_path, refused):
        more = ["--prompts", prompts, "--audits", str(tmp_path)]
        assert "give the --output of a jobs.render" in refused(refresh.main, *flags, *more)

    def test_a_dry_run_says_what_a_run_takes_and_leaves_nothing(
        self, flags, prompts, tmp_path, capsys
    ):
        more = ["--prompts", prompts, "--dry-run", "--night", "2026-02-03"]
        assert refresh.main([*flags, *more]) == 0
        said = capsys.readouterr().out
        # Of three prompts two are held out.
        assert "the run of 2026-02-03: 1 trajectory to run, 0 already done" in said
        assert "at most 67 forwards, 32 of them to fit" in said
        assert not [path for path in (tmp_path / "refresh").rglob("*") if path.is_file()]

    def test_help_teaches_with_an_example(self, capsys):
        with pytest.raises(SystemExit):
            refresh.main(["--help"])
        assert "example:\n  python -m jobs.refresh --model tiny" in capsys.readouterr().out
