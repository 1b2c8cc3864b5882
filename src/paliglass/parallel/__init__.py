"""A model cut into parts, one for each of several processes (tensor parallelism, arXiv 1909.08053).

    processes.py         how processes find each other, agree, and tell who may speak; without torch
    tensor_parallel.py   modules replaced by a process's part of them, weights read part by part

The plain model knows nothing of it. Training's shards (FSDP2) are another thing: there a layer is
gathered when its turn comes; here it never is.
"""
