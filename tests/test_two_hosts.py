"""torchrun over two hosts that share a file system and nothing else: network namespaces with a cable. ``make slow``.

Each has its own loopback, so that whatever talks to "localhost" by mistake finds nobody.
"""

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest
from tests.test_resume import EXPERIMENT, STEPS, TABLES, TWO, end_of

from ifsq.training.log import read_metrics

pytestmark = pytest.mark.slow
HOSTS = {"ifsq-a": "10.77.0.1", "ifsq-b": "10.77.0.2"}


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True)


@contextmanager
def two_hosts():
    """Two network namespaces and a cable between them. Needs root."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and iproute2")
    try:
        for host in HOSTS:
            ip("netns", "add", host)
        ip("link", "add", "cable", "netns", "ifsq-a", "type", "veth", "peer", "name", "cable", "netns", "ifsq-b")
        for host, address in HOSTS.items():
            ip("-n", host, "addr", "add", f"{address}/24", "dev", "cable")
            for link in ("lo", "cable"):
                ip("-n", host, "link", "set", link, "up")
        yield
    finally:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "del", host], check=False, capture_output=True)


def test_two_hosts_see_the_losses_of_one(tmp_path):
    (tmp_path / "run.toml").write_text(EXPERIMENT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    work = ["tokenizer", "train", "run.toml", "--device", "cpu", "--out"]
    subprocess.run([*TWO, *work, "one_host"], cwd=tmp_path, env=environment, check=True, timeout=300)
    with two_hosts():
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
        torchrun += ["--master-addr=10.77.0.1", "--master-port=29517"]
        processes = [
            subprocess.Popen(
                ["ip", "netns", "exec", host, *torchrun, f"--node-rank={rank}", "-m", "ifsq", *work, "two_hosts"],
                cwd=tmp_path,
                env={**environment, "GLOO_SOCKET_IFNAME": "cable"},
            )
            for rank, host in enumerate(HOSTS)
        ]
        try:
            assert [process.wait(timeout=300) for process in processes] == [0, 0]
        finally:
            for process in processes:
                process.kill()
                process.wait()
    one, two = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one_host", "two_hosts"))
    losses = [[row["loss"] for row in rows if "loss" in row] for rows in (one, two)]
    assert len(losses[0]) == STEPS
    assert losses[0] == losses[1]
    ends = [end_of(tmp_path / name) for name in ("one_host", "two_hosts")]
    assert all(ends[0][name][key].equal(ends[1][name][key]) for name in TABLES for key in ends[0][name])
