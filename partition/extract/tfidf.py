"""Encodes texts without a model: TF-IDF reduced by a truncated SVD, saved so that new items can be encoded alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from partition.errors import InputError, one_line
from partition.extract.extra import needs_extra

_TERMS = 100_000  # the most frequent ones
_ENOUGH = 1000  # number of texts above which a term must occur in two of them: one alone says nothing about others
_OPTIONS: dict[str, Any] = {"strip_accents": "unicode", "token_pattern": r"(?u)\b\w+\b", "sublinear_tf": True}


@dataclass(frozen=True)
class TfIdf:
    """A fitted TF-IDF and SVD."""

    terms: np.ndarray  # [t] str
    idf: np.ndarray  # [t] float64
    components: np.ndarray  # [d, t] float64
    explained: float  # share of the variance of the TF-IDF rows that is kept

    def encode(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Rows [texts, d] float32, and whether a text has any of the terms [texts] bool: the row of another is zero."""
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(vocabulary=self.terms.tolist(), **_OPTIONS)
        vectorizer.idf_ = self.idf
        weights = vectorizer.transform(texts)
        return (weights @ self.components.T).astype(np.float32), np.diff(weights.indptr) > 0

    def save(self, path: Path) -> None:
        """Writes an .npz file."""
        with path.open("wb") as file:
            np.savez_compressed(
                file, terms=self.terms, idf=self.idf, components=self.components, explained=self.explained
            )


def fit(texts: list[str], dim: int, seed: int) -> TfIdf:
    """Fits terms, their weights and the SVD.

    Raises:
        InputError: scikit-learn is not installed, or there are fewer terms or texts than dimensions.
    """
    try:
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer
    except ImportError as error:
        raise needs_extra(error) from None
    vectorizer = TfidfVectorizer(min_df=2 if len(texts) > _ENOUGH else 1, max_features=_TERMS, **_OPTIONS)
    try:
        rows = vectorizer.fit_transform(texts)
    except ValueError:
        raise InputError(f"--tfidf {dim}: no usable word in the {len(texts)} texts", "extract.text") from None
    if dim > min(rows.shape):
        message = f"--tfidf {dim}: {rows.shape[0]} texts with {rows.shape[1]} terms give at most {min(rows.shape)}"
        raise InputError(message, "option.tfidf")
    with np.errstate(divide="ignore", invalid="ignore"):  # texts that are all alike have no variance
        reduction = TruncatedSVD(dim, random_state=seed).fit(rows)
    terms = np.array(vectorizer.get_feature_names_out(), str)
    explained = float(reduction.explained_variance_ratio_.sum())
    return TfIdf(terms, vectorizer.idf_, reduction.components_, explained if np.isfinite(explained) else 1.0)


def load(path: Path) -> TfIdf:
    """Reads a file written by `TfIdf.save`.

    Raises:
        InputError: no such file, or another kind of file.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            return TfIdf(stored["terms"], stored["idf"], stored["components"], float(stored["explained"]))
    except FileNotFoundError:
        raise InputError(f"--tfidf {path}: neither a number of dimensions nor a file", "option.tfidf") from None
    except Exception as error:  # a damaged file raises nearly anything (see partition.errors.reading)
        message = f"--tfidf {path}: not written by this command ({one_line(error)})"
        raise InputError(message, "option.tfidf") from None
