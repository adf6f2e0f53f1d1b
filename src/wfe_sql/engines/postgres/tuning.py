"""Checks tuned queries of PostgreSQL against their originals.

The server describes a query without running it: its errors, and the columns it returns. So each tuned query and its
original are prepared when a store is opened. Scripts cannot be prepared; they run then.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

import psycopg
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus

from wfe_sql.engines.parameters import number_parameters
from wfe_sql.engines.postgres.connection import Connection
from wfe_sql.engines.postgres.errors import is_about_statement
from wfe_sql.errors import QueryFileError
from wfe_sql.queries import Query, QuerySet, check_columns


@dataclass(frozen=True, slots=True)
class Description:
    """How the server describes a prepared query."""

    parameters: int
    columns: tuple[str, ...]


async def describe(query: Query, connection: Connection) -> Description:
    """Prepare a query, without a name, and return the server's description of it.

    Raises:
        psycopg.Error: The server rejects it.
    """
    sql, _ = number_parameters(query.sql, "$")
    server = connection.pgconn

    def ask() -> Description:
        for result in (server.prepare(b"", sql.encode()), server.describe_prepared(b"")):
            if result.status != ExecStatus.COMMAND_OK:
                raise error_from_result(result)
        columns = ((result.fname(number) or b"").decode() for number in range(result.nfields))
        return Description(parameters=result.nparams, columns=tuple(columns))

    return await asyncio.to_thread(ask)


async def check_tuned_postgres(
    queries: QuerySet, connection: Connection, settled: Callable[[Connection], AbstractAsyncContextManager[None]]
) -> None:
    """Check that PostgreSQL accepts each tuned query, and that each returns the columns of its original.

    In the block of `settled`, names refer to the store's tables.

    Raises:
        QueryFileError: One does not; the message names file, line and query.
        psycopg.Error: The connection was lost.
    """

    async def described(query: Query) -> Description:
        async with settled(connection):
            return await describe(query, connection)

    for name, original in queries.replaced.items():
        if original.operation != "#":
            await _check_query(queries[name], original, described)


def tuned_query_error(tuned: Query, error: psycopg.Error) -> QueryFileError:
    """Return the error for a tuned query that PostgreSQL rejects."""
    reason = error.diag.message_primary or str(error)
    return QueryFileError(f"{tuned.place}: PostgreSQL refuses it: {reason}")


async def _check_query(tuned: Query, original: Query, described: Callable[[Query], Awaitable[Description]]) -> None:
    try:
        found = await described(tuned)
    except psycopg.Error as error:
        if not is_about_statement(error):
            raise
        if await _is_refused_too(original, error, described):
            return
        raise tuned_query_error(tuned, error) from error
    expected = await described(original)
    check_columns(tuned, expected=expected.columns, found=found.columns)


async def _is_refused_too(
    original: Query, error: psycopg.Error, described: Callable[[Query], Awaitable[Description]]
) -> bool:
    """Tell whether the server rejects the original too, because it is not a query until it is filled in."""
    try:
        await described(original)
    except psycopg.Error as known:
        return known.sqlstate == error.sqlstate and known.diag.message_primary == error.diag.message_primary
    return False
