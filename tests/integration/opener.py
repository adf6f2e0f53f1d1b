"""Opens a store; with the name of a query, SIGKILL ends it where that query would run in a transaction.

Without one, says "ready", waits for a line on stdin, opens the store, and prints the next number of a sequence.
"""

import asyncio
import signal
import sys
from typing import Any

from wfe_sql import connect
from wfe_sql.queries import QuerySet


async def draw(file: str) -> None:
    async with connect(file) as provider:
        print(await provider.next_definition_sequence("order"))


def main(file: str, statement: str | None = None) -> None:
    run = QuerySet.run

    def run_or_die(self: QuerySet, connection: Any, name: str, params: Any) -> Any:
        if name == statement and connection.in_transaction:
            signal.raise_signal(signal.SIGKILL)
        return run(self, connection, name, params)

    QuerySet.run = run_or_die  # type: ignore[method-assign]
    if statement is None:
        print("ready", flush=True)
        sys.stdin.readline()
    asyncio.run(draw(file))


main(*sys.argv[1:])
