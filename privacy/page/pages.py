"""Pages: templates beside their callers, one look (`style.css`), the same escaping everywhere."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2


def rendered(template: Path, view: Mapping[str, object], forms: Mapping[str, Callable[[Any], str]]) -> str:
    """The template filled in. A name that `view` lacks is an error; every text is escaped; `forms` are its filters."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, Path(__file__).parent]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(forms)
    return environment.get_template(template.name).render(view)
