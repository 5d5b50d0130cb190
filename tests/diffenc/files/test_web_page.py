"""Where a page goes by default, and what is left where it cannot be written."""

import pytest

from diffenc.errors import UserError
from diffenc.files import web_page

MARK = b"<meta mine>"


def test_only_a_page_with_the_mark_at_its_start_may_be_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert web_page.default_path("page.html", MARK, "no page").name == "page.html"
    (tmp_path / "page.html").write_bytes(b"<html>" + MARK)
    assert web_page.default_path("page.html", MARK, "no page").name == "page.html"
    for content in (b"", b"mine", b" " * web_page.MARK_BYTES + MARK):
        (tmp_path / "page.html").write_bytes(content)
        with pytest.raises(UserError, match=r"page.html: exists, and is no page: name another file"):
            web_page.default_path("page.html", MARK, "no page")


def test_a_page_is_written_with_its_folder_or_not_at_all(tmp_path):
    output = tmp_path / "new" / "page.html"
    web_page.write(output, b"first", "page.html")
    assert output.read_bytes() == b"first"
    with pytest.raises(UserError, match=r"new: is a folder; name a file in it, e.g. .*new/page.html"):
        web_page.write(output.parent, b"second", "page.html")
    with pytest.raises(UserError, match="cannot create the folder"):
        web_page.write(output / "page.html", b"second", "page.html")
    assert output.read_bytes() == b"first"
