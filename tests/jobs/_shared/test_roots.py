"""Where a page is, for whoever wants to look at it."""

import pytest

from cluster.store import open_store
from jobs._shared.roots import to_look_at


def test_a_page_in_a_folder_is_a_link_that_a_browser_opens():
    assert (
        to_look_at(open_store("/tmp/a root"), "report.html") == "file:///tmp/a%20root/report.html"
    )


def test_a_page_in_a_bucket_comes_with_the_command_that_copies_it():
    said = to_look_at(open_store("s3://bucket/a root"), "report.html")
    uri = "s3://bucket/a root/report.html"
    assert said == f"{uri} (aws s3 cp '{uri}' .)"


def test_a_page_in_a_bucket_of_another_cloud_comes_with_the_command_that_fetches_it():
    pytest.importorskip("cluster.store.gs")
    pytest.importorskip("cluster.store.az")
    said = [
        to_look_at(open_store(f"{kind}://bucket/a root"), "report.html") for kind in ("gs", "az")
    ]
    uri = "gs://bucket/a root/report.html"
    assert said[0] == f"{uri} (gcloud storage cp '{uri}' .)"
    command = "az storage blob download -c bucket -n 'a root/report.html' -f report.html"
    assert said[1] == f"az://bucket/a root/report.html ({command})"
