"""Adds the pages that are drawn from the code to the site (``hooks`` of mkdocs.yml)."""

from __future__ import annotations

import keys
import methods
import parts
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from sparsebench.config.paths import config_files


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the methods into the navigation, by their kind."""
    assert config.nav is not None
    place = next(i for i, entry in enumerate(config.nav) if "Methods" in entry)
    groups = [
        {title: [{name: f"methods/{name}.md"} for name in members]}
        for title, members in methods.groups().items()
    ]
    config.nav[place] = {"Methods": ["methods/index.md", *groups]}
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Write the pages."""
    pages = {
        "methods/index.md": methods.overview(),
        "parts.md": parts.page(),
        "config.md": keys.page(),
        **{f"methods/{name}.md": methods.page(name) for name in config_files("method")},
    }
    for place, text in pages.items():
        files.append(File.generated(config, place, content=text))
    return files
