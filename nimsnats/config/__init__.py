"""Everything that can be set about a node, from its four sources: flags, environment, file, defaults."""

from nimsnats.config.durations import format_duration, parse_duration
from nimsnats.config.fields import ConfigError, FieldError, split_address
from nimsnats.config.flags import NodeFlags, ServerFlags
from nimsnats.config.load import VARIABLES, check_file, load_node, load_server
from nimsnats.config.settings import (
    AccountSettings,
    ClusterSettings,
    ForestSettings,
    MonitorSettings,
    RegistrySettings,
    Settings,
    WebhookSettings,
    for_node,
    for_server,
)

__all__ = [
    "VARIABLES",
    "AccountSettings",
    "ClusterSettings",
    "ConfigError",
    "FieldError",
    "ForestSettings",
    "MonitorSettings",
    "NodeFlags",
    "RegistrySettings",
    "ServerFlags",
    "Settings",
    "WebhookSettings",
    "check_file",
    "for_node",
    "for_server",
    "format_duration",
    "load_node",
    "load_server",
    "parse_duration",
    "split_address",
]
