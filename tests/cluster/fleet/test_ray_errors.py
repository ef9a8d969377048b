"""What Ray says in pages is told in one sentence, with the reason."""

from ray.exceptions import RayError, RuntimeEnvSetupError

from cluster.fleet.ray_errors import setup_error, told

# As Ray 2.60 words it.
NO_CONDA = """Could not create the actor because its associated runtime env failed to be created.
[Node 10.0.0.2] Traceback (most recent call last):
  File "ray/_private/runtime_env/conda_utils.py", line 238, in exec_cmd
    child = subprocess.Popen(
FileNotFoundError: [Errno 2] No such file or directory: 'conda'
"""
NO_PACKAGE = """Could not create the actor because its associated runtime env failed to be created.
[Node 10.0.0.2] Traceback (most recent call last):
  File "ray/_private/runtime_env/utils.py", line 106, in check_output_cmd
    raise SubprocessCalledProcessError(
ray._private.runtime_env.utils.SubprocessCalledProcessError: Run cmd[9] failed with the following \
details.
Command '['/tmp/virtualenv/bin/python', '-m', 'pip', 'install', '-r', '/tmp/requirements.txt']' \
returned non-zero exit status 1.
Last 50 lines of stdout:
    ERROR: Could not find a version that satisfies the requirement no-such==0 (from versions: none)
    ERROR: No matching distribution found for no-such==0
"""
NOT_INSTALLED = """The actor died because of an error raised in its creation task, \
\x1b[36mray::LeaderActor.__init__()\x1b[39m (pid=7, ip=10.0.0.2, actor_id=20e5)
           ^^^^^^^^^^^^
RuntimeError: The actor with name LeaderActor failed to import on the worker. This may be because:

\x1b[36mray::LeaderActor.__init__()\x1b[39m (pid=7, ip=10.0.0.2, actor_id=20e5)
ModuleNotFoundError: No module named 'cluster'"""
KILLED = """The actor died unexpectedly before finishing this task.
\tclass_name: LeaderActor
\tpid: 7
The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit \
detail: connection error code 2. Some common causes include: (1) the process was killed"""


def test_a_runtime_environment_that_cannot_be_set_up_is_a_refusal_with_the_reason():
    refusal = setup_error(RuntimeEnvSetupError(NO_CONDA))
    assert str(refusal).startswith(
        "Failed to set up runtime environment: FileNotFoundError: [Errno 2] No such file or "
        "directory: 'conda': mend the job's runtime environment"
    )


def test_a_package_that_cannot_be_installed_is_named():
    assert told(RuntimeEnvSetupError(NO_PACKAGE)) == (
        "Failed to set up runtime environment: No matching distribution found for no-such==0"
    )


def test_a_runtime_environment_without_a_traceback_has_its_second_line():
    assert "No package found" in told(RuntimeEnvSetupError("No package found for torch==0"))


def test_no_other_error_is_the_runtime_environments():
    assert setup_error(RayError(KILLED)) is None


def test_a_process_that_cannot_import_the_project_says_which_module():
    assert told(RayError(NOT_INSTALLED)) == (
        "The actor died because of an error raised in its creation task: ModuleNotFoundError: "
        "No module named 'cluster'"
    )


def test_a_death_is_told_without_advice():
    sentence = told(RayError(KILLED))
    assert sentence.endswith("detail: connection error code 2")
    assert "\n" not in sentence


def test_an_error_without_words_has_its_name():
    assert told(RuntimeError()) == "RuntimeError"
