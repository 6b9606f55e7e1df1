"""TorchRec and FBGEMM without two imports that they make for features this program does not use.

`torchrec` imports tensordict (and with it torch._dynamo) for one isinstance check; `fbgemm_gpu` and torch.distributed
import torch's symbolic shapes (and with them sympy) for what happens under torch.compile only: together a third of a
rank's start-up. Inside the context stand-ins take their place, which do the same for real objects and import the real
module when one turns up; afterwards an import of these modules gives the real ones.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

TENSORDICT, SHAPES = "tensordict", "torch.fx.experimental.symbolic_shapes"
# Functions of symbolic_shapes that pass plain booleans through.
GUARDS = ("expect_true", "guard_or_true", "guard_or_false", "guard_size_oblivious", "statically_known_true")
# Errors that only symbolic shapes raise: whoever catches them has nothing to catch without torch.compile.
ERRORS = ("GuardOnDataDependentSymNode",)


class _IsTensorDict(type):
    def __instancecheck__(cls, instance: object) -> bool:
        real = getattr(sys.modules.get(TENSORDICT), "TensorDict", cls)
        return real is not cls and not isinstance(real, _IsTensorDict) and isinstance(instance, real)


class _TensorDict(metaclass=_IsTensorDict):
    """An object is one if tensordict was imported and says so."""


def _guard(name: str) -> Any:
    def guard(condition: Any) -> Any:
        return condition if isinstance(condition, bool) else getattr(importlib.import_module(SHAPES), name)(condition)

    return guard


class _Shapes(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        # Something else is wanted of it: then the real module has to come after all.
        sys.modules.pop(SHAPES, None)
        return getattr(importlib.import_module(SHAPES), name)


@contextmanager
def light_imports() -> Iterator[None]:
    """Stands in for both modules, unless they are imported already."""
    tensordict, shapes = ModuleType(TENSORDICT), _Shapes(SHAPES)
    tensordict.TensorDict = _TensorDict  # type: ignore[attr-defined]
    for name in GUARDS:
        setattr(shapes, name, _guard(name))
    for name in ERRORS:
        setattr(shapes, name, type(name, (RuntimeError,), {}))
    placed = {name: module for name, module in ((TENSORDICT, tensordict), (SHAPES, shapes)) if name not in sys.modules}
    sys.modules.update(placed)
    try:
        yield
    finally:
        for name, module in placed.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]
