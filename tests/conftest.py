import pytest

pytest.register_assert_rewrite("wfe_sql.testing")
