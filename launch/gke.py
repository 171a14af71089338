"""A JobSet for Google Kubernetes Engine: TPU slices, or GPU hosts. For a server see gke_serve.py.

Sources: the TPU example of kubernetes-sigs/jobset (site/static/examples/tpu-multislice) and its failure policy
(pkg/controllers/failure_policy.go; patterns of messages need JobSet 0.10), GKE's pages on TPUs and on the Cloud Storage
FUSE driver, the charts of AI-Hypercomputer/gpu-recipes.
"""

import shlex

from launch import gke_serve
from launch.gke_network import connect_gpus, script_of
from launch.job import COORDINATOR_PORT, JobDescription
from launch.manifest import to_yaml

SUFFIX, CLIENT = ".yaml", "kubectl"
INSTALL = "https://kubernetes.io/docs/tasks/tools; then gcloud container clusters get-credentials CLUSTER"
HOSTS = "hosts"  # the one replicated job; a slice is a replica of it
# What Kubernetes says of a job whose container ended with 2 (pkg/controller/job/pod_failure_policy.go).
MISTAKEN = "^Container kosmos for pod .* failed with exit code 2 matching FailJob rule"
# One process looks for what another has just written, and a checkpoint that is damaged is renamed.
BUCKET_OPTIONS = "implicit-dirs,rename-dir-limit=200000,metadata-cache-ttl-secs=0,metadata-cache-negative-ttl-secs=0"
# No limits for the driver's container beside ours: the default of 256 MiB is too little to write checkpoints.
GCSFUSE = {"gke-gcsfuse/volumes": "true"} | {
    f"gke-gcsfuse/{what}-limit": "0" for what in ("cpu", "memory", "ephemeral-storage")
}


def render(job: JobDescription) -> str:
    """The manifest, as YAML."""
    job.require(job.kind != "cpu", "topology", "on GKE give TPUs or GPUs; for CPU hosts use --on slurm or --on local")
    job.require(job.image, "image", "build launch/docker/Dockerfile.tpu or .gpu, push it, and name it here")
    job.require(job.capacity != "reserved" or job.reservation, "reservation", "name the reservation")
    job.require_workdir_mounted()
    pod = _tpu_pod(job) if job.kind == "tpu" else _gpu_pod(job)
    metadata = {"name": job.name, "namespace": job.gke.namespace}
    metadata |= {"labels": {"kueue.x-k8s.io/queue-name": job.gke.queue}} if job.gke.queue else {}
    if job.verb == "serve":
        return to_yaml(*gke_serve.manifests(job, metadata, pod))
    return to_yaml(_job_set(job, metadata, pod))


def _job_set(job: JobDescription, metadata: dict, pod: dict) -> dict:
    if job.kind == "tpu":
        metadata |= gke_serve.one_pool_each("alpha.jobset.sigs.k8s.io")
    hosts = {
        "parallelism": job.hosts,
        "completions": job.hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # one lost pod ends the step of all: the JobSet starts all of them again
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onExitCodes": {"containerName": "kosmos", "operator": "In", "values": [2, 75]}},
                {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            ]
        },
        "template": pod,
    }
    failed = {"onJobFailureReasons": ["PodFailurePolicy"]}
    spec = {
        "failurePolicy": {
            "maxRestarts": job.max_restarts,
            # The first rule that fits is taken. Without one, as after status 1, the restart counts.
            "rules": [
                # Another start would end in the same way.
                {"name": "mistaken", "action": "FailJobSet", **failed, "onJobFailureMessagePatterns": [MISTAKEN]},
                # Stopped and saved, or the node was taken away: nobody's failure.
                {"name": "stopped", "action": "RestartJobSetAndIgnoreMaxRestarts", **failed},
            ],
        },
        "replicatedJobs": [{"name": HOSTS, "replicas": job.slices, "template": {"spec": hosts}}],
    }
    return {"apiVersion": "jobset.x-k8s.io/v1alpha2", "kind": "JobSet", "metadata": metadata, "spec": spec}


def _tpu_pod(job: JobDescription) -> dict:
    """One process a host, which finds the addresses of all hosts in the variables that GKE sets."""
    # No shell: the process is the one that gets SIGTERM.
    pod = _pod(job, command=job.command, resource="google.com/tpu")
    pod["spec"]["nodeSelector"] = {
        "cloud.google.com/gke-tpu-accelerator": job.place.chip.gke_accelerator,
        "cloud.google.com/gke-tpu-topology": job.place.name,
    } | pod["spec"]["nodeSelector"]
    pod["spec"]["containers"][0]["securityContext"] = {"privileged": True}
    if job.slices > 1:
        # Between slices the data goes over the hosts' network cards, without a layer between.
        pod["spec"] |= {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"}
    return pod


def _gpu_pod(job: JobDescription) -> dict:
    """One pod a host, one process a GPU in it, as under Slurm.

    JAX can find the processes of a job of Kubernetes by itself, but only one process a pod, with rights to list pods.
    So launch.local starts the host's processes, with ranks from the index of the pod, and with the name that a JobSet
    gives to its first pod, or a LeaderWorkerSet to its leader, as the coordinator's.
    """
    first_pod, index = f"{job.name}-{HOSTS}-0-0.{job.name}", "JOB_COMPLETION_INDEX"
    if job.verb == "serve":
        first_pod, index = "$LWS_LEADER_ADDRESS", "LWS_WORKER_INDEX"
    others = f' --coordinator={first_pod}:{COORDINATOR_PORT} --first="$(({job.per_host} * {index}))"'
    others = "" if job.hosts == 1 else others
    start = f"{shlex.join(job.gpu_processes)}{others} -- {shlex.join(job.command)}"
    machine = job.place.chip.machine_type
    setup = script_of(machine) if job.hosts > 1 else ""
    pod = _pod(job, command=["bash", "-c", f"{setup}exec {start}"], resource="nvidia.com/gpu")
    pod["spec"]["nodeSelector"] = {
        "cloud.google.com/gke-accelerator": job.place.chip.gke_accelerator,
        "node.kubernetes.io/instance-type": machine,
    } | pod["spec"]["nodeSelector"]
    if job.hosts > 1:
        connect_gpus(pod, machine)
    return pod


def _pod(job: JobDescription, command: list[str], resource: str) -> dict:
    """What pods of TPU and of GPU hosts have in common."""
    volumes, mounts, annotations = _volumes(job)
    container = {
        "name": "kosmos",
        "image": job.image,
        "command": [_literal(word) for word in command],
        "env": [{"name": key, "value": _literal(value)} for key, value in job.env.items()],
        "resources": {"limits": {resource: job.per_host}},
        "volumeMounts": mounts,
    }
    selector, tolerations = {}, [{"key": resource, "operator": "Exists", "effect": "NoSchedule"}]
    if job.capacity == "spot":
        selector = {"cloud.google.com/gke-spot": "true"}
        tolerations += [{"key": "cloud.google.com/gke-spot", "operator": "Exists", "effect": "NoSchedule"}]
    if job.reservation:
        selector = {"cloud.google.com/reservation-name": job.reservation}
    spec = {
        "restartPolicy": "Always" if job.verb == "serve" else "Never",
        "terminationGracePeriodSeconds": job.grace_seconds,
        "nodeSelector": selector,
        "tolerations": tolerations,
        "containers": [container],
        "volumes": volumes,
    }
    if job.gke.service_account:
        spec["serviceAccountName"] = job.gke.service_account
    return {"metadata": {"annotations": annotations}, "spec": spec}


def _literal(text: str) -> str:
    """Kubernetes puts the value of a variable in the place of $(NAME), and a single $ in that of $$."""
    return text.replace("$", "$$")


def _volumes(job: JobDescription) -> tuple[list, list, dict]:
    """Volumes, where they are mounted, and annotations that they need."""
    # 64 MiB, as containers get, is too little for the runtimes' shared memory.
    volumes = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    mounts = [{"name": "shm", "mountPath": "/dev/shm"}]
    annotations = {}
    for number, (path, source) in enumerate(job.mounts.items()):
        scheme, _, name = source.partition(":")
        name = name.removeprefix("//").rstrip("/")
        fine = scheme in ("gs", "pvc") and name
        job.require(fine, "mounts", f'{source!r}: on GKE write "gs://BUCKET" or "pvc:CLAIM"')
        job.require("/" not in name, "mounts", f"{source!r}: mount the bucket itself, and choose the folder in workdir")
        volume = {"name": f"mount-{number}"}
        if scheme == "gs":
            attributes = {"bucketName": name, "mountOptions": BUCKET_OPTIONS}
            if job.slices > 1 and job.kind == "tpu":
                attributes["hostNetworkPodKSA"] = "true"  # the driver asks for it on the hosts' network
            volume["csi"] = {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": attributes}
            annotations |= GCSFUSE
        else:
            volume["persistentVolumeClaim"] = {"claimName": name}
        volumes.append(volume)
        mounts.append({"name": volume["name"], "mountPath": path})
    return volumes, mounts, annotations


def submit_command(job: JobDescription, path: str) -> list[str]:
    # A server that is there already is brought up to date; a JobSet cannot be changed.
    return ["kubectl", "apply" if job.verb == "serve" else "create", "-f", path]


def advice(job: JobDescription, path: str, output: str) -> dict[str, str]:
    """Commands for afterwards."""
    if job.verb == "serve":
        return gke_serve.advice(job, path)
    space, jobset = f"--namespace {job.gke.namespace}", f"jobset.sigs.k8s.io/jobset-name={job.name}"
    host_0 = f"{jobset},jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
    return {
        "follow": f"kubectl logs {space} --follow --tail=-1 --container kosmos --selector {host_0}",
        "state": f"kubectl get jobset,jobs,pods {space} --selector {jobset}",
        "stop": f"kubectl delete jobset {space} {job.name}",
    }
