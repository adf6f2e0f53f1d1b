"""What a role may do on a PostgreSQL server; and its password, which only the server gets."""

import logging
import re
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from servers import OwnServer
from wfe_sql import (
    FindingKind,
    PostgresPersistenceProvider,
    StoreError,
    StoreReadOnlyError,
    StoreUnavailableError,
    connect,
)
from wfe_sql.testing import full_event, sample_instance

MakeRole = Callable[..., str]
Grant = Callable[[str], None]

SECRET = "hunter2/ä@:%?#"


@pytest.fixture
def grant(postgres_url: str) -> Grant:
    """Do what an error tells an administrator to grant."""

    def grant(message: str) -> None:
        said = re.findall(r"GRANT .*? TO \w+", message)
        assert said
        with psycopg.connect(postgres_url, autocommit=True) as administrator:
            for command in said:
                administrator.execute(command)

    return grant


async def _assert_usable(provider: PostgresPersistenceProvider) -> None:
    async with provider:
        await provider.create_new_workflow(sample_instance(id="w1"))
        await provider.create_event(full_event(id="e1"))
        assert (await provider.get_workflow_instance("w1")).id == "w1"


def _url_of(url: str, **changes: str) -> str:
    """Return a URL as a host would write it."""
    found = conninfo_to_dict(url) | changes
    options = "&".join(f"{key}={quote(str(value), safe='')}" for key, value in found.items())
    return f"postgresql://?{options}"


async def test_a_role_that_may_not_make_a_schema(schema: str, make_role: MakeRole, postgres_url: str) -> None:
    url = make_role()
    role = conninfo_to_dict(url)["user"]
    with pytest.raises(StoreError, match=rf"GRANT CREATE ON DATABASE \w+ TO {role} .*permission denied") as raised:
        await PostgresPersistenceProvider(url, schema=schema).open()
    (command,) = re.findall(r"GRANT CREATE ON DATABASE \w+ TO \w+", str(raised.value))
    with psycopg.connect(postgres_url, autocommit=True) as administrator:
        administrator.execute(command)
    await _assert_usable(PostgresPersistenceProvider(url, schema=schema))


async def test_a_role_that_may_make_tables_in_a_schema_that_exists(
    schema: str, make_role: MakeRole, postgres_url: str
) -> None:
    url = make_role()
    with psycopg.connect(postgres_url, autocommit=True) as administrator:
        administrator.execute(f"CREATE SCHEMA {schema}")
        with pytest.raises(StoreError, match="GRANT USAGE, CREATE ON SCHEMA") as raised:
            await PostgresPersistenceProvider(url, schema=schema).open()
        (command,) = re.findall(r"GRANT USAGE, CREATE ON SCHEMA \w+ TO \w+", str(raised.value))
        administrator.execute(command)
    await _assert_usable(PostgresPersistenceProvider(url, schema=schema))


async def test_a_role_with_rights_on_a_store_that_exists_only(
    schema: str, make_role: MakeRole, postgres_url: str, admin: Any
) -> None:
    async with PostgresPersistenceProvider(postgres_url, schema=schema):
        pass
    url = make_role()
    admin("grant_use", role=conninfo_to_dict(url)["user"])
    await _assert_usable(PostgresPersistenceProvider(url, schema=schema))


async def test_what_the_errors_say_is_enough(schema: str, make_role: MakeRole, postgres_url: str, grant: Grant) -> None:
    """A role without privileges on a complete store."""
    async with PostgresPersistenceProvider(postgres_url, schema=schema):
        pass
    url = make_role()
    with pytest.raises(StoreError, match="GRANT USAGE ON SCHEMA .*GRANT SELECT, INSERT") as raised:
        await PostgresPersistenceProvider(url, schema=schema).open()
    grant(str(raised.value))
    await _assert_usable(PostgresPersistenceProvider(url, schema=schema))


async def test_rights_that_are_taken_away_while_the_store_is_open(
    schema: str, make_role: MakeRole, postgres_url: str, admin: Any, grant: Grant
) -> None:
    async with PostgresPersistenceProvider(postgres_url, schema=schema):
        pass
    url = make_role()
    role = conninfo_to_dict(url)["user"]
    admin("grant_use", role=role)
    async with PostgresPersistenceProvider(url, schema=schema) as provider:
        with psycopg.connect(postgres_url, autocommit=True) as administrator:
            administrator.execute(f"REVOKE INSERT ON ALL TABLES IN SCHEMA {schema} FROM {role}")
        with pytest.raises(StoreError, match="GRANT SELECT, INSERT, UPDATE, DELETE .*permission denied") as raised:
            await provider.create_event(full_event(id="e1"))
        grant(str(raised.value))
        await provider.create_event(full_event(id="e1"))


async def test_a_role_that_may_only_read(schema: str, make_role: MakeRole, postgres_url: str, admin: Any) -> None:
    stored = sample_instance()
    url = make_role()
    role = conninfo_to_dict(url)["user"]
    admin("set_for_role", role=role, setting="default_transaction_read_only", value="on")
    async with PostgresPersistenceProvider(postgres_url, schema=schema) as owner:
        await owner.create_new_workflow(stored)
    admin("grant_use", role=role)
    async with PostgresPersistenceProvider(url, schema=schema) as reader:
        assert await reader.get_workflow_instance(stored.id) == stored
        with pytest.raises(StoreReadOnlyError, match="cannot be written"):
            await reader.persist_workflow(stored)
        assert {finding.kind for finding in await reader.check()} == {FindingKind.Overdue}


# the password


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> Callable[[BaseException], str]:
    """Everything shown of an error, including its causes, and everything logged so far."""
    for logger in ("psycopg", "psycopg.pool", "wfe_sql", "asyncio"):
        caplog.set_level(logging.DEBUG, logger)

    def heard(error: BaseException) -> str:
        shown: list[str] = []
        following: BaseException | None = error
        while following is not None:
            shown += [str(following), repr(following), repr(getattr(following, "__notes__", ""))]
            following = following.__cause__ or (None if following.__suppress_context__ else following.__context__)
        return "\n".join([*shown, caplog.text, *(repr(record.args) for record in caplog.records)])

    return heard


def _assert_secret(text: str) -> None:
    for spelling in (SECRET, quote(SECRET), quote(SECRET, safe=""), repr(SECRET)[1:-1], "hunter2"):
        assert spelling not in text


async def test_the_password_is_not_shown(
    own_server: OwnServer, heard: Callable[[BaseException], str], schema: str
) -> None:
    """With a server that refuses it, one that is down, and a database that does not exist."""
    own_server.start()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    urls = [
        f"postgresql://wfe:{quote(SECRET, safe='')}@127.0.0.1:{port}/wfe",
        _url_of(own_server.url, password=SECRET, dbname="missing"),
        _url_of(own_server.url, password=SECRET, user="nobody"),
        make_conninfo(own_server.url, password=SECRET, user="nobody"),
        f"postgresql://wfe:{quote(SECRET, safe='')}@127.0.0.1:{port}/wfe?sslmode=require",
    ]
    for url in urls:
        provider = PostgresPersistenceProvider(url, schema=schema)
        with pytest.raises(StoreUnavailableError, match="cannot be reached") as raised:
            await provider.open()
        await provider.close()
        _assert_secret(heard(raised.value) + repr(provider) + repr(vars(provider)) + repr(vars(provider._engine)))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://wfe:hunter2/x@localhost/wfe",
        "postgresql://wfe:2/hunter2@localhost/wfe",
        "postgresql://wfe:hunter2?x@localhost/wfe",
        "postgresql://wfe:2?hunter2@localhost/wfe",
        "postgresql://wfe:hunter2",
        "postgresql://wfe:hunter2#x@localhost/wfe",
        "postgresql://wfe:hunter2%x@localhost/wfe",
        "postgresql://wfe:hunter2@localhost/wfe?password=hunter2&unknown=1",
        "postgres://wfe:hunter2:x@localhost:port/wfe",
        "postgresql://wfe:x@hunter2@localhost/wfe",
    ],
)
async def test_a_password_that_is_not_encoded_is_not_shown_either(
    url: str, heard: Callable[[BaseException], str]
) -> None:
    with pytest.raises(StoreError) as raised:
        await connect(url).open()
    _assert_secret(heard(raised.value))
