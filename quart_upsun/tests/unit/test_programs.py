"""The summary of skipped tests at the end of a test run."""

from quart_upsun.testing.programs import summary

NGINX = "Skipped: nginx is not installed (Debian package: nginx-light)"
BWRAP = "Skipped: bwrap is not installed (Debian package: bubblewrap)"


def test_missing_programs_are_summarized_in_one_line() -> None:
    assert summary([NGINX, BWRAP] * 200) == [
        "400 tests need bwrap, nginx: apt install bubblewrap nginx-light"
    ]
    assert summary([NGINX]) == ["1 test needs nginx: apt install nginx-light"]


def test_other_reasons_are_listed_once() -> None:
    assert summary(["Skipped: only on Tuesdays", "Skipped: only on Tuesdays", NGINX]) == [
        "skipped: only on Tuesdays",
        "1 test needs nginx: apt install nginx-light",
    ]
    assert summary([]) == []
