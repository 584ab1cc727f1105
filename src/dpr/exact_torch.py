"""The best of all passages for each query on a GPU: blocked products with a running top-k."""

import numpy as np
import torch

PASSAGE_BLOCK = 65_536  # passages on the device at once
QUERY_BLOCK = 1_024  # queries scored at once


@torch.inference_mode()
def exact_topk_torch(
    query_emb: np.ndarray, passage_emb: np.ndarray, depth: int, scale: np.ndarray | None, device: str
) -> tuple[np.ndarray, np.ndarray]:
    """What `exact_topk` does, on a torch device.

    The device holds the queries and a block of passages as float32, one block of scores (256 MiB), and
    the best so far, 12 bytes a hit.

    Args:
        query_emb: float32 [Q, D].
        passage_emb: float32 or float16 [N, D]; a memory map is read block by block, once.
        depth: K, from 1 to N.
        scale: float32 [N], multiplied into the scores of each passage.
        device: As torch names it.

    Returns:
        Scores float32 [Q, K], falling along each row, and positions int64 [Q, K]; of equal scores the
        smaller position comes first, but at the last place any of them may be kept.
    """
    queries = torch.from_numpy(np.ascontiguousarray(query_emb, dtype=np.float32)).to(device)
    best = torch.empty((len(queries), 0), device=device)
    where = torch.empty((len(queries), 0), dtype=torch.int64, device=device)
    for start in range(0, len(passage_emb), PASSAGE_BLOCK):
        block = np.array(passage_emb[start : start + PASSAGE_BLOCK], dtype=np.float32)
        if scale is not None:
            block *= scale[start : start + PASSAGE_BLOCK, None]
        passages = torch.from_numpy(block).to(device)
        found = [
            (rows @ passages.T).topk(min(depth, len(passages)), dim=1) for rows in queries.split(QUERY_BLOCK)
        ]
        best = torch.cat([best, torch.cat([scores for scores, _ in found])], dim=1)
        where = torch.cat([where, torch.cat([positions for _, positions in found]) + start], dim=1)
        best, kept = best.topk(min(depth, best.shape[1]), dim=1)
        where = where.gather(1, kept)
    scores, positions = best.cpu().numpy(), where.cpu().numpy()
    order = np.lexsort((positions, -scores), axis=1)
    return np.take_along_axis(scores, order, 1), np.take_along_axis(positions, order, 1)
