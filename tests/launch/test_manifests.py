"""Kubernetes' own schemas; those of JobSet, LeaderWorkerSet, Kueue and SkyPilot from schemas/."""

import json
import re
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

from kosmos_jax.serving.command import DRAIN_SECONDS, KEY, SEND_SECONDS
from launch import gke
from tests.launch.cases import CASES, ROOT, job, rendered

KUBERNETES = "1.34"
JOBSET, LEADER_WORKER_SET, KUEUE, SKYPILOT = (
    json.loads((Path(__file__).parent / f"schemas/{name}.json").read_text())
    for name in ("jobset_v1alpha2", "leaderworkerset_v1", "kueue_v1beta2", "skypilot_task")
)
GKE, SKY, SERVE = ([case for case in CASES if case[2:] == kind] for kind in (("gke",), ("skypilot",), ("gke", "serve")))


def jobs_of(manifest: dict) -> list[dict]:
    return [
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": each["name"]}, "spec": each["template"]["spec"]}
        for each in manifest["spec"]["replicatedJobs"]
    ]


@pytest.mark.parametrize("case", GKE, ids=str)
def test_a_jobset_its_jobs_and_their_pods_are_what_kubernetes_accepts(case):
    manifest = yaml.safe_load(rendered(*case))
    jsonschema.validate(manifest, JOBSET)
    for each in jobs_of(manifest):
        kubernetes_validate.validate(each, KUBERNETES, strict=True)
        pod = {"apiVersion": "v1", "kind": "Pod", **each["spec"]["template"]}
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


def server_of(text: str) -> tuple[dict, dict, list[dict]]:
    """What has the pods of a server, its service, and the templates of the pods: of process 0 first."""
    owner, service = yaml.safe_load_all(text)
    group = owner["spec"].get("leaderWorkerTemplate")
    templates = [group["leaderTemplate"], group["workerTemplate"]] if group else [owner["spec"]["template"]]
    return owner, service, templates


@pytest.mark.parametrize("case", SERVE, ids=str)
def test_a_server_its_service_and_its_pods_are_what_kubernetes_accepts(case):
    owner, service, templates = server_of(rendered(*case))
    kubernetes_validate.validate(service, KUBERNETES, strict=True)
    if len(templates) == 1:
        kubernetes_validate.validate(owner, KUBERNETES, strict=True)
    else:
        jsonschema.validate(owner, LEADER_WORKER_SET)
        owner["spec"]["leaderWorkerTemplate"]["sise"] = 2
        with pytest.raises(jsonschema.ValidationError, match="sise"):
            jsonschema.validate(owner, LEADER_WORKER_SET)
    for template in templates:
        kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod", **template}, KUBERNETES, strict=True)


@pytest.mark.parametrize("case", SERVE, ids=str)
def test_requests_come_to_process_0_alone_and_need_a_key_of_a_secret(case):
    owner, service, (first, *others) = server_of(rendered(*case))
    name, (container,) = owner["metadata"]["name"], first["spec"]["containers"]
    if others:  # labels that the controller gives to the pods
        label = "leaderworkerset.sigs.k8s.io"
        assert service["spec"]["selector"] == {f"{label}/name": name, f"{label}/worker-index": "0"}
    else:
        assert service["spec"]["selector"] == owner["spec"]["selector"]["matchLabels"] == first["metadata"]["labels"]
    (port,) = container["ports"]
    assert (port["name"], f"--port {port['containerPort']}") == ("http", "--port 8000")
    assert service["spec"]["ports"] == [{"name": "http", "port": 8000, "targetPort": "http"}]
    assert "--host 0.0.0.0 --port 8000" in " ".join(container["command"])
    key = {"name": KEY, "valueFrom": {"secretKeyRef": {"name": name, "key": KEY}}}
    assert container["env"][-1] == key
    for template in others:  # the same, but for what answers
        (container,) = template["spec"]["containers"]
        assert not {"ports", "startupProbe", "livenessProbe", "readinessProbe"} & container.keys()
        assert key not in container["env"]
    for template in (first, *others):
        assert template["spec"]["terminationGracePeriodSeconds"] > DRAIN_SECONDS + SEND_SECONDS


def test_a_pod_is_asked_where_the_server_answers():
    _, _, (template,) = server_of(rendered("kosmos1_serve", "", "gke", "serve"))
    (container,) = template["spec"]["containers"]
    paths = [container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")]
    assert paths == ["/health", "/health", "/ready"]


@pytest.mark.parametrize("case", SKY, ids=str)
def test_a_task_is_what_skypilot_accepts(case):
    task = yaml.safe_load(rendered(*case))
    jsonschema.validate(task, SKYPILOT)
    task["resources"]["use_spots"] = True
    with pytest.raises(jsonschema.ValidationError, match="use_spots"):
        jsonschema.validate(task, SKYPILOT)


def test_the_queue_of_the_example_is_what_kueue_accepts_and_what_the_jobs_ask_for():
    documents = list(yaml.safe_load_all((ROOT / "launch/jobs/kueue.yaml").read_text()))
    assert [document["kind"] for document in documents] == ["ResourceFlavor", "ClusterQueue", "LocalQueue"]
    for document in documents:
        jsonschema.validate(document, KUEUE["kinds"][document["kind"]])
    assert documents[-1]["metadata"]["name"] == job("kosmos1_v5e").gke.queue
    documents[1]["spec"]["preemption"]["withinClusterQueue"] = "LowestPriority"
    with pytest.raises(jsonschema.ValidationError, match="LowestPriority"):
        jsonschema.validate(documents[1], KUEUE["kinds"]["ClusterQueue"])


def test_a_mistyped_field_is_refused():
    manifest = yaml.safe_load(rendered(*GKE[0]))
    manifest["spec"]["failurePolicy"]["maxRestart"] = 1
    with pytest.raises(jsonschema.ValidationError, match="maxRestart"):
        jsonschema.validate(manifest, JOBSET)
    (each,) = jobs_of(manifest)
    each["spec"]["paralelism"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="paralelism"):
        kubernetes_validate.validate(each, KUBERNETES, strict=True)


def pod_of(described) -> dict:
    (each,) = jobs_of(yaml.safe_load(gke.render(described)))
    return each["spec"]["template"]["spec"]


def test_a_tpu_pod_runs_the_command_itself_so_that_sigterm_reaches_it():
    described = job("kosmos1_v5p")
    assert pod_of(described)["containers"][0]["command"] == described.command


def test_slices_are_replicas_and_hosts_are_pods():
    (replicated,) = yaml.safe_load(gke.render(job("kosmos1_v5e")))["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    assert (replicated["replicas"], spec["parallelism"], spec["completions"]) == (2, 64, 64)
    assert spec["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "16x16"


# What Kubernetes writes into a job that failed (pkg/controller/job: pod_failure_policy.go, job_controller.go).
EXITED = "Container kosmos for pod default/hosts-0-3-x2x7q failed with exit code {} matching FailJob rule at index 0"


@pytest.mark.parametrize(
    "reason, message, action",
    [
        ("PodFailurePolicy", EXITED.format(2), "FailJobSet"),
        ("PodFailurePolicy", EXITED.format(75), "RestartJobSetAndIgnoreMaxRestarts"),
        (
            "PodFailurePolicy",
            "Pod default/hosts-0-3-x2x7q has condition DisruptionTarget matching FailJob rule at index 1",
            "RestartJobSetAndIgnoreMaxRestarts",
        ),
        # Status 1, or that of processes whose peer was lost: a restart that counts.
        ("BackoffLimitExceeded", "Job has reached the specified backoff limit", None),
    ],
)
def test_a_mistake_ends_a_jobset_and_being_stopped_does_not_count(reason, message, action):
    """As JobSet reads its rules (pkg/controllers/failure_policy.go): the first whose reason and message fit."""
    manifest = yaml.safe_load(gke.render(job("kosmos1_v5p")))
    fitting = [
        rule["action"]
        for rule in manifest["spec"]["failurePolicy"]["rules"]
        if reason in rule["onJobFailureReasons"]
        and any(re.search(pattern, message) for pattern in rule.get("onJobFailureMessagePatterns", [""]))
    ]
    assert next(iter(fitting), None) == action
    (codes, _) = jobs_of(manifest)[0]["spec"]["podFailurePolicy"]["rules"]
    assert codes["onExitCodes"]["values"] == [2, 75]  # or the reason would be the backoff limit


def test_kubernetes_expands_nothing_in_values_and_in_the_command():
    container = pod_of(job("kosmos1_v5p", env={"A": "$(B) $C"}, overrides={"a": "$(A)"}))["containers"][0]
    assert container["env"] == [{"name": "A", "value": "$$(B) $$C"}]
    assert container["command"][-1] == "--config.a=$$(A)"


def test_a_single_gpu_host_needs_no_network():
    pod = pod_of(job("kosmos1_h100", "h100:1x8"))
    assert "initContainers" not in pod
    assert [volume["name"] for volume in pod["volumes"]] == ["shm", "mount-0", "mount-1"]


@pytest.mark.parametrize("capacity, label", [("spot", "gke-spot"), ("reserved", "reservation-name")])
def test_capacity_chooses_the_nodes(capacity, label):
    reservation = "mine" if capacity == "reserved" else ""
    pod = pod_of(job("kosmos1_v5p", capacity=capacity, reservation=reservation))
    assert pod["nodeSelector"][f"cloud.google.com/{label}"] == (reservation or "true")


def test_a_claim_is_mounted_without_the_driver_for_buckets():
    pod = pod_of(job("kosmos1_v5p", mounts={"/runs": "pvc:runs"}))
    assert pod["volumes"][1] == {"name": "mount-0", "persistentVolumeClaim": {"claimName": "runs"}}


def test_the_environment_of_the_job_wins_over_the_network_s():
    environment = pod_of(job("kosmos1_h100", env={"NCCL_ALGO": "Tree"}))["containers"][0]["env"]
    assert {each["name"]: each["value"] for each in environment}["NCCL_ALGO"] == "Tree"
