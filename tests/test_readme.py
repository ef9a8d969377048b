"""The README's commands for many prompts, word for word, with a few of them."""

import re

import pytest

from tests.support.commands import run
from tests.support.pages import readme

FEW = 3


@pytest.mark.timeout(1000)  # two cores may be at work on something else meanwhile
@pytest.mark.usefixtures("shared_cluster", "bucket")
def test_the_commands_for_many_prompts_run_one_after_the_other(tmp_path):
    for command in [*readme("")[:2], *readme("few")]:  # the first two make prompts.txt
        run(command, tmp_path)
        if written := re.search(r"> ([\w-]+\.txt)$", command):
            prompts = tmp_path / written[1]
            prompts.write_text("\n".join(prompts.read_text().splitlines()[:FEW]))
