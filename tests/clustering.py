"""A sweep on a cluster of two nodes, one of which is removed midway, for test_experiment_ray.

    python clustering.py STORE TARGET

The 24 runs of killing.py. The second node is killed once four runs are done and while it is at
one. Prints, as JSON, how many failed, and what was said.
"""

import json
import os
import sys
import threading
import time
from pathlib import Path

os.environ["KERAS_BACKEND"] = "jax"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from killing import study
from ray.cluster_utils import Cluster

from jaxmeter import experiment


def runs_of(raylet: int, store: Path) -> list[str]:
    """Runs that are being computed by children of a process."""
    found = []
    for path in store.glob("runs/*/status.json"):
        try:
            status = json.loads(path.read_bytes())
            parent = Path(f"/proc/{status['pid']}/stat").read_text().rpartition(")")[2].split()[1]
        except (OSError, ValueError):
            continue
        if status["state"] == "running" and int(parent) == raylet:
            found.append(path.parent.name)
    return found


def main() -> None:
    """See above."""
    store, target = Path(sys.argv[1]), sys.argv[2]
    nodes = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    cluster = Cluster(initialize_head=True, head_node_args=nodes)
    second = cluster.add_node(**nodes)
    (raylet,) = (info.process.pid for info in second.all_processes["raylet"])
    ended: list[experiment.Outcome] = []
    said: list[str] = []
    removed: list[str] = []

    def remove() -> None:
        while not removed:
            time.sleep(0.01)
            if len(ended) >= 4 and (running := runs_of(raylet, store)):
                cluster.remove_node(second, allow_graceful=False)
                removed.extend(running)

    threading.Thread(target=remove, daemon=True).start()
    launcher = experiment.OnRay(address=cluster.address)
    opened = experiment.opened(store, said.append)
    summary = experiment.sweep(*study(target), opened, launcher=launcher, done=ended.append)
    cluster.shutdown()
    print(json.dumps({"failed": len(summary.failed), "said": said, "removed": removed}))


if __name__ == "__main__":
    main()
