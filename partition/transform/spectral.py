"""A modality made from the training interactions: the position of each item in the spectrum of the user-item graph.

It does not use held-out interactions, so a model may be trained and evaluated with it as with other features. An item
without a training interaction has a row of zeros.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.sparse.linalg import svds

from partition.errors import InputError
from partition.threads import one_for_blas


def spectral_features(user: np.ndarray, item: np.ndarray, users: int, items: int, dim: int) -> np.ndarray:
    """[items, dim] float32, unit rows: right singular vectors of D_u^-1/2 R D_i^-1/2, times their singular values.

    R is the matrix of the training interactions. The first singular vector only expresses popularity and is left out;
    the next `dim` are taken, in descending order. Signs are chosen so that the largest entry of each vector is
    positive: the same interactions give the same features.

    Args:
        user, item: [n] int64 training interactions, pairs unique.
        users, items: number of users and items.
        dim: width.

    Raises:
        InputError: fewer dimensions than `dim`.
    """
    if dim + 1 >= min(users, items):
        raise InputError(f"--spectral {dim}: {users} users and {items} items have fewer dimensions", "option.spectral")
    matrix = sp.csr_array((np.ones(len(item)), (user, item)), shape=(users, items))
    degrees = np.bincount(user, minlength=users), np.bincount(item, minlength=items)
    left, right = (sp.diags_array(1 / np.sqrt(np.maximum(degree, 1))) for degree in degrees)
    with one_for_blas():
        _, value, vector = svds(left @ matrix @ right, k=dim + 1, random_state=0)
    order = np.argsort(-value, kind="stable")[1:]
    rows = (vector[order] * value[order, None]).T
    rows *= np.sign(rows[np.abs(rows).argmax(0), np.arange(dim)])
    rows[degrees[1] == 0] = 0  # otherwise the noise of the solver is scaled to norm 1
    norm = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(norm > 0, norm, 1)).astype(np.float32)
