"""A server on Google Kubernetes Engine: a Deployment for one host, a LeaderWorkerSet for several, and a Service.

Sources: kubernetes-sigs/lws (api/leaderworkerset/v1; pkg/webhooks/pod_webhook.go; pkg/utils/accelerators/tpu.go, which
gives TPU hosts the variables in which JAX finds the others), kubernetes.io on probes.
"""

from kosmos_jax.serving.command import KEY
from launch.job import JobDescription

# Until the weights are read, and that takes long from a bucket, nothing is answered: so many tries.
PROBE, STARTING = {"periodSeconds": 10, "timeoutSeconds": 5}, 180
LABEL = "leaderworkerset.sigs.k8s.io"


def one_pool_each(label: str) -> dict:
    """Metadata by which each replica gets a node pool of its own, which on TPUs is a slice.

    GPU hosts of a job may lie in several pools.
    """
    return {"annotations": {f"{label}/exclusive-topology": "cloud.google.com/gke-nodepool"}}


def manifests(job: JobDescription, metadata: dict, pod: dict) -> list[dict]:
    """What a server needs.

    Args:
      metadata: of the object that the pods belong to.
      pod: the template of a host.
    """
    job.require(job.slices == 1, "slices", "a server has one slice; for more servers there is `kubectl scale`")
    if job.hosts == 1:
        labels = {"app.kubernetes.io/name": job.name}
        pods = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata}
        pods["spec"] = {
            "replicas": 1,
            # The old server goes before the new one comes: there may be no machine for both.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
            "selector": {"matchLabels": labels},
            "template": _answering(job, pod, labels),
        }
    else:
        labels = {f"{LABEL}/name": job.name, f"{LABEL}/worker-index": "0"}
        metadata |= one_pool_each(LABEL) if job.kind == "tpu" else {}
        pods = {"apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet", "metadata": metadata}
        pods["spec"] = {
            "replicas": 1,
            # The hosts' names are then those of a service NAME-0, and NAME is left for the one below.
            "networkConfig": {"subdomainPolicy": "UniquePerReplica"},
            "leaderWorkerTemplate": {
                "size": job.hosts,
                "restartPolicy": "RecreateGroupOnPodRestart",  # a process that is lost cannot join the others again
                "leaderTemplate": _answering(job, pod),
                "workerTemplate": pod,
            },
        }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": job.name, "namespace": job.gke.namespace},
        "spec": {"selector": labels, "ports": [{"name": "http", "port": job.serve.port, "targetPort": "http"}]},
    }
    return [pods, service]


def _answering(job: JobDescription, pod: dict, labels: dict | None = None) -> dict:
    """The pod of process 0, which answers requests that have the key."""
    key = {"name": KEY, "valueFrom": {"secretKeyRef": {"name": job.name, "key": KEY}}}
    health, ready = ({"httpGet": {"path": path, "port": "http"}, **PROBE} for path in ("/health", "/ready"))
    (container,) = pod["spec"]["containers"]
    container = container | {
        "env": [*container["env"], key],
        "ports": [{"name": "http", "containerPort": job.serve.port}],
        "startupProbe": health | {"failureThreshold": STARTING},
        "livenessProbe": health,
        "readinessProbe": ready,
    }
    metadata = pod["metadata"] | ({"labels": labels} if labels else {})
    return {"metadata": metadata, "spec": pod["spec"] | {"containers": [container]}}


def advice(job: JobDescription, path: str) -> dict[str, str]:
    """Commands for afterwards; the pods wait for the first one."""
    space = f"--namespace {job.gke.namespace}"
    return {
        "key": f"kubectl create secret generic {space} {job.name} --from-literal={KEY}=...",
        "follow": f"kubectl logs {space} --follow --tail=-1 --container kosmos service/{job.name}",
        "state": f"kubectl get --filename {path}",
        "ask": f"kubectl port-forward {space} service/{job.name} {job.serve.port}",
        "stop": f"kubectl delete --filename {path}",
    }
