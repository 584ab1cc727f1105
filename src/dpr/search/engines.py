"""The engines behind an index: exact, FAISS's and hnswlib's, all searching for the largest dot products.

Each returns scores where larger is better, whatever it computes inside. If FAISS finds fewer passages
than requested, the other positions are -1, with scores of minus infinity; hnswlib raises an error.
"""

from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from dpr.search.exact import exact_topk, exact_topk_torch, to_device

# kind → its settings with their defaults; 0 means `num_lists(N)` lists, or about D / 4 code bytes
SETTINGS: dict[str, dict[str, int]] = {
    "exact": {},
    "faiss-flat": {},
    "faiss-sqfp16": {},
    "faiss-hnsw": {"m": 32, "ef_construction": 200, "ef_search": 128},
    "faiss-ivf": {"num_lists": 0, "num_probes": 16},
    "faiss-ivfpq": {"num_lists": 0, "num_probes": 16, "code_bytes": 0},
    "hnswlib": {"m": 32, "ef_construction": 200, "ef_search": 128},
}
SEARCH_SETTINGS = ("ef_search", "num_probes")  # these can be changed after building
VECTORS_A_CENTROID = 39  # FAISS warns if it has fewer vectors per centroid
PQ_CENTROIDS = 256
FILE = "index.bin"  # file name for engines that write a single file
BATCH = 65_536  # vectors added at once


def num_lists(num_passages: int) -> int:
    """Number of inverted lists for N passages: 4 √N, or fewer if each would learn from too few vectors."""
    return max(1, min(int(4 * num_passages**0.5), num_passages // VECTORS_A_CENTROID))


def chosen_settings(kind: str, settings: dict[str, int], count: int, dimension: int) -> dict[str, int]:
    """The kind's default settings, overridden by the caller's and checked against N and D.

    Raises:
        ValueError: The kind does not have a setting, a setting is not a count, there are fewer vectors
            than centroids to learn, or `code_bytes` does not divide D.
    """
    unknown = set(settings) - set(SETTINGS[kind])
    if unknown:
        raise ValueError(f"{kind} has no setting {sorted(unknown)}, only {list(SETTINGS[kind])}")
    chosen = {**SETTINGS[kind], **settings}
    if chosen.get("num_lists") == 0:
        chosen["num_lists"] = num_lists(count)
    if chosen.get("code_bytes") == 0:
        chosen["code_bytes"] = max(c for c in range(1, max(2, dimension // 4 + 1)) if dimension % c == 0)
    for name, value in chosen.items():
        check_setting(kind, name, value)
    needed = centroids(kind, chosen)
    if count < needed:
        raise ValueError(
            f"{kind} learns {needed} centroids and needs as many vectors, better {VECTORS_A_CENTROID} "
            f"times, got {count}; use exact"
        )
    if "code_bytes" in chosen and dimension % chosen["code_bytes"]:
        raise ValueError(f"{kind}: code_bytes must divide {dimension}, got {chosen['code_bytes']}")
    return chosen


def centroids(kind: str, settings: dict[str, int]) -> int:
    """How many centroids a kind of index learns with these settings, for which it needs as many vectors."""
    return max(settings.get("num_lists", 0), PQ_CENTROIDS if kind == "faiss-ivfpq" else 0)


def check_setting(kind: str, name: str, value: int) -> None:
    """Check that a setting is a count.

    Raises:
        ValueError: It is not a whole number of at least 1.
    """
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{kind}: {name} must be a whole number of at least 1, got {value!r}")


class ExactEngine:
    """Our own exhaustive search, on a GPU if there is one, of vectors in memory or memory-mapped."""

    def __init__(self, vectors: np.ndarray, scale: np.ndarray | None):
        self.vectors, self.scale = vectors, scale
        self.num_bytes = vectors.nbytes + (scale.nbytes if scale is not None else 0)

    def search(self, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores [Q, K] and positions [Q, K] of the K = `depth` best vectors for each query."""
        if not torch.cuda.is_available():
            return exact_topk(queries, self.vectors, depth, self.scale)
        if self._on_gpu is not None:
            return exact_topk_torch(queries, self._on_gpu, depth, None, "cuda")
        return exact_topk_torch(queries, self.vectors, depth, self.scale, "cuda")

    @cached_property
    def _on_gpu(self) -> torch.Tensor | None:
        """The vectors on the GPU, as copying them takes longer than a search, or None.

        They are kept there if they take at most half of the memory that is free at the first search.
        """
        free, _ = torch.cuda.mem_get_info()
        return to_device(self.vectors, self.scale, "cuda") if 8 * self.vectors.size <= free else None

    def save(self, folder: Path) -> None:
        """Write the unscaled vectors, and their scale if there is one."""
        for name, array in (("vectors", self.vectors), ("scale", self.scale)):
            if array is not None:
                np.save(folder / f"{name}.npy", array)

    @classmethod
    def load(cls, folder: Path) -> "ExactEngine":
        """Open a saved index; its vectors are memory-mapped."""
        scale = np.load(folder / "scale.npy") if (folder / "scale.npy").is_file() else None
        return cls(np.load(folder / "vectors.npy", mmap_mode="r"), scale)


class FaissEngine:
    """A FAISS index with inner product, on every GPU that FAISS sees; HNSW stays on the CPU."""

    def __init__(self, index):
        import faiss

        self._cpu = index
        on_gpu = faiss.get_num_gpus() > 0 and not isinstance(index, faiss.IndexHNSW)
        self._index = faiss.index_cpu_to_all_gpus(index) if on_gpu else index
        self.num_bytes = len(faiss.serialize_index(index))

    @classmethod
    def build(cls, kind: str, vectors, dimension: int, count: int, settings: dict[str, int]) -> "FaissEngine":
        """Train the index if its kind learns, then add the vectors, an iterator of float32 blocks [n, D]."""
        import faiss

        lists = settings.get("num_lists")
        factory = {
            "faiss-flat": "Flat",
            "faiss-sqfp16": "SQfp16",
            "faiss-hnsw": f"HNSW{settings.get('m')},Flat",
            "faiss-ivf": f"IVF{lists},Flat",
            "faiss-ivfpq": f"IVF{lists},PQ{settings.get('code_bytes')}np",
        }[kind]
        index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
        if kind == "faiss-hnsw":
            index.hnsw.efConstruction = settings["ef_construction"]
        if kind == "faiss-ivfpq":
            index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1  # we check the number
        blocks = list(vectors) if not index.is_trained else vectors
        if not index.is_trained:
            index.train(np.concatenate(blocks))
        for block in blocks:
            index.add(block)
        engine = cls(index)
        for name in SEARCH_SETTINGS:
            if name in settings:
                engine.set(name, settings[name])
        return engine

    def search(self, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores [Q, K] and positions [Q, K] of the K = `depth` best vectors for each query."""
        scores, positions = self._index.search(np.ascontiguousarray(queries), depth)
        scores[positions < 0] = -np.inf
        return scores, positions

    def set(self, name: str, value: int) -> None:
        """Change `ef_search` or `num_probes`, which decide how widely it searches."""
        import faiss

        parameter = {"ef_search": "efSearch", "num_probes": "nprobe"}[name]
        space = faiss.GpuParameterSpace() if self._index is not self._cpu else faiss.ParameterSpace()
        space.set_index_parameter(self._index, parameter, value)

    def save(self, folder: Path) -> None:
        """Write the index."""
        import faiss

        faiss.write_index(self._cpu, str(folder / FILE))

    @classmethod
    def load(cls, folder: Path) -> "FaissEngine":
        """Read an index."""
        import faiss

        return cls(faiss.read_index(str(folder / FILE)))


class HnswlibEngine:
    """hnswlib's graph with inner product; its distance is 1 minus the product."""

    def __init__(self, index):
        self._index = index
        self.num_bytes = index.index_file_size()

    @classmethod
    def build(cls, vectors, dimension: int, count: int, settings: dict[str, int]) -> "HnswlibEngine":
        """Build the graph from the vectors, an iterator of float32 blocks [n, D]."""
        index = import_hnswlib().Index(space="ip", dim=dimension)
        index.init_index(count, M=settings["m"], ef_construction=settings["ef_construction"], random_seed=0)
        for block in vectors:
            index.add_items(block)
        engine = cls(index)
        engine.set("ef_search", settings["ef_search"])
        return engine

    def search(self, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores [Q, K] and positions [Q, K] of the K = `depth` best; `ef_search` is at least `depth`."""
        self._index.set_ef(max(self._ef, depth))
        try:
            positions, distances = self._index.knn_query(queries, k=depth)
        except RuntimeError as error:
            raise ValueError(
                f"hnswlib reached fewer than {depth} passages; build with a larger m ({error})"
            ) from None
        return 1 - distances, positions.astype(np.int64)

    def set(self, name: str, value: int) -> None:
        """Change `ef_search`, which decides how widely it searches."""
        self._ef = value

    def save(self, folder: Path) -> None:
        """Write the index."""
        self._index.save_index(str(folder / FILE))

    @classmethod
    def load(cls, folder: Path, dimension: int) -> "HnswlibEngine":
        """Read an index."""
        index = import_hnswlib().Index(space="ip", dim=dimension)
        index.load_index(str(folder / FILE))
        return cls(index)


def import_hnswlib():
    """Import hnswlib, or raise an error that says what to do without it.

    Raises:
        ValueError: hnswlib is not installed.
    """
    try:
        import hnswlib
    except ImportError:
        raise ValueError(
            "kind 'hnswlib' needs the package hnswlib, which is compiled on installing: "
            "`pip install hnswlib` with a C++ compiler (g++), or use 'faiss-hnsw'"
        ) from None
    return hnswlib
