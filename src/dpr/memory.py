"""What each kind of index takes, before it is built."""

from dpr.engines import PQ_CENTROIDS, SETTINGS, chosen_settings

FLOAT32, FLOAT16, INT32, INT64 = 4, 2, 4, 8


def plan_memory(num_passages: int, dim: int, **settings: int) -> dict[str, int]:
    """Bytes of vectors, codes, ids and links for each kind of index, under its default settings.

    The graphs' upper levels are taken at their expected size. Not counted are what searching and
    building hold besides, and the passages themselves.

    Args:
        num_passages: N, at least 1.
        dim: D, at least 1.
        **settings: Settings of some kinds to use in place of the defaults, as `m=16`, `code_bytes=48`.

    Returns:
        Kind → bytes; `exact` with float32 vectors, which may stay on disk (float16 takes half).

    Raises:
        ValueError: A size below 1, a setting no kind has, too few passages to learn from.

    Source: the file formats of FAISS 1.15 and hnswlib 0.8; Malkov and Yashunin 2018, section 4, for the
    levels.

    >>> plan_memory(8_841_823, 384)["faiss-sqfp16"] / 2**30  # MS MARCO, GiB
    6.324...
    """
    if num_passages < 1 or dim < 1:
        raise ValueError(f"num_passages and dim must be at least 1, got {num_passages} and {dim}")
    unknown = set(settings) - {name for known in SETTINGS.values() for name in known}
    if unknown:
        raise ValueError(f"no kind has the settings {sorted(unknown)}")
    bytes_of = {}
    for kind, defaults in SETTINGS.items():
        given = {name: value for name, value in settings.items() if name in defaults}
        chosen = chosen_settings(kind, given, num_passages, dim)
        bytes_of[kind] = round(_bytes(kind, chosen, num_passages, dim))
    return bytes_of


def _bytes(kind: str, settings: dict[str, int], count: int, dim: int) -> float:
    """Bytes of one kind."""
    vectors = count * dim * FLOAT32
    if kind == "faiss-sqfp16":
        return count * dim * FLOAT16
    if kind in ("faiss-hnsw", "hnswlib"):
        m = settings["m"]
        upper_levels = count / (m - 1)  # of all nodes together: one in m climbs to each next level
        if kind == "faiss-hnsw":
            links = (2 * m * count + m * upper_levels) * INT32
            return vectors + links + count * (INT32 + INT64)  # each node's level and offset
        links = ((2 * m + 1) * count + (m + 1) * upper_levels) * INT32
        return vectors + links + count * (INT32 + INT64)  # each node's number of levels and label
    if "num_lists" in settings:
        centroids = settings["num_lists"] * dim * FLOAT32
        if kind == "faiss-ivf":
            return vectors + count * INT64 + centroids
        return count * (settings["code_bytes"] + INT64) + centroids + PQ_CENTROIDS * dim * FLOAT32
    return vectors
