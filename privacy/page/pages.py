"""Pages: templates beside their callers, one look (`style.css`), the same escaping everywhere."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2


def rendered(template: Path, view: Mapping[str, object], forms: Mapping[str, Callable[[Any], str]]) -> str:
    """The template filled in. A name that `view` lacks is an error; every text is escaped; `forms` are its filters."""
    return _compiled(template, tuple(sorted(forms.items(), key=lambda form: form[0]))).render(view)


@lru_cache(maxsize=8)  # a sweep fills in the same page for every point, and compiling it takes most of the time
def _compiled(template: Path, forms: tuple[tuple[str, Callable[[Any], str]], ...]) -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(forms)
    return environment.get_template(template.name)
