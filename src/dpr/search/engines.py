"""The engines behind an index: exact, FAISS's and hnswlib's, all searching for the largest dot products.

Each returns scores where larger is better, whatever it computes inside. If FAISS finds fewer passages
than requested, the other positions are -1, with scores of minus infinity; hnswlib raises an error.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from dpr.search.exact import exact_topk, exact_topk_torch, to_device
from dpr.search.vector_shards import BLOCK, VectorShards, save_rows

# kind → its settings with their defaults; 0 means `num_lists(N)` lists, or about D / 4 code bytes (D / 8 for
# `faiss-opq`, which scores anew)
SETTINGS: dict[str, dict[str, int]] = {
    "exact": {},
    "faiss-flat": {},
    "faiss-sqfp16": {},
    "faiss-hnsw": {"m": 32, "ef_construction": 200, "ef_search": 128},
    "faiss-ivf": {"num_lists": 0, "num_probes": 16},
    "faiss-ivfpq": {"num_lists": 0, "num_probes": 16, "code_bytes": 0},
    "faiss-opq": {"num_lists": 0, "num_probes": 16, "code_bytes": 0, "rescored": 4},
    "hnswlib": {"m": 32, "ef_construction": 200, "ef_search": 128},
}
SEARCH_SETTINGS = ("ef_search", "num_probes", "rescored")  # these can be changed after building
VECTORS_A_CENTROID = 39  # FAISS warns if it has fewer vectors per centroid
MOST_A_CENTROID = 256  # FAISS uses no more vectors per centroid
OPQ_A_CENTROID, OPQ_ROUNDS = 64, 10  # `faiss-opq` learns from fewer, in fewer rounds: learning codes is slow
PQ_CENTROIDS = 256
RESCORED_AT_ONCE = 65_536  # vectors read at once to score candidates anew
FILE = "index.bin"  # file name for engines that write a single file

Vectors = np.ndarray | VectorShards


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
        wanted = dimension // (8 if kind == "faiss-opq" else 4)
        chosen["code_bytes"] = max(c for c in range(1, max(2, wanted + 1)) if dimension % c == 0)
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
    return max(settings.get("num_lists", 0), PQ_CENTROIDS if "code_bytes" in SETTINGS[kind] else 0)


def sample_size(kind: str, settings: dict[str, int], count: int) -> int:
    """How many of N vectors a kind of index with inverted lists learns from."""
    return min(count, _most_a_centroid(kind) * max(settings["num_lists"], PQ_CENTROIDS))


def _most_a_centroid(kind: str) -> int:
    return OPQ_A_CENTROID if kind == "faiss-opq" else MOST_A_CENTROID


def scaled_blocks(vectors: Vectors, scale: np.ndarray | None) -> Iterator[np.ndarray]:
    """Yield blocks of the vectors as float32 [n, D], multiplied by their scale if there is one."""
    for start in range(0, len(vectors), BLOCK):
        block = np.asarray(vectors[start : start + BLOCK], dtype=np.float32)
        yield np.ascontiguousarray(block if scale is None else block * scale[start : start + BLOCK, None])


def _sample(vectors: Vectors, scale: np.ndarray | None, size: int) -> np.ndarray:
    """So many of the vectors, evenly spaced, as float32 and scaled like the blocks."""
    rows = np.arange(size) * len(vectors) // size
    found = np.ascontiguousarray(vectors[rows], dtype=np.float32)
    return found if scale is None else found * scale[rows, None]


def check_setting(kind: str, name: str, value: int) -> None:
    """Check that a setting is a count.

    Raises:
        ValueError: It is not a whole number of at least 1.
    """
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{kind}: {name} must be a whole number of at least 1, got {value!r}")


class ExactEngine:
    """Our own exhaustive search, on a GPU if there is one, of vectors in memory or memory-mapped."""

    def __init__(self, vectors: Vectors, scale: np.ndarray | None):
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
        save_rows(folder / "vectors.npy", self.vectors)
        if self.scale is not None:
            np.save(folder / "scale.npy", self.scale)

    @classmethod
    def load(cls, folder: Path) -> "ExactEngine":
        """Open a saved index; its vectors are memory-mapped."""
        scale = np.load(folder / "scale.npy") if (folder / "scale.npy").is_file() else None
        return cls(np.load(folder / "vectors.npy", mmap_mode="r"), scale)


class FaissEngine:
    """A FAISS index with inner product, on every GPU that FAISS sees; HNSW and OPQ stay on the CPU."""

    def __init__(self, index):
        import faiss

        self._cpu = index
        on_cpu = isinstance(index, faiss.IndexHNSW | faiss.IndexPreTransform)  # GPUs give 2,048 candidates
        on_gpu = faiss.get_num_gpus() > 0 and not on_cpu
        self._index = faiss.index_cpu_to_all_gpus(index) if on_gpu else index
        self.num_bytes = _written_bytes(index)

    @classmethod
    def build(
        cls, kind: str, vectors: Vectors, scale: np.ndarray | None, settings: dict[str, int]
    ) -> "FaissEngine":
        """Train the index on a sample of the vectors [N, D] if its kind learns, then add all by blocks."""
        import faiss

        lists, code = settings.get("num_lists"), settings.get("code_bytes")
        factory = {
            "faiss-flat": "Flat",
            "faiss-sqfp16": "SQfp16",
            "faiss-hnsw": f"HNSW{settings.get('m')},Flat",
            "faiss-ivf": f"IVF{lists},Flat",
            "faiss-ivfpq": f"IVF{lists},PQ{code}np",
            "faiss-opq": f"IVF{lists},PQ{code}np",
        }[kind]
        index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        if kind == "faiss-hnsw":
            index.hnsw.efConstruction = settings["ef_construction"]
        learning = [index.cp, index.pq.cp] if code else []
        for parameters in learning:
            parameters.min_points_per_centroid = 1  # we check the number
            parameters.max_points_per_centroid = _most_a_centroid(kind)
        sample = None
        if not index.is_trained:
            sample = _sample(vectors, scale, sample_size(kind, settings, len(vectors)))
        if kind == "faiss-opq":
            index.pq.cp.niter = OPQ_ROUNDS
            index = faiss.IndexPreTransform(_rotation(sample, code), index)
        if sample is not None:
            index.train(sample)
            del sample
        for block in scaled_blocks(vectors, scale):
            index.add(block)
        engine = cls(index)
        for name in ("ef_search", "num_probes"):
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


def _rotation(sample: np.ndarray, code_bytes: int):
    """FAISS's form of the rotation that spreads the variance evenly over the parts of a code.

    The axes are the principal ones; from the largest variance down, each goes to the part with the smallest
    product of variances that has room.

    Source: Ge, He, Ke and Sun 2013, Optimized product quantization, section 3.2 (the parametric solution).
    """
    import faiss

    dimension, mean = sample.shape[1], sample.mean(axis=0, dtype=np.float64)
    covariance = (sample.T @ sample).astype(np.float64) / len(sample) - np.outer(mean, mean)
    variances, axes = np.linalg.eigh(covariance)
    least = max(1e-6 * variances.max(), np.finfo(np.float32).tiny)
    logs = np.log(np.maximum(variances, least) / least)
    parts: list[list[int]] = [[] for _ in range(code_bytes)]
    for axis in np.argsort(-variances):
        room = (part for part in parts if len(part) < dimension // code_bytes)
        min(room, key=lambda part: logs[part].sum()).append(int(axis))
    rotation = faiss.LinearTransform(dimension, dimension, False)
    turned = axes.T[[axis for part in parts for axis in part]]
    faiss.copy_array_to_vector(np.ascontiguousarray(turned, dtype=np.float32).ravel(), rotation.A)
    rotation.is_trained = rotation.is_orthonormal = True
    return rotation


def _written_bytes(index) -> int:
    """The size of a FAISS index when it is written, counted without a copy of it."""
    import faiss

    sizes: list[int] = []
    faiss.write_index(index, faiss.PyCallbackIOWriter(lambda part: sizes.append(len(part))))
    return sum(sizes)


class RescoredEngine:
    """FAISS's codes name candidates, several for each hit; the vectors themselves then give the scores.

    The vectors are in memory or memory-mapped; of these, only the candidates' are read.
    """

    def __init__(self, codes: FaissEngine, exact: ExactEngine, rescored: int):
        self._codes, self._exact, self._rescored = codes, exact, rescored
        self.num_bytes = codes.num_bytes + exact.num_bytes

    @classmethod
    def build(
        cls, kind: str, vectors: Vectors, scale: np.ndarray | None, settings: dict[str, int]
    ) -> "RescoredEngine":
        """Build the index of codes; the vectors [N, D] are kept as they are."""
        codes = FaissEngine.build(kind, vectors, scale, settings)
        return cls(codes, ExactEngine(vectors, scale), settings["rescored"])

    def search(self, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores [Q, K] and positions [Q, K] of the K = `depth` best candidates for each query."""
        vectors, scale = self._exact.vectors, self._exact.scale
        candidates = min(depth * self._rescored, len(vectors))
        at_once = max(1, RESCORED_AT_ONCE // candidates)
        scores = np.empty((len(queries), depth), dtype=np.float32)
        positions = np.empty((len(queries), depth), dtype=np.int64)
        for start in range(0, len(queries), at_once):
            part = slice(start, start + at_once)
            rows = np.sort(self._codes.search(queries[part], candidates)[1], axis=1)
            found = np.asarray(vectors[rows], dtype=np.float32) @ queries[part, :, None]
            found = found[..., 0] if scale is None else found[..., 0] * scale[rows]
            found[rows < 0] = -np.inf
            order = np.argsort(-found, axis=1, kind="stable")[:, :depth]
            scores[part] = np.take_along_axis(found, order, 1)
            positions[part] = np.take_along_axis(rows, order, 1)
        return scores, positions

    def set(self, name: str, value: int) -> None:
        """Change `num_probes`, or `rescored`, the candidates for each hit."""
        if name == "rescored":
            self._rescored = value
        else:
            self._codes.set(name, value)

    def save(self, folder: Path) -> None:
        """Write the index of codes and the vectors."""
        self._codes.save(folder)
        self._exact.save(folder)

    @classmethod
    def load(cls, folder: Path, rescored: int) -> "RescoredEngine":
        """Read the codes; the vectors are memory-mapped."""
        return cls(FaissEngine.load(folder), ExactEngine.load(folder), rescored)


class HnswlibEngine:
    """hnswlib's graph with inner product; its distance is 1 minus the product."""

    def __init__(self, index):
        self._index = index
        self.num_bytes = index.index_file_size()

    @classmethod
    def build(cls, vectors: Vectors, scale: np.ndarray | None, settings: dict[str, int]) -> "HnswlibEngine":
        """Build the graph, adding the vectors [N, D] block by block."""
        count, dimension = vectors.shape
        index = import_hnswlib().Index(space="ip", dim=dimension)
        index.init_index(count, M=settings["m"], ef_construction=settings["ef_construction"], random_seed=0)
        for block in scaled_blocks(vectors, scale):
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
