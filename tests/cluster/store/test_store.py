"""Claims about cluster.store: the same contract on a local directory and in buckets of three kinds,
over real HTTP."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest

from cluster.store import (
    AlreadyExists,
    LocalStore,
    MissingKey,
    Store,
    StoreError,
    open_store,
    read,
)
from cluster.store.s3 import S3Store

CHILD_ENV = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


@pytest.fixture(params=["local", "s3", "gs", "az"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "root")
    remote: str = request.getfixturevalue(f"{request.param}_root")
    return remote


@pytest.fixture
def store(root: str) -> Store:
    return open_store(root)


def sentence(error: pytest.ExceptionInfo[StoreError]) -> str:
    """The message, after checking that it is one sentence without credentials."""
    text = str(error.value)
    assert "\n" not in text
    assert ": " in text, "a rule and then a fix"
    for secret in ("not-a-secret", "tester", "X-Amz-", "Traceback"):
        assert secret not in text
    return text


# The contract, on all stores -------------------------------------------------------------------


def test_put_new_says_who_created_and_refuses_other_bytes(store: Store) -> None:
    assert store.put_new("a/b.json", b"one") is True
    assert store.put_new("a/b.json", b"one") is False
    with pytest.raises(AlreadyExists) as error:
        store.put_new("a/b.json", b"two!")
    text = sentence(error)
    assert store.uri("a/b.json") in text
    assert "3 bytes" in text
    assert "4 bytes" in text
    assert store.get("a/b.json") == b"one"


def test_put_replaces(store: Store) -> None:
    store.put("report.html", b"old")
    store.put("report.html", b"new and longer")
    assert store.get("report.html") == b"new and longer"


@pytest.mark.parametrize("data", [b"", b"\x00\xff" * 10, os.urandom(3_000_000)])
def test_any_bytes_come_back(store: Store, data: bytes) -> None:
    store.put_new("new", data)
    store.put("put", data)
    assert store.get("new") == store.get("put") == data


def test_a_missing_key_is_a_key_error_and_a_store_error(store: Store) -> None:
    with pytest.raises(MissingKey) as error:
        store.get("no/such")
    assert isinstance(error.value, KeyError)
    assert isinstance(error.value, StoreError)
    assert store.uri("no/such") in sentence(error)


def test_exists_follows_the_object_and_not_the_folder(store: Store) -> None:
    assert not store.exists("a/b")
    store.put_new("a/b", b"")
    assert store.exists("a/b")
    assert not store.exists("a")
    with pytest.raises(MissingKey):
        store.get("a")


def test_delete_removes_and_forgives(store: Store) -> None:
    store.put("a/b", b"1")
    store.delete("a/b")
    store.delete("a/b")
    assert not store.exists("a/b")


def test_list_is_sorted_by_bytes_and_takes_any_prefix(store: Store) -> None:
    keys = ["a-b", "a.b", "a/b", "a/b-c", "a/é", "a/z", "a0", "b/000001/x", "b/000010/x"]
    for key in reversed(keys):
        store.put_new(key, b"")
    assert list(store.list()) == sorted(keys, key=str.encode)
    assert list(store.list("a/")) == ["a/b", "a/b-c", "a/z", "a/é"]
    assert list(store.list("a/b")) == ["a/b", "a/b-c"]
    assert list(store.list("b/00000")) == ["b/000001/x"]
    assert list(store.list("nothing/")) == []


def test_entries_tell_size_and_age_of_what_list_names(store: Store) -> None:
    before = time.time()
    for key, data in {"a/b": b"12345", "a/c": b"", "d": b"1"}.items():
        store.put(key, data)
    found = list(store.entries())
    assert [(entry.key, entry.bytes) for entry in found] == [("a/b", 5), ("a/c", 0), ("d", 1)]
    assert [entry.key for entry in store.entries("a/")] == list(store.list("a/"))
    for entry in found:  # S3 tells whole seconds, file systems the last tick of their clock
        assert before - 2 < entry.modified < time.time() + 2


def test_an_empty_root_lists_nothing(store: Store) -> None:
    assert list(store.list()) == []


def test_neighbours_of_the_root_are_not_listed(store: Store, root: str) -> None:
    open_store(root + "-2").put_new("theirs", b"")
    store.put_new("ours", b"")
    assert list(store.list()) == ["ours"]


def test_probe_accepts_and_leaves_nothing(store: Store) -> None:
    store.probe()
    assert list(store.list()) == []


def test_probes_at_the_same_time_do_not_disturb_each_other(store: Store) -> None:
    with ThreadPoolExecutor(6) as pool:
        for probe in [pool.submit(store.probe) for _ in range(6)]:
            probe.result()
    assert list(store.list()) == []


def test_a_pickled_store_works_and_holds_no_credentials(store: Store) -> None:
    store.put_new("a", b"1")  # the client exists now
    pickled = pickle.dumps(store)
    assert pickle.loads(pickled).get("a") == b"1"
    assert len(pickled) < 400
    for secret in (b"tester", b"not-a-secret", b"127.0.0.1", b"botocore"):
        assert secret not in pickled
        assert secret.decode() not in repr(store)


def test_errors_can_be_pickled(store: Store) -> None:
    with pytest.raises(MissingKey) as error:
        store.get("no/such")
    again = pickle.loads(pickle.dumps(error.value))
    assert (type(again), str(again)) == (MissingKey, str(error.value))


def test_uri_can_be_read_by_itself(store: Store, root: str) -> None:
    store.put_new("a/b.json", b"1")
    assert store.uri("a/b.json") == f"{root}/a/b.json"
    assert read(store.uri("a/b.json")) == b"1"
    with pytest.raises(MissingKey):
        read(store.uri("a/c.json"))


BAD_KEYS = [
    "",
    "/",
    "/etc/passwd",
    "a//b",
    "a/",
    "./a",
    "a/../b",
    "..",
    "a\\b",
    "a\x00b",
    "a\nb",
    "a\x7fb",
    "a\ud800b",
    ".tmp-1",
    "a/.tmp-1/b",
    "x" * 256,
    "é" * 128,
]


@pytest.mark.parametrize("key", BAD_KEYS, ids=ascii)
def test_bad_keys_are_refused_everywhere(store: Store, key: str) -> None:
    for use in (
        lambda: store.get(key),
        lambda: store.put_new(key, b""),
        lambda: store.put(key, b""),
        lambda: store.exists(key),
        lambda: store.delete(key),
        lambda: store.uri(key),
    ):
        with pytest.raises(StoreError, match=r"^key ") as error:
            use()
        assert not isinstance(error.value, KeyError)
        sentence(error)


@pytest.mark.parametrize("prefix", ["/", "/a", "../", "a//", "a\\", "a\x00"], ids=ascii)
def test_bad_prefixes_are_refused_at_the_call(store: Store, prefix: str) -> None:
    with pytest.raises(StoreError, match=r"^key "):
        store.list(prefix)
    with pytest.raises(StoreError, match=r"^key "):
        next(store.entries(prefix))


@pytest.mark.parametrize(
    "key", ["ü/日本.json", "a b", "a+b%20c", "a..b", ".a", "#?&=:*~'\"", "x" * 255]
)
def test_odd_but_harmless_keys_work(store: Store, key: str) -> None:
    store.put_new(key, b"1")
    assert store.get(key) == b"1"
    assert list(store.list()) == [key]


def put_or_refuse(store: Store, key: str, data: bytes) -> bool:
    try:
        return store.put_new(key, data)
    except AlreadyExists:
        return False


def test_of_many_threads_exactly_one_creates(store: Store) -> None:
    writers = 12
    start = threading.Barrier(writers)

    def race(writer: int) -> list[bool]:
        start.wait()
        return [put_or_refuse(store, f"k/{n}", b"%d" % writer * 5000) for n in range(4)]

    with ThreadPoolExecutor(writers) as pool:
        results = list(pool.map(race, range(writers)))
    for n, created in enumerate(zip(*results, strict=True)):
        assert created.count(True) == 1
        assert store.get(f"k/{n}") == b"%d" % created.index(True) * 5000


RACER = """
import sys
from cluster.store import AlreadyExists, open_store
store, me = open_store(sys.argv[1]), sys.argv[2].encode()
store.exists("warm")
print("ready", flush=True)
sys.stdin.readline()
for n in range(10):
    try:
        print(int(store.put_new(f"k/{n}", me * 5000)), flush=True)
    except AlreadyExists:
        print(0, flush=True)
"""


@pytest.mark.parametrize(
    "root",
    ["local", "s3", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gs", "az"))],
    indirect=True,
)
def test_of_many_processes_exactly_one_creates(store: Store, root: str) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, root, str(writer)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | CHILD_ENV,
        )
        for writer in range(4)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("go\n")
        child.stdin.flush()
    results = [child.communicate()[0].split() for child in children]
    for n, created in enumerate(zip(*results, strict=True)):
        assert created.count("1") == 1
        assert store.get(f"k/{n}") == str(created.index("1")).encode() * 5000


def test_many_writers_of_the_same_bytes_all_succeed(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        created = list(pool.map(lambda _: store.put_new("k", b"same"), range(8)))
    assert created.count(True) == 1


# Local -----------------------------------------------------------------------------------------

DIES = """
import os, resource, signal, sys
from cluster.store import open_store
root, moment, method = sys.argv[1:]
def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)
if moment == "half written":  # the kernel kills a process that writes past its file size limit
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
else:
    setattr(os, moment, die)
getattr(open_store(root), method)("k/victim", b"x" * 1_000_000)
"""


@pytest.mark.parametrize(
    ("moment", "method", "by"),
    [
        ("half written", "put_new", signal.SIGXFSZ),
        ("half written", "put", signal.SIGXFSZ),
        ("fsync", "put_new", signal.SIGKILL),
        ("fsync", "put", signal.SIGKILL),
        ("link", "put_new", signal.SIGKILL),
        ("replace", "put", signal.SIGKILL),
    ],
)
def test_a_writer_killed_at_any_moment_leaves_no_partial_object(
    tmp_path: Path, moment: str, method: str, by: signal.Signals
) -> None:
    (tmp_path / "k").mkdir()
    child = subprocess.run(
        [sys.executable, "-c", DIES, str(tmp_path), moment, method], env=os.environ | CHILD_ENV
    )
    assert child.returncode == -by
    store = open_store(str(tmp_path))
    assert any((tmp_path / "k").iterdir()), "the child died before it wrote anything"
    assert list(store.list()) == []
    assert not store.exists("k/victim")
    assert store.put_new("k/victim", b"whole") is True
    assert list(store.list()) == ["k/victim"]


def test_readers_of_a_replaced_file_see_old_or_new_bytes_whole(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    versions = [bytes([n]) * 200_000 for n in range(8)]
    store.put("k", versions[0])
    done = threading.Event()

    def write() -> None:
        for version in versions * 3:
            store.put("k", version)
        done.set()

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        while not done.is_set() and not writing.done():
            assert store.get("k") in versions
        writing.result()


def test_a_finished_write_leaves_no_temporary_file(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put_new("a", b"1")
    store.put("a", b"2")
    with pytest.raises(AlreadyExists):
        store.put_new("a", b"3")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_others_may_read_what_is_published(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    mask = os.umask(0o022)
    try:
        store.put_new("a", b"1")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


def test_a_relative_root_means_the_same_after_chdir(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = open_store("out")
    store.put_new("a", b"1")
    monkeypatch.chdir("/")
    assert store.get("a") == b"1"
    assert store.uri("a") == str(tmp_path / "out" / "a")


def test_a_file_is_no_root(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="is a file, not a directory") as error:
        open_store(str(tmp_path / "file"))
    sentence(error)
    with pytest.raises(StoreError, match="a file is in the way") as error:
        open_store(str(tmp_path / "file" / "below")).probe()
    sentence(error)


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs Linux's /sys")
def test_a_root_that_cannot_be_written_is_refused() -> None:
    # Not even root, as which tests may run in containers, can create files here.
    with pytest.raises(StoreError, match="/sys/kernel") as error:
        open_store("/sys/kernel").probe()
    assert "cannot be written" in sentence(error)


ON_A_SMALL_DISK = """
import os, subprocess, sys
from cluster.store import StoreError, open_store
root, case = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", root], check=True)
store = open_store(root)
store.put_new("k/old", b"old")
if case == "read-only":
    subprocess.run(["mount", "-o", "remount,ro", root], check=True)
for put in (store.put_new, store.put):
    for key in ("k/old", "k/new") if put == store.put else ("k/new",):
        try:
            put(key, b"x" * 1_000_000)
        except StoreError as error:
            print(error)
assert store.get("k/old") == b"old"
assert list(store.list()) == ["k/old"]
if case == "full":  # and what failed took no space with it
    assert os.listdir(root + "/k") == ["old"]
    assert store.put_new("k/new", b"x" * 30_000) is True
"""


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("full", "No space left on device): free some space or use another root"),
        ("read-only", "Read-only file system): use a root you may write to"),
    ],
)
def test_a_disk_that_takes_no_more_keeps_what_it_has(tmp_path: Path, case: str, says: str) -> None:
    namespace = ["unshare", "--map-root-user", "--mount"]
    if shutil.which("unshare") is None:
        pytest.skip("needs the unshare command (util-linux)")
    allowed = [*namespace, "mount", "-t", "tmpfs", "none", str(tmp_path)]
    if subprocess.run(allowed, capture_output=True).returncode:
        pytest.skip("this kernel lets us mount no file system of our own")
    child = subprocess.run(
        [*namespace, sys.executable, "-c", ON_A_SMALL_DISK, str(tmp_path), case],
        env=os.environ | CHILD_ENV,
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    sentences = child.stdout.splitlines()
    assert len(sentences) == 3
    for said in sentences:
        assert said.startswith(f"{tmp_path}/k/")
        assert f"cannot be written ({says}" in said


ABOVE_A_LIMIT = """
import os, resource, sys
from cluster.store import StoreError, open_store
resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))
store = open_store(sys.argv[1])
try:
    store.put_new("big", b"x" * 1_000_000)
except StoreError as error:
    print(error)
assert os.listdir(sys.argv[1]) == []
assert store.put_new("small", b"x") is True
"""


def test_a_file_above_the_limit_leaves_nothing_behind(tmp_path: Path) -> None:
    child = subprocess.run(
        [sys.executable, "-c", ABOVE_A_LIMIT, str(tmp_path)],
        env=os.environ | CHILD_ENV,
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    assert "cannot be written (File too large): raise the limit on file sizes" in child.stdout


WITHOUT_PERMISSION = """
import sys
from cluster.store import StoreError, open_store
try:
    open_store(sys.argv[1]).probe()
except StoreError as error:
    print(error)
"""


def test_a_root_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    # Root may write everywhere, as which tests may run in containers; in here it is nobody.
    powerless = ["unshare", "--user"] if os.geteuid() == 0 else []
    if powerless and (
        not shutil.which("unshare") or subprocess.run([*powerless, "true"]).returncode
    ):
        pytest.skip("root cannot give up its rights here")
    child = subprocess.run(
        [*powerless, sys.executable, "-c", WITHOUT_PERMISSION, str(tmp_path)],
        env=os.environ | CHILD_ENV,
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    assert "cannot be written (Permission denied): change its permissions" in child.stdout


def test_files_deleted_while_they_are_listed_are_no_error(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for key in ("a", "b", "c"):
        store.put_new(key, b"")
    entries = store.entries()
    assert next(entries).key == "a"
    store.delete("b")
    assert [entry.key for entry in entries] == ["c"]


def test_a_directory_in_the_way_of_a_key_is_named(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put_new("a/b", b"")
    for put in (store.put_new, store.put):
        with pytest.raises(StoreError, match="a directory is in the way") as error:
            put("a", b"")
        sentence(error)


def test_list_follows_no_links_to_directories(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    store.put_new("a/b", b"")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert list(store.list()) == ["a/b"]


def test_read_takes_local_paths(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes(b"a cat")
    assert read(str(tmp_path / "prompts.txt")) == b"a cat"
    for missing in (tmp_path, tmp_path / "no", tmp_path / "prompts.txt" / "no"):
        with pytest.raises(MissingKey, match=str(missing)):
            read(str(missing))


# Roots -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("root", "says"),
    [
        ("", "is not a path"),
        ("a\x00b", "is not a path"),
        ("s3://", "names no bucket"),
        ("s3:///prefix", "names no bucket"),
        ("s3:/bucket/prefix", "names no bucket"),
        ("s3:bucket", "names no bucket"),
        ("s3://bu cket/prefix", "names no bucket"),
        ("s3://bucket//prefix", "has the segment ''"),
        ("s3://bucket/a/../b", "has the segment '..'"),
        ("gs://", "names no bucket"),
        ("gs:/bucket/prefix", "names no bucket: write gs://bucket/prefix"),
        ("az://", "names no container"),
        ("az://key@container/prefix", "names no container"),
        ("gcs://bucket/prefix", "gcs://... is not supported"),
        ("https://host/bucket", "https://... is not supported"),
    ],
)
def test_malformed_roots_are_refused(root: str, says: str) -> None:
    for use in (open_store, read):
        with pytest.raises(StoreError, match=re.escape(says)) as error:
            use(root)
        sentence(error)


@pytest.mark.parametrize(
    "root",
    [
        "s3://AKIAKEY:hidden/secret@bucket/prefix",
        "s3://AKIAKEY:hidden@bucket",
        "https://AKIAKEY:hidden@host/bucket?X-Amz-Signature=hidden",
    ],
)
def test_credentials_in_a_root_are_refused_and_not_repeated(root: str) -> None:
    with pytest.raises(StoreError) as error:
        open_store(root)
    assert "AKIAKEY" not in sentence(error)
    assert "hidden" not in sentence(error)


@pytest.mark.parametrize("root", ["s3://bucket", "s3://bucket/"])
def test_a_bucket_alone_is_a_root(root: str) -> None:
    assert open_store(root).uri("a") == "s3://bucket/a"


def test_reading_a_bucket_is_refused() -> None:
    with pytest.raises(StoreError, match="names a bucket, not a file"):
        read("s3://bucket")


# S3 --------------------------------------------------------------------------------------------


def test_a_bucket_without_prefix_stores_at_its_top(s3_root: str) -> None:
    bucket = s3_root.split("/")[2]
    store = open_store(f"s3://{bucket}")
    store.put_new("a/b", b"1")
    assert list(store.list()) == ["a/b"]
    found = boto3.session.Session().client("s3").get_object(Bucket=bucket, Key="a/b")
    assert found["Body"].read() == b"1"


def test_objects_have_the_content_type_of_their_names(s3_root: str) -> None:
    open_store(s3_root).put("report.html", b"<p>")
    bucket, _, prefix = s3_root.removeprefix("s3://").partition("/")
    client = boto3.session.Session().client("s3")
    head = client.head_object(Bucket=bucket, Key=f"{prefix}/report.html")
    assert head["ContentType"] == "text/html"


def test_folder_objects_of_consoles_are_not_keys(s3_root: str) -> None:
    bucket, _, prefix = s3_root.removeprefix("s3://").partition("/")
    client = boto3.session.Session().client("s3")
    client.put_object(Bucket=bucket, Key=f"{prefix}/", Body=b"")
    client.put_object(Bucket=bucket, Key=f"{prefix}/folder/", Body=b"")
    open_store(s3_root).put_new("folder/a", b"")
    assert list(open_store(s3_root).list()) == ["folder/a"]


def test_a_client_is_made_once_a_process(s3_root: str) -> None:
    store = S3Store(s3_root.split("/")[2])
    with ThreadPoolExecutor(8) as pool:
        clients = set(pool.map(lambda _: id(store._client()), range(8)))
    assert len(clients) == 1


def test_a_fork_makes_its_own_client(s3_root: str) -> None:
    program = """
import os, sys
from cluster.store import open_store
store = open_store(sys.argv[1])
store.put_new("a", b"1")
before = id(store._client())
child = os.fork()
if child == 0:
    os._exit(0 if store.get("a") == b"1" and id(store._client()) != before else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    command = [sys.executable, "-c", program, s3_root]
    assert subprocess.run(command, env=os.environ | CHILD_ENV).returncode == 0


# S3: stores that cannot be used ------------------------------------------------------------------


def probe_fails(root: str) -> str:
    """The sentence with which `probe` refuses, which must take seconds and not minutes."""
    started = time.monotonic()
    with pytest.raises(StoreError) as error:
        open_store(root).probe()
    assert time.monotonic() - started < 30
    return sentence(error)


def test_a_bucket_that_does_not_exist_is_named(s3_endpoint: str) -> None:
    said = probe_fails("s3://no-such-bucket/prefix")
    assert said.startswith(f"bucket 'no-such-bucket' does not exist at {s3_endpoint}: create it")
    store = open_store("s3://no-such-bucket/prefix")
    for use in (lambda: store.get("a"), lambda: list(store.list())):
        with pytest.raises(StoreError, match="bucket 'no-such-bucket' does not exist") as error:
            use()
        assert not isinstance(error.value, MissingKey)


def test_a_closed_port_is_refused_in_seconds(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:  # bound and never listening: nobody else can open it
        closed.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        assert f"{endpoint} cannot be reached" in probe_fails(s3_root)


def test_an_endpoint_that_is_no_url_is_refused(
    s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "somewhere")
    assert "'somewhere', which is not a URL" in probe_fails(s3_root)


def test_credentials_in_the_endpoint_are_not_repeated(
    s3_root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{closed.getsockname()[1]}"
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://user:hidden@{host}")
        said = probe_fails(s3_root)
    assert host in said
    assert "hidden" not in said


def test_missing_credentials_are_said(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    assert "no credentials were found" in probe_fails(s3_root)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "half-a-pair")
    assert "no credentials were found" in probe_fails(s3_root)


def test_a_missing_profile_is_named(s3_root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nightly")
    assert "AWS_PROFILE is 'nightly'" in probe_fails(s3_root)


def test_unknown_credentials_are_refused(
    s3_root: str, strict_s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", strict_s3_endpoint)
    said = probe_fails(s3_root)
    assert "check AWS_ACCESS_KEY_ID" in said
    with pytest.raises(StoreError, match="check AWS_ACCESS_KEY_ID"):  # though HEAD tells no code
        open_store(s3_root).exists("a")


def test_a_store_that_ignores_conditional_puts_is_refused(rclone: str, tmp_path: Path) -> None:
    said = probe_fails(rclone)
    assert said.startswith("S3Store('s3://bucket/prefix') cannot be used because it ignores")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_wrong_secret_is_refused(rclone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "mistyped")
    said = probe_fails(rclone)
    assert "check AWS_SECRET_ACCESS_KEY" in said
    assert "mistyped" not in said
