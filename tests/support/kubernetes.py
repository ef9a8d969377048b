"""The fields of the Kubernetes objects that `cluster/deploy` uses, as a JSON schema each.

What KubeRay's `ray.io/v1` (rayjob_types.go, raycluster_types.go), batch/v1, core/v1, rbac/v1,
kustomize and the Prometheus Operator define; of large objects only what the project has a use for.
A field that is not listed is refused, as an API server that is asked to be strict would.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]


def fields(required: str = "", /, **properties: Schema) -> Schema:
    """An object of these fields and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


def several(items: Schema) -> Schema:
    return {"type": "array", "items": items, "minItems": 1}


def texts(values: Schema | None = None) -> Schema:
    """A map from text to text."""
    return {"type": "object", "additionalProperties": values or TEXT}


def document(version: str, kind: str, required: str = "", /, **properties: Schema) -> Schema:
    """A whole object of an API."""
    named = {"apiVersion": {"const": version}, "kind": {"const": kind}, "metadata": METADATA}
    return fields(f"apiVersion kind metadata {required}", **named, **properties)


TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 0}
FLAG: Schema = {"type": "boolean"}
QUANTITY: Schema = {"type": "string", "pattern": r"^\d+(Ki|Mi|Gi|m)?$"}
NAME: Schema = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"}
LABELS = texts({"type": "string"})
METADATA = fields(
    name=NAME,
    generateName={"type": "string", "pattern": "^[a-z0-9][-a-z0-9]*-$"},
    labels=LABELS,
    annotations=LABELS,
)

CONTAINER = fields(
    "name image",
    name=NAME,
    image=TEXT,
    args=several(TEXT),
    ports=several(fields("containerPort", containerPort=COUNT, name=NAME)),
    # No `value` of a secret can hide in these.
    envFrom=several(fields("secretRef", secretRef=fields("name", name=NAME, optional=FLAG))),
    env=several(fields("name value", name=TEXT, value={"type": "string"})),
    resources=fields("requests limits", requests=texts(QUANTITY), limits=texts(QUANTITY)),
    volumeMounts=several(fields("name mountPath", name=NAME, mountPath=TEXT, readOnly=FLAG)),
)
POD = fields(
    "containers",
    serviceAccountName=NAME,
    restartPolicy={"enum": ["Never", "OnFailure", "Always"]},
    nodeSelector=LABELS,
    tolerations=several(
        fields(
            "key operator effect",
            key=TEXT,
            operator={"enum": ["Exists", "Equal"]},
            effect={"enum": ["NoSchedule", "NoExecute", "PreferNoSchedule"]},
        )
    ),
    securityContext=fields(fsGroup=COUNT),
    containers=several(CONTAINER),
    volumes=several(
        fields(
            "name",
            name=NAME,
            emptyDir=fields(medium={"const": "Memory"}, sizeLimit=QUANTITY),
            configMap=fields("name", name=NAME),
        )
    ),
)
TEMPLATE = fields("spec", metadata=fields(labels=LABELS, annotations=LABELS), spec=POD)

RAY_CLUSTER = fields(
    "rayVersion headGroupSpec workerGroupSpecs",
    rayVersion=TEXT,
    authOptions=fields("mode", mode={"enum": ["token", "disabled"]}),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=fields(
        idleTimeoutSeconds=COUNT, upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]}
    ),
    # Values of rayStartParams are texts to Kubernetes: 0 is refused where "0" is meant.
    headGroupSpec=fields("rayStartParams template", rayStartParams=texts(), template=TEMPLATE),
    workerGroupSpecs=several(
        fields(
            "groupName replicas minReplicas maxReplicas rayStartParams template",
            groupName=NAME,
            replicas=COUNT,
            minReplicas=COUNT,
            maxReplicas=COUNT,
            numOfHosts=COUNT,
            rayStartParams=texts(),
            template=TEMPLATE,
        )
    ),
)
RAY_JOB = document(
    "ray.io/v1",
    "RayJob",
    "spec",
    spec=fields(
        "entrypoint rayClusterSpec",
        entrypoint=TEXT,
        runtimeEnvYAML=TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        backoffLimit=COUNT,
        activeDeadlineSeconds={"type": "integer", "minimum": 1},
        shutdownAfterJobFinishes=FLAG,
        ttlSecondsAfterFinished=COUNT,
        rayClusterSpec=RAY_CLUSTER,
    ),
)
CRON_JOB = document(
    "batch/v1",
    "CronJob",
    "spec",
    spec=fields(
        "schedule jobTemplate",
        schedule={"type": "string", "pattern": r"^\S+( \S+){4}$"},
        timeZone=TEXT,
        concurrencyPolicy={"enum": ["Allow", "Forbid", "Replace"]},
        startingDeadlineSeconds=COUNT,
        successfulJobsHistoryLimit=COUNT,
        failedJobsHistoryLimit=COUNT,
        jobTemplate=fields("spec", spec=fields("template", backoffLimit=COUNT, template=TEMPLATE)),
    ),
)
RULE = fields(
    "apiGroups resources verbs",
    apiGroups=several(TEXT),
    resources=several(TEXT),
    verbs=several(TEXT),
)
SCHEMAS: dict[str, Schema] = {
    "RayJob": RAY_JOB,
    "CronJob": CRON_JOB,
    "ServiceAccount": document("v1", "ServiceAccount"),
    "Role": document("rbac.authorization.k8s.io/v1", "Role", "rules", rules=several(RULE)),
    "RoleBinding": document(
        "rbac.authorization.k8s.io/v1",
        "RoleBinding",
        "roleRef subjects",
        roleRef=fields("apiGroup kind name", apiGroup=TEXT, kind={"const": "Role"}, name=NAME),
        subjects=several(fields("kind name", kind={"const": "ServiceAccount"}, name=NAME)),
    ),
    "PodMonitor": document(
        "monitoring.coreos.com/v1",
        "PodMonitor",
        "spec",
        spec=fields(
            "selector podMetricsEndpoints",
            selector=fields(
                "matchExpressions",
                matchExpressions=several(
                    fields("key operator", key=TEXT, operator=TEXT, values=several(TEXT))
                ),
            ),
            podMetricsEndpoints=several(fields("port", port=NAME)),
        ),
    ),
    "Kustomization": fields(
        "apiVersion kind resources",
        apiVersion={"const": "kustomize.config.k8s.io/v1beta1"},
        kind={"const": "Kustomization"},
        resources=several(TEXT),
        configMapGenerator=several(fields("name files", name=NAME, files=several(TEXT))),
    ),
}
