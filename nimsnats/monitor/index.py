"""The links to everything the HTTP port has, and the plain page of them that tools get at `/`."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import Final

LINKS: Final = (
    ("General", "varz"),
    ("JetStream", "jsz"),
    ("Connections", "connz"),
    ("Accounts", "accountz"),
    ("Account Stats", "accstatz"),
    ("Subscriptions", "subsz"),
    ("Routes", "routez"),
    ("LeafNodes", "leafz"),
    ("Gateways", "gatewayz"),
    ("Raft Groups", "raftz"),
    ("Health Probe", "healthz"),
    ("Health", "health"),
    ("Cluster Health", "health/cluster"),
    ("Registry Health", "health/registry"),
    ("Cluster Overview", "statusz"),
    ("Prometheus Metrics", "metrics"),
)

_STYLE: Final = """\
body { font-family: system-ui, sans-serif; margin: 2em; color: #1d2b22 }
a { display: block; padding: .25em 0; color: #2c6e49; text-decoration: none }
a:hover { text-decoration: underline }
span { color: #888; font-family: monospace; font-size: 12px; margin-left: .5em }"""


def page(title: str, version: str, links: Iterable[tuple[str, str]] = LINKS) -> str:
    """The page as HTML; `title` is the node's name."""
    rows = "\n".join(f'<a href="./{escape(p)}">{escape(text)}<span>/{escape(p)}</span></a>' for text, p in links)
    head = f'<head><meta charset="utf-8"><title>{escape(title)}</title>\n<style>\n{_STYLE}\n</style></head>'
    body = f"<body>\n<h1>{escape(title)}</h1>\n<p>nimsnats {escape(version)}</p>\n{rows}\n</body>"
    return f'<!doctype html>\n<html lang="en">\n{head}\n{body}\n</html>\n'
