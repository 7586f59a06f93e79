"""The model's config that mmengine's training writes into a checkpoint, read as data.

It is the text of a Python file (``meta['cfg']``). mmengine would run it; here only ``model = ...`` is looked at, and
only numbers, text, lists, tuples and dicts are understood.
"""
import ast

#: What Python's parser raises for bad text; TypeError is that of a dict's key that is a list.
_BAD_TEXT = (SyntaxError, ValueError, TypeError, RecursionError, MemoryError)


def recorded_model(checkpoint: dict) -> dict | None:
    """The ``model`` of the config in a checkpoint.

    Returns:
        None where there is no such text, or where it holds more than data.
    """
    meta = checkpoint.get("meta")
    text = meta.get("cfg") if isinstance(meta, dict) else None
    if not isinstance(text, str):
        return None
    try:
        for statement in ast.parse(text).body:
            if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "model":
                model = _value(statement.value)
                return model if isinstance(model, dict) else None
    except _BAD_TEXT:
        pass
    return None


def holds_only(text: str, config: dict) -> bool:
    """Whether the text of a config is this data and nothing else, so that running it does nothing else."""
    try:
        read = {ast.unparse(statement.targets[0]): _value(statement.value) for statement in ast.parse(text).body}
    except (*_BAD_TEXT, AttributeError):  # AttributeError: a statement that is no assignment
        return False
    return read == config


def _value(node: ast.expr) -> object:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {keyword.arg: _value(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.Dict):
        return {_value(key): _value(value) for key, value in zip(node.keys, node.values, strict=True)}
    if isinstance(node, ast.List):
        return [_value(element) for element in node.elts]
    if isinstance(node, ast.Tuple):
        return tuple(_value(element) for element in node.elts)
    return ast.literal_eval(node)
