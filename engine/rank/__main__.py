"""`python -m macluster.engine.rank`: the process of one rank.

The imports come first and take most of the start. Only then is the line of JSON read from
standard input that says which controller to join, so a rank can be started before the controller
is up, and no secret stands in the arguments or the environment.
"""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    from .app import RankApp

    # Open MPI starts the ranks itself: standard input reaches rank 0 alone, so the
    # line comes in the environment, and the rank's number from Open MPI.
    text = os.environ.pop("MACLUSTER_ORDERS", None) or sys.stdin.readline()
    if not text:
        sys.exit("macluster: the launcher closed the line before it gave any orders")
    orders = json.loads(text)
    rank = orders.get("rank", os.environ.get("OMPI_COMM_WORLD_RANK"))
    # Nothing on a rank may read from the launcher's line by accident.
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    app = RankApp.instance(connection_info_env=json.dumps(orders["connection"]))
    app.initialize([*orders["arguments"], f"--IPEngine.id={rank}"])
    app.start()


if __name__ == "__main__":
    main()
