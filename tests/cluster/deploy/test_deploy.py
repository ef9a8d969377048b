"""What `cluster/deploy` ships: right in structure, without secrets, and in step with itself."""

from __future__ import annotations

import copy
import importlib
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from packaging.requirements import Requirement
from ray.autoscaler._private.util import prepare_config, validate_config

from cluster.fleet.gangs import parse_count
from tests.support.commands import PROJECT, SETTINGS, check
from tests.support.kubernetes import SCHEMAS

DEPLOY = PROJECT / "cluster/deploy"
KUBERAY = sorted((DEPLOY / "kuberay").glob("*.yaml"))
RAY_JOBS = [path for path in KUBERAY if "\nkind: RayJob\n" in path.read_text()]
LAUNCHER = DEPLOY / "aws-p5.yaml"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def by_name(path: Path) -> str:
    return path.stem


@pytest.fixture(params=RAY_JOBS, ids=by_name)
def ray_job(request) -> dict[str, Any]:
    return documents(request.param)[0]


@pytest.fixture
def options(ray_job):
    """What the job's own parser makes of its entrypoint."""
    _, _, module, *arguments = shlex.split(ray_job["spec"]["entrypoint"])
    return importlib.import_module(f"{module}.__main__").parser().parse_args(arguments)


@pytest.fixture
def workers(ray_job) -> dict[str, Any]:
    return ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]


def containers(ray_job: dict[str, Any]) -> list[dict[str, Any]]:
    cluster = ray_job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [one for group in groups for one in group["template"]["spec"]["containers"]]


def test_a_render_and_a_refresh_are_shipped():
    assert [path.name for path in RAY_JOBS] == ["refresh-rayjob.yaml", "render-rayjob.yaml"]


@pytest.mark.parametrize("path", KUBERAY, ids=by_name)
def test_every_object_has_the_fields_that_its_api_defines(path):
    for document in documents(path):
        jsonschema.validate(document, SCHEMAS[document["kind"]])


@pytest.mark.parametrize(
    "damage",
    [
        lambda spec: spec.pop("entrypoint"),
        lambda spec: spec.update(backOffLimit=3),
        lambda spec: spec["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update(cpus=0),
        lambda spec: spec["rayClusterSpec"]["workerGroupSpecs"][0].pop("groupName"),
        lambda spec: spec["rayClusterSpec"].update(workerGroupSpec=[]),
    ],
)
def test_a_mistake_in_a_ray_job_would_be_seen(damage: Callable[[dict[str, Any]], object]):
    document = copy.deepcopy(documents(RAY_JOBS[0])[0])
    damage(document["spec"])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMAS["RayJob"])


def test_entrypoints_are_accepted_by_the_jobs_own_parsers(options):
    assert options.output.startswith("s3://")


def test_a_gang_fills_one_worker_and_the_workers_hold_all_gangs(options, workers):
    (container,) = workers["template"]["spec"]["containers"]
    gpus = {int(container["resources"][kind]["nvidia.com/gpu"]) for kind in ("requests", "limits")}
    assert gpus == {options.gang_size}
    least, most = parse_count(options.gangs)
    assert workers["minReplicas"] == workers["replicas"] == least
    assert workers["maxReplicas"] == most


def test_restarts_go_through_the_store_and_leave_nothing_running(ray_job):
    spec = ray_job["spec"]
    assert spec["backoffLimit"] > 0
    assert spec["shutdownAfterJobFinishes"]
    environment = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
    assert float(environment["RAY_JOB_STOP_WAIT_TIME_S"]) > 60


def test_the_head_is_on_demand_and_runs_no_gang(ray_job, workers):
    head = ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert head["template"]["spec"]["nodeSelector"] == {"karpenter.sh/capacity-type": "on-demand"}
    spot = {"karpenter.sh/capacity-type": "spot"}
    assert workers["template"]["spec"]["nodeSelector"] == spot


def test_volumes_that_are_mounted_exist(workers):
    pod = workers["template"]["spec"]
    mounted = {mount["name"] for one in pod["containers"] for mount in one["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_all_containers_run_one_image_of_one_ray(ray_job):
    (image,) = {one["image"] for one in containers(ray_job)}
    assert image.endswith(f"/meancache-ray:{SETTINGS['project']['version']}")
    version = ray_job["spec"]["rayClusterSpec"]["rayVersion"]
    declared = {
        Requirement(one).name: Requirement(one) for one in SETTINGS["project"]["dependencies"]
    }
    assert version in declared["ray"].specifier
    pinned = f'"ray[default]=={version}"'
    assert pinned in DOCKERFILE
    assert pinned in LAUNCHER.read_text()


def test_secrets_come_by_reference_and_files_hold_none(ray_job):
    for one in containers(ray_job):
        assert {"secretRef": {"name": "meancache-env"}} in one["envFrom"]
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            assert not re.search(
                r"AKIA[0-9A-Z]{16}|hf_\w{20}|(SECRET|TOKEN|PASSWORD|ACCESS_KEY)\w*['\"]?\s*[:=]",
                path.read_text(),
            )


def test_the_cron_job_creates_the_refresh_and_may_do_nothing_else():
    objects = {one["kind"]: one for one in documents(DEPLOY / "kuberay/refresh-cronjob.yaml")}
    pod = objects["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    (container,), (volume,) = pod["containers"], pod["volumes"]
    action, file = container["args"]
    assert action == "create"
    folder, name = file.removeprefix("--filename=").rsplit("/", 1)
    assert (container["volumeMounts"][0]["mountPath"], volume["name"]) == (folder, "refresh")
    (kustomization,) = documents(DEPLOY / "kuberay/kustomization.yaml")
    (generated,) = kustomization["configMapGenerator"]
    assert generated == {"name": volume["configMap"]["name"], "files": [name]}
    for path in (*kustomization["resources"], name):
        assert (DEPLOY / "kuberay" / path).exists()
    granted = {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create"]}
    assert objects["Role"]["rules"] == [granted]
    names = {
        pod["serviceAccountName"],
        objects["ServiceAccount"]["metadata"]["name"],
        objects["RoleBinding"]["subjects"][0]["name"],
        objects["RoleBinding"]["roleRef"]["name"],
        objects["Role"]["metadata"]["name"],
    }
    assert names == {"meancache-refresh"}


def test_every_ray_node_has_the_port_that_prometheus_asks(ray_job):
    (monitor,) = documents(DEPLOY / "kuberay/pod-monitor.yaml")
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    for one in containers(ray_job):
        assert endpoint["port"] in {port["name"] for port in one["ports"]}


def test_the_launcher_file_passes_rays_own_validation():
    config = prepare_config(documents(LAUNCHER)[0])
    validate_config(config)
    workers = config["available_node_types"]["p5"]
    assert workers["node_config"]["InstanceType"] == "p5.48xlarge"
    assert workers["resources"]["GPU"] == 8
    assert workers["min_workers"] >= 1, "a cluster without a GPU is taken for one of CPUs"
    broken = {**documents(LAUNCHER)[0], "worker_types": {}}
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(broken))


def test_the_launchers_own_commands_are_rays():
    (config,) = documents(LAUNCHER)
    for command in config["head_start_ray_commands"] + config["worker_start_ray_commands"]:
        check(command)


def test_the_image_copies_what_there_is_and_all_that_is_installed():
    copied = re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.MULTILINE)
    names = {name for line in copied for name in line.split()}
    assert all((PROJECT / name).exists() for name in names)
    packages = SETTINGS["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {name.rstrip("*") for name in packages} <= names
    let_in = {
        line[1:] for line in (PROJECT / ".dockerignore").read_text().split() if line[0] == "!"
    }
    assert names == let_in


def test_the_installed_ray_is_the_one_that_was_checked_against():
    (config,) = documents(RAY_JOBS[0])
    major_minor = config["spec"]["rayClusterSpec"]["rayVersion"].rsplit(".", 1)[0]
    assert ray.__version__.startswith(f"{major_minor}.")
