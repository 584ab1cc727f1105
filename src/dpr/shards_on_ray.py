"""Shards made by several processes, on one machine or on many, with Ray: the files that one process makes.

Each worker is an actor of Ray Data's pool. It is sent the model once, is handed one shard at a time, reads
the shard's texts itself and writes the shard all or nothing, with its seconds and checksum. So a worker that
dies loses the shard in its hands, which Ray has made again, and the folder can be finished without Ray.

Source: https://docs.ray.io/en/latest/data/transforming-data.html (stateful transforms), Ray 2.60.
"""

import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any, Protocol

from dpr.shards import ShardFolder, write_shards

ENGINES = ("local", "ray")
RETRIES = 3  # how often a worker that died is started again, and a shard given out again
SPARE = 2  # CPUs that a Ray of our own has beside those of its workers: with none it waits for ever
LONGEST = 30  # characters of a folder in which the paths of Ray's sockets fit into their 107 bytes
OWN = {  # of a Ray of our own, unless set otherwise: nothing is sent home, errors are raised, not logged,
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_worker_niceness": "0",  # and workers have this process's priority
}


class ShardWork(Protocol):
    """What makes and writes shards, in this process or in one that it is sent to."""

    @property
    def device(self) -> str:
        """The device that its model is on."""

    def move(self, device: str) -> None:
        """Move its model to another device."""

    def make(self, items: Iterable[range], progress: Callable[[int], object]) -> Iterator[Any]:
        """Yield the content of each shard, given by its items; reports how many are newly done."""

    def save(self, path: Path, items: range, content: Any) -> None:
        """Write a shard's content all or nothing."""


def check_engine(engine: str, workers: int | None) -> None:
    """Check what is to make the shards.

    Raises:
        ValueError: An unknown engine, workers without Ray or fewer than 1, or Ray is not installed.
    """
    if engine not in ENGINES:
        raise ValueError(f"engine must be one of {ENGINES}, got {engine!r}")
    if workers is not None and (engine != "ray" or workers < 1):
        raise ValueError(f"workers must be at least 1 and are for engine 'ray', got {workers} for {engine!r}")
    if engine == "ray" and not (find_spec("ray") and find_spec("pyarrow")):
        raise ValueError("engine 'ray' needs the package ray: `pip install 'ray[data]'`, or use 'local'")


def fill_missing(
    shards: ShardFolder,
    missing: Mapping[Path, range],
    work: ShardWork,
    label: str,
    unit: str,
    engine: str = "local",
    workers: int | None = None,
) -> None:
    """Make and write the missing shards of a folder that is open for writing, with a progress bar.

    Args:
        shards: The folder.
        missing: The entries of its `items` that are still to be made.
        work: Makes and writes them.
        label: Text of the progress bar.
        unit: Name of one item on the progress bar.
        engine: `local` makes them one after the other in this process, `ray` in several workers.
        workers: Number of workers; by default the cluster's GPUs or, if it has none, its cores.

    Raises:
        ValueError: The cluster has too few CPUs or GPUs, `work` cannot be sent, or as `work` raises.
        OSError: Writing failed; shards written earlier are kept.
        RuntimeError: A worker died `RETRIES` + 1 times; shards written earlier are kept.
    """
    if engine == "local":
        shards.fill(missing, lambda progress: work.make(missing.values(), progress), work.save, label, unit)
    elif missing:
        with _cluster(workers) as (num_workers, on_gpu), shards.bar(missing, label, unit) as bar:
            for num_items in _on_ray(missing, work, min(num_workers, len(missing)), on_gpu):
                bar.update(num_items)


@contextmanager
def _cluster(workers: int | None) -> Iterator[tuple[int, bool]]:
    """Use the cluster there is, or start Ray here until the end; yield workers, and whether on GPUs."""
    for name, value in OWN.items():
        os.environ.setdefault(name, value)
    import ray

    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if ray.is_initialized():
        yield _shared_out(ray.cluster_resources(), workers, 1)
        return
    with TemporaryDirectory(prefix="ray-", dir=_short_folder(), ignore_cleanup_errors=True) as folder:
        if not os.environ.get("RAY_ADDRESS"):
            num_cpus = (workers or os.cpu_count() or 1) + SPARE
            quiet |= {
                "address": "local",
                "num_cpus": num_cpus,
                "include_dashboard": False,
                "_temp_dir": folder,
            }
        try:
            ray.init(**quiet)
            yield _shared_out(ray.cluster_resources(), workers, SPARE if "num_cpus" in quiet else 1)
        finally:  # also of a start that failed
            ray.shutdown()


def _short_folder() -> str | None:
    """Where Ray's temporary folder is made; None for the usual place."""
    return "/tmp" if len(gettempdir()) > LONGEST else None


def _shared_out(there: Mapping[str, float], workers: int | None, spare: int) -> tuple[int, bool]:
    """The number of workers, and whether each has a GPU.

    Args:
        there: The cluster's resources.
        workers: The number asked for, or None.
        spare: CPUs that are no worker's if that number is not asked for.

    Raises:
        ValueError: There are too few CPUs, one more than workers, or GPUs.
    """
    cpus, gpus = int(there.get("CPU", 0)), int(there.get("GPU", 0))
    num_workers = workers or max(1, min(gpus or cpus, cpus - spare))
    if cpus < num_workers + 1:
        raise ValueError(
            f"{num_workers} workers need {num_workers + 1} CPUs, the Ray cluster has {cpus}; give fewer "
            "workers, or declare more CPUs with ray.init(num_cpus=…)"
        )
    if 0 < gpus < num_workers:
        raise ValueError(
            f"{num_workers} workers need a GPU each, the Ray cluster has {gpus}; give {gpus} workers"
        )
    return num_workers, gpus > 0


def _on_ray(missing: Mapping[Path, range], work: ShardWork, num_workers: int, on_gpu: bool) -> Iterator[int]:
    """Yield the number of items of each shard that has been made and written; raise a worker's own error."""
    from ray.data import ActorPoolStrategy, DataContext, from_items
    from ray.exceptions import RayActorError

    rows = [
        {"path": str(path.resolve()), "start": items.start, "stop": items.stop}
        for path, items in missing.items()
    ]
    sent = _sent(work)
    with _only_ours(), DataContext.current(DataContext.get_current().copy()):
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.max_consecutive_actor_init_deaths = RETRIES
        made = from_items(rows, override_num_blocks=len(rows)).map_batches(
            _Worker,
            fn_constructor_args=[sent, on_gpu],
            batch_size=1,
            compute=ActorPoolStrategy(size=num_workers, max_tasks_in_flight_per_actor=1),
            num_gpus=1 if on_gpu else None,
            max_restarts=RETRIES,
            max_task_retries=RETRIES,
        )
        try:
            for row in made.iter_rows():
                if "error" in row:
                    raise row["error"]
                yield row["num_items"]
        except RayActorError as error:
            raise RuntimeError(
                f"a worker died {RETRIES + 1} times, perhaps for want of memory; the shards that are written "
                "are kept: run again with fewer workers or smaller batches"
            ) from error


def _sent(work: ShardWork) -> Any:
    """A reference to the work in Ray's object store, with its model on the CPU."""
    import ray

    device = work.device
    work.move("cpu")
    try:
        return ray.put(work)
    except TypeError as error:
        raise ValueError(
            f"the model cannot be sent to other processes, use engine='local': {error}"
        ) from None
    finally:
        work.move(device)


@contextmanager
def _only_ours() -> Iterator[None]:
    """Keep Ray Data from logging and warning: the bar is ours, and errors are raised."""
    log = logging.getLogger("ray.data")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of what Ray 2.64 will lack
            yield
    finally:
        log.setLevel(level)


class _Worker:
    """Makes and writes one shard at a time in a process of its own."""

    def __init__(self, sent: Any, on_gpu: bool):
        import ray

        self._work: ShardWork = ray.get(sent)
        if on_gpu:
            self._work.move("cuda")

    def __call__(self, shard: Mapping[str, Any]) -> dict[str, list[Any]]:
        path, items = Path(shard["path"][0]), range(int(shard["start"][0]), int(shard["stop"][0]))
        try:
            write_shards({path: items}, self._work.make([items], lambda done: None), self._work.save)
        except Exception as error:  # handed over as it is: Ray Data would put words of its own into it
            return {"error": [error]}
        return {"num_items": [len(items)]}
