"""Jinja environments of the HTML pages: each self-contained, nothing fetched from anywhere."""

from __future__ import annotations

import jinja2


def environment(room: str) -> jinja2.Environment:
    """An environment of the templates of a command's room and of those that pages share.

    Args:
        room: the command's name, such as 'render'.
    """
    loaders = [jinja2.PackageLoader(package) for package in (f"jobs.{room}", "jobs._shared")]
    return jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders), autoescape=True, undefined=jinja2.StrictUndefined
    )
