"""How JSON files are written: readable, and with few lines changed when a value changes."""

import json


def layout(value, indent=""):
    """Whatever fits into a line, and every list of numbers, on one line."""
    line = json.dumps(value, ensure_ascii=False)
    flat = isinstance(value, list) and not any(isinstance(item, (list, dict)) for item in value)
    if len(line) + len(indent) <= 110 or flat or not isinstance(value, (list, dict)):
        return line
    inner = indent + " "
    if isinstance(value, dict):
        rows = [
            f"{inner}{json.dumps(key, ensure_ascii=False)}: {layout(item, inner)}" for key, item in value.items()
        ]
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
    return "[\n" + ",\n".join(inner + layout(item, inner) for item in value) + f"\n{indent}]"
