"""One spelling for nested state: plain values as JSON, tensors by the path that leads to them.

`torch.save` writes which objects are shared, so equal states can give different bytes; here equal states give equal
bytes, and reading gives back every type exactly.
"""

import json
import math
from typing import Any

from torch import Tensor


def flatten(value: Any) -> tuple[str, dict[str, Tensor]]:
    """Split a state into its JSON text and its tensors by path.

    Handles None, bool, int, float (infinities and NaN, too), str, list, tuple, dict with str or int keys, and tensors.

    Returns:
        The JSON text, and the tensors by names such as `optimizer.state.0.exp_avg`.

    Raises:
        TypeError: With the path of a value of another type.
    """
    tensors: dict[str, Tensor] = {}
    tree = _flat(value, "", tensors)
    return json.dumps(tree, sort_keys=True, separators=(",", ":"), allow_nan=False) + "\n", tensors


def unflatten(text: str, tensors: dict[str, Tensor]) -> Any:
    """Undo `flatten`; dicts come back sorted by key."""
    return _whole(json.loads(text), tensors)


def _flat(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        if path in tensors:
            raise TypeError(f"{path}: two tensors have this path")
        tensors[path] = value
        return {"tensor": path}
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, list):
        return [_flat(item, f"{path}.{n}", tensors) for n, item in enumerate(value)]
    if isinstance(value, tuple):
        return {"tuple": [_flat(item, f"{path}.{n}", tensors) for n, item in enumerate(value)]}
    if isinstance(value, dict):
        return _flat_dict(value, path, tensors)
    raise TypeError(f"{path}: {type(value).__name__} is no type that a state can hold")


def _flat_dict(value: dict[Any, Any], path: str, tensors: dict[str, Tensor]) -> Any:
    rows = []
    for key in sorted(value, key=lambda key: (type(key).__name__, key)):
        if type(key) not in (str, int):
            raise TypeError(f"{path}: {key!r} is no key that a state can hold")
        rows.append([key, _flat(value[key], f"{path}.{key}".removeprefix("."), tensors)])
    return {"dict": rows}


def _whole(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, list):
        return [_whole(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "float":
        return float(content)
    if kind == "tuple":
        return tuple(_whole(item, tensors) for item in content)
    return {key: _whole(item, tensors) for key, item in content}
