"""gcloud checks its flags before it asks who we are: without an account, that question is what a good command gets."""

import os
import shutil
import subprocess

import pytest

from launch import tpu_vm
from tests.launch.cases import job

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("gcloud"), reason="gcloud is not installed"),
]


def gcloud(script: str, verb: str, tmp_path) -> str:
    environment = os.environ | {
        "CLOUDSDK_CONFIG": str(tmp_path),
        "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
        "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
    }
    command = ["bash", "-c", script, "bash", verb]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120).stderr


@pytest.mark.parametrize("verb", ["create", "state", "logs", "stop"])
@pytest.mark.parametrize("name", ["kosmos1_v5p", "kosmos1_v5e"])
def test_gcloud_knows_every_flag(name, verb, tmp_path):
    message = gcloud(tpu_vm.render(job(name)), verb, tmp_path)
    assert "You do not currently have an active account selected" in message


@pytest.mark.parametrize("topology", ["v4:4x4x16", "v5e:1x1", "v5p:4x4x16", "v6e:8x16"])
def test_gcloud_knows_every_type_of_tpu_by_its_shape(topology, tmp_path):
    message = gcloud(tpu_vm.render(job("kosmos1_v5p", topology)), "create", tmp_path)
    assert "You do not currently have an active account selected" in message


def test_gcloud_refuses_a_flag_that_it_does_not_know(tmp_path):
    script = tpu_vm.render(job("kosmos1_v5e")).replace("--spot", "--spott")
    assert "unrecognized arguments: --spott" in gcloud(script, "create", tmp_path)
