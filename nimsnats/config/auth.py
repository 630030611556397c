"""Who may connect: the `authorization` and `accounts` blocks.

Owns: their keys and the rules between them, with nats-server's error texts. What needs permissions, NKEYs, JWTs or
imports is refused as not supported.
"""

from __future__ import annotations

from nimsnats.broker.options import User
from nimsnats.config.fields import (
    FieldError,
    Reader,
    Report,
    as_bool,
    as_list,
    as_map,
    as_string,
    as_timeout,
    into,
    known,
    not_supported,
    read_block,
    string,
    switched_off,
)
from nimsnats.config.settings import AccountSettings, Settings
from nimsnats.protocol.conf import Item

RESERVED_ACCOUNT = "$G"


class Login:
    """A user and password, or a token, as they are collected from one block."""

    def __init__(self) -> None:
        self.user = ""
        self.password = ""
        self.token = ""
        self.timeout: float | None = None


def login_block(login: Login, block: str) -> dict[str, Reader]:
    """The keys that all authorization blocks share."""

    def timeout(item: Item, _key: str, _report: Report) -> None:
        login.timeout = as_timeout(item, block)

    return {
        **known("user username", string(into(login, "user"))),
        **known("password pass", string(into(login, "password"))),
        **known("timeout", timeout),
    }


def authorization(settings: Settings) -> Reader:
    """Reader of the top-level `authorization` block."""

    def read(item: Item, _key: str, report: Report) -> None:
        login = Login()
        users: list[User] = []

        def read_users(inner: Item, _name: str, _report: Report) -> None:
            users.extend(_users(inner, RESERVED_ACCOUNT, report))

        block = {
            **login_block(login, "authorization"),
            **known("token", string(into(login, "token"))),
            **known("users", read_users),
            **not_supported("permissions default_permissions default_permission auth_callout auth_hook"),
            **switched_off("proxy_required"),
        }
        read_block(as_map(item), block, report)
        if login.user and login.token:
            raise FieldError("Cannot have a user/pass and token")
        if login.user and users:
            raise FieldError("Can not have a single user/pass and a users array")
        if login.token and users:
            raise FieldError("Can not have a token and a users array")
        if login.user:
            users.append(User(login.user, login.password))
        settings.broker.token = login.token
        _add_users(settings, users)
        if login.timeout is not None:
            settings.broker.auth_timeout = login.timeout

    return read


def accounts(settings: Settings) -> Reader:
    """Reader of the `accounts` block: a map of accounts, or a list of names."""

    def read(item: Item, key: str, report: Report) -> None:
        if isinstance(item.value, list):
            for name in item.value:
                _account(settings, as_string(name), name, report)
        elif isinstance(item.value, dict):
            for name, inner in item.value.items():
                _account(settings, name, inner, report)
        else:
            raise FieldError(f"Expected {key} to be a map or an array of account names")

    return read


def _account(settings: Settings, name: str, item: Item, report: Report) -> None:
    if name == RESERVED_ACCOUNT:
        report.error(item.at, f'"{name}" is a Reserved Account')
        return
    if any(account.name == name for account in settings.accounts):
        report.error(item.at, f"Duplicate Account Entry: {name}")
        return
    account = AccountSettings(name)
    settings.accounts.append(account)
    if isinstance(item.value, str):
        return

    def users(inner: Item, _key: str, _report: Report) -> None:
        _add_users(settings, _users(inner, name, report))

    def jetstream(inner: Item, key: str, _report: Report) -> None:
        account.jetstream = _jetstream_switch(inner, key)

    block = {
        **known("users", users),
        **known("jetstream", jetstream),
        **not_supported("nkey exports imports mappings maps limits default_permissions default_permission permissions"),
        **not_supported("msg_trace trace_dest"),
    }
    try:
        read_block(as_map(item), block, report)
    except FieldError as error:
        report.error(item.at, str(error))


def _jetstream_switch(item: Item, key: str) -> bool:
    if isinstance(item.value, str):
        word = item.value.lower()
        if word not in ("enabled", "enable", "disabled", "disable"):
            raise FieldError(f"Expected 'enabled' or 'disabled' for string value, got '{item.value}'")
        return word.startswith("enable")
    if isinstance(item.value, dict):
        raise FieldError(f"limits in an account's {key} block are not supported yet; write {key}: enabled")
    return as_bool(item)


def _users(item: Item, account: str, report: Report) -> list[User]:
    """The users of a `users` list; the ones in error are reported and left out."""
    users: list[User] = []
    for entry in as_list(item, "users"):
        login = Login()
        block = {
            **login_block(login, "user"),
            **not_supported("nkey permissions permission authorization"),
            **not_supported("allowed_connection_types connection_types clients"),
            **switched_off("proxy_required"),
        }
        del block["timeout"]
        if not isinstance(entry.value, dict):
            report.error(entry.at, "Expected user entry to be a map/struct, got a plain value")
            continue
        read_block(entry.value, block, report)
        if not login.user:
            if not any(key.lower() == "nkey" for key in entry.value):
                report.error(entry.at, "User entry requires a user")
        else:
            users.append(User(login.user, login.password, account))
    return users


def _add_users(settings: Settings, users: list[User]) -> None:
    """Users of all blocks share one namespace."""
    for user in users:
        if any(known_user.name == user.name for known_user in settings.broker.users):
            raise FieldError(f'Duplicate user "{user.name}" detected')
        settings.broker.users.append(user)
