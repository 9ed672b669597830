"""How many threads are worth starting: affinity, and a container's share of processor time."""

import os
from pathlib import Path

import pytest
from udean.runtime.system import threads


def tree(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "share"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        # seen from outside the container's name space: the path is not mounted here, the root is
        ({"proc/self/cgroup": "0::/system/x.scope\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 0.5),
        # a service in a slice: the tightest level counts
        (
            {
                "proc/self/cgroup": "0::/a.slice/b.service\n",
                "sys/fs/cgroup/a.slice/cpu.max": "200000 100000\n",
                "sys/fs/cgroup/a.slice/b.service/cpu.max": "800000 100000\n",
            },
            2.0,
        ),
        # version 1
        (
            {
                "proc/self/cgroup": "5:cpuset:/\n4:cpu,cpuacct:/docker/1\n0::/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            3.0,
        ),
        (
            {
                "proc/self/cgroup": "4:cpu:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            None,
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "nonsense\n"}, None),
    ],
)
def test_the_share_is_what_the_control_groups_say(tmp_path, files, share):
    assert threads.quota(tree(tmp_path, files)) == share


@pytest.mark.parametrize(("allowed", "wanted"), [({0, 1, 2, 3}, 2), ({0, 2}, 1), ({1, 2}, 2), ({3, 9}, 2)])
def test_hyper_threads_of_a_core_count_once(monkeypatch, tmp_path, allowed, wanted):
    """Processors 0 and 2 share a core, 1 and 3 another; of 9 nothing is known."""
    beside = {
        f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list": f"{n % 2},{n % 2 + 2}\n"
        for n in range(4)
    }
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: allowed, raising=False)
    monkeypatch.setattr(threads, "quota", lambda: None)
    assert threads.cores(tree(tmp_path, beside)) == wanted


@pytest.mark.parametrize(("share", "wanted"), [(None, 4), (0.5, 1), (1.5, 2), (2.0, 2), (64.0, 4)])
def test_no_more_threads_than_the_share_is_worth(monkeypatch, share, wanted):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(threads, "quota", lambda: share)
    assert threads.cores(Path("nowhere")) == wanted
