"""`privet tasks`: what can be trained here."""

import importlib.util
import json
import keyword
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from ..privacy.errors import TaskError, UsageError


def tasks(
    name: Annotated[str | None, typer.Argument(help="A task; or `new`, to write one.")] = None,
    new_name: Annotated[
        str | None, typer.Argument(help="With `new`: the new task's name.", metavar="[NEW-NAME]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List what can be trained here, show one task, or write a new one (privet tasks new NAME)."""
    if name == "new":
        _write_task(new_name)
        return
    if new_name is not None:
        raise UsageError(f"privet tasks {name} takes no second name", "privet tasks new NAME")
    from .tasks.registry import installed_tasks

    described = [_described(found) for found in ([name] if name else installed_tasks())]
    if as_json:
        print(json.dumps(described[0] if name else described))
    elif name:
        print("\n".join(f"{key}: {_plain(value)}" for key, value in described[0].items()))
    else:
        for task in described:
            print(f"{task['name']}: {task['title']} ({task['licence']})")


def _described(name: str) -> dict[str, Any]:
    from .tasks.protocol import resolved_options
    from .tasks.registry import load_task

    task = load_task(name)
    options = resolved_options(task, {})
    facts = task.facts(options)
    model = task.model(options)
    return {
        "name": task.name,
        "version": task.version,
        "title": facts.title,
        "data": facts.source,
        "licence": facts.licence,
        "input shape": list(facts.input_shape),
        "input range": list(facts.input_range),
        "classes": list(facts.classes),
        "metrics": sorted(_metrics(task, model, facts)),
        "model options": dict(task.options),
        "trainable parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def _metrics(task: Any, model: Any, facts: Any) -> list[str]:
    import torch

    records = facts.example(2, torch.Generator().manual_seed(0))
    model.eval()
    with torch.no_grad():
        return list(task.metrics(model(records.inputs), records.targets))


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} = {default!r}" for key, default in value.items()) or "none"
    return ", ".join(str(item) for item in value) if isinstance(value, list) else str(value)


def _write_task(name: str | None) -> None:
    """A package of one task: its module and the pyproject.toml that registers it."""
    if name is None or not re.fullmatch(r"[a-z][a-z0-9-]{0,40}", name) or keyword.iskeyword(name.replace("-", "_")):
        raise UsageError(
            f"{name or 'no name'}: a task's name has lower-case letters, digits and dashes",
            "privet tasks new my-task",
        )
    folder, module = Path(name), name.replace("-", "_")
    if folder.exists():
        raise TaskError(f"{folder}: exists already", "give another name")
    if importlib.util.find_spec(module) is not None:  # `json` would hide Python's own, `torch` would import itself
        raise TaskError(f"{name}: a module {module} is installed already", "give another name")
    words = {"NAME": name, "MODULE": module, "CLASS": _class_name(name)}
    templates = Path(__file__).parent / "tasks"
    folder.mkdir()
    for template, target in (("task.py.tmpl", f"{module}.py"), ("pyproject.toml.tmpl", "pyproject.toml")):
        text = (templates / template).read_text(encoding="utf-8")
        for word, meaning in words.items():
            text = text.replace(f"@{word}@", meaning)
        (folder / target).write_text(text, encoding="utf-8")
    print(f"wrote {folder / (module + '.py')}; next: pip install -e {folder}, then privet tasks {name}")


def _class_name(name: str) -> str:
    """`my-data` is class MyDataTask: the ending keeps it apart from what the module imports."""
    return "".join(part.capitalize() for part in name.removesuffix("-task").split("-")) + "Task"
