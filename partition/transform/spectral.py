"""A modality made of the training interactions: the items' places in the spectrum of the user-item graph.

Held-out interactions have no part in it, so it may be trained and judged with like any features. An item without a
training interaction has a row of zeros.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import svds

from partition.errors import InputError


def spectral_features(user: np.ndarray, item: np.ndarray, users: int, items: int, dim: int) -> np.ndarray:
    """[items, dim] float32, unit rows: right singular vectors of D_u^-1/2 R D_i^-1/2, times their singular values.

    R is the matrix of the training interactions. The first singular vector says only how popular an item is, and is
    left out; there are `dim` behind it, most of the spectrum first. Signs are chosen so that the largest entry of a
    vector is positive: the same interactions give the same features.

    Args:
        user, item: [n] int64 of the training interactions, pairs unique.
        users, items: how many there are.
        dim: width.

    Raises:
        InputError: more dimensions than there are.
    """
    if dim + 1 >= min(users, items):
        raise InputError(f"--spectral {dim}: {users} users and {items} items have fewer dimensions")
    matrix = sp.csr_array((np.ones(len(item)), (user, item)), shape=(users, items))
    degrees = np.bincount(user, minlength=users), np.bincount(item, minlength=items)
    left, right = (sp.diags_array(1 / np.sqrt(np.maximum(degree, 1))) for degree in degrees)
    _, value, vector = svds(left @ matrix @ right, k=dim + 1, random_state=0)
    order = np.argsort(-value, kind="stable")[1:]
    rows = (vector[order] * value[order, None]).T
    rows *= np.sign(rows[np.abs(rows).argmax(0), np.arange(dim)])
    rows[degrees[1] == 0] = 0  # else noise of the solver, blown up to norm 1
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(norm > 0, norm, 1)).astype(np.float32)
