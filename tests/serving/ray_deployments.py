"""Replicas on a Ray of their own, deployed anew with each line of stdin: python -m … PORT.

A line is the replicas' --max-batch; "deployed" is printed once that is what answers.
"""

from __future__ import annotations

import sys

import ray
from ray import serve

from paliglass.serving.options import ServerOptions
from paliglass.serving.ray import application


def main() -> None:
    ray.init("local", num_cpus=6, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    for line in sys.stdin:
        options = ServerOptions(device="cpu", dtype="float32", max_batch=int(line))
        serve.run(application(options), name="paliglass")
        print("deployed", flush=True)
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
