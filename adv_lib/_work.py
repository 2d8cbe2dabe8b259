"""How work is divided: several samples at a time, in threads, or as many as fit into a tensor."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

BUDGET = 2**18  # numbers in the largest tensor of a backward pass on a CPU: 1 MB in float32


def parallel_map(
    function: Callable, tasks: Sequence[tuple], jobs: int = -1, progress: bool | None = None
) -> list:
    """[function(*task) for task in tasks], several at a time.

    jobs: how many, as joblib's n_jobs: −1 means one for each core. They are threads, unless a
          `joblib.parallel_config` around the call names processes or a cluster. Where there is more
          than one, each has one thread of PyTorch, since threads of threads wait for each other.
    progress: whether to show a bar on stdout; None means only in a terminal.
    """
    from joblib import Parallel, delayed, effective_n_jobs
    from tqdm import tqdm

    threads, several = torch.get_num_threads(), effective_n_jobs(jobs) > 1 and len(tasks) > 1
    parallel = Parallel(n_jobs=jobs, prefer="threads", return_as="generator")
    one = partial(_alone, function) if several else function
    results = parallel(delayed(one)(*task) for task in tasks)
    hidden = None if progress is None else not progress
    try:
        return list(tqdm(results, total=len(tasks), disable=hidden, file=sys.stdout, leave=False))
    finally:
        torch.set_num_threads(threads)  # PyTorch gives to threads to come what was set last in any


def _alone(function: Callable, *task: object) -> object:
    """function(*task), with one thread of PyTorch in the thread or process that runs it."""
    torch.set_num_threads(1)
    return function(*task)


def runs(n: int, numbers: int, device: torch.device | None = None) -> Sequence[Tensor]:
    """0, …, n − 1 in runs of as many as fit into BUDGET when each takes this many numbers.

    On a GPU, which has no use for small tensors, 2⁹ times as many.
    """
    budget = BUDGET if device is None or torch.device(device).type == "cpu" else BUDGET * 2**9
    return torch.arange(n, device=device).split(max(1, budget // numbers)) if n else ()
