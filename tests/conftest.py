import shutil

import pytest

pytest.register_assert_rewrite("wfe_sql.testing")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--reference", action="store_true", help="also run the tests against the Rust crate; needs cargo")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "reference: drives the published Rust crate; run with --reference")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--reference"):
        reason = "" if shutil.which("cargo") else "needs cargo, which is not on the PATH"
    else:
        reason = "drives the Rust crate: run with --reference"
    if reason:
        for item in items:
            if item.get_closest_marker("reference"):
                item.add_marker(pytest.mark.skip(reason=reason))
