"""A cluster that does not answer is named at once."""

import socket

import pytest
import ray

from cluster.fleet import connection


@pytest.fixture
def refusing() -> str:
    """An address of this machine where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def no_cluster(monkeypatch):
    """This process has no cluster, and may start none."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: pytest.fail("joined"))


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nobody_listens_is_named(monkeypatch, no_cluster, refusing, scheme):
    monkeypatch.setenv("RAY_ADDRESS", scheme + refusing)
    with pytest.raises(ConnectionError, match=rf"{scheme}{refusing} \(of RAY_ADDRESS\)"):
        connection.connect()


@pytest.mark.parametrize("address", ["head", "head:port", "10.0.0.1:", ":6379"])
def test_an_address_that_is_none_is_refused_with_the_rule(monkeypatch, no_cluster, address):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ConnectionError, match=f"'{address}' must be HOST:PORT"):
        connection.connect()


@pytest.mark.parametrize("given", ["", "auto"])
def test_a_cluster_that_crashed_here_is_told_how_to_forget(
    monkeypatch, no_cluster, refusing, given
):
    monkeypatch.setenv("RAY_ADDRESS", given)
    monkeypatch.setattr(connection, "find_bootstrap_address", lambda _: refusing)
    with pytest.raises(ConnectionError, match=r"`ray stop` forgets it"):
        connection.connect()


@pytest.mark.parametrize("given", ["", "local"])
def test_where_there_is_none_one_is_started(monkeypatch, given):
    started = []
    monkeypatch.setenv("RAY_ADDRESS", given)
    monkeypatch.setattr(connection, "find_bootstrap_address", lambda _: None)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: started.append(1))
    connection.connect()
    assert started == [1]
