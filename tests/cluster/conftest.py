"""A Ray cluster of two machines, simulated on this one: a raylet each, real worker processes."""

import os
from collections.abc import Iterator
from typing import Any

import pytest

ray = pytest.importorskip("ray")
os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

SMALL = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """Two machines of one CPU each; this process is connected, so that worker processes serve many tests."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args=SMALL)
    made.add_node(num_cpus=1, object_store_memory=SMALL["object_store_memory"])
    ray.init(address=made.address, log_to_driver=False, logging_level="error")
    yield made
    ray.shutdown()
    made.shutdown()
