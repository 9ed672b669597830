"""`--ray`: a cohort over the machines of a Ray cluster, or over this machine's GPUs or cores.

A worker is an actor that holds one warm engine (`workers`): while the network processes a scan, the next one
is read and the previous one is written, in threads of the same process, so that no voxels travel. The driver
(`driver`) keeps a few scans in flight for each worker, is the only one to write the manifest, and replaces
workers that die. A scan that kills its worker twice is set aside, so that it cannot stop the cohort.

Paths must mean the same on every machine: a shared file system is assumed. Ray (docs.ray.io, "Ray Core") is
imported when a cluster is requested (`connection`).
"""

from .connection import ADDRESS
from .driver import Cluster

__all__ = ["ADDRESS", "Cluster"]
