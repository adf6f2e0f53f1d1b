"""Runs the `wfe-sql` command in this process, on a pipe: a separate process takes half a second more."""

import io
import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest import mock

import pytest
import typer.main

from wfe_sql.cli import main

_OF_THIS_SHELL = ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "WFE_SQL_DIR")
_parser_of = cache(typer.main.get_command)  # takes as long to make as most commands to run


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run_command(*arguments: object, typed: str | None = None, **environment: str) -> Result:
    """Run a command to its end, with only the given settings of this shell.

    Args:
        arguments: What follows `wfe-sql`.
        typed: What a person types at the terminal; None if there is no terminal to type on.
        environment: Environment variables.
    """
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))
    settings = {name: value for name, value in os.environ.items() if name not in _OF_THIS_SHELL}
    with (
        mock.patch.dict(os.environ, {**settings, **environment}, clear=True),
        mock.patch.object(typer.main, "get_command", _parser_of),
        mock.patch.object(sys, "argv", ["wfe-sql", *map(str, arguments)]),
        mock.patch.object(sys, "stdin", io.StringIO() if typed is None else _Terminal(typed)),
        redirect_stdout(out),
        redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main()
    code = ended.value.code
    if isinstance(code, str):
        err.write(f"{code}\n")
        code = 1
    return Result(code or 0, *(stream.buffer.getvalue().decode() for stream in (out, err)))
