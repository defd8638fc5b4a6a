"""One page in three forms: what stands in it stands in each, whatever characters it has."""

import csv
import io
from pathlib import Path

import pytest

from ifsq.bench.charts import Line, line_chart, mark
from ifsq.bench.page import (
    Charts,
    Commands,
    Details,
    Fact,
    Page,
    Picture,
    Pictures,
    Section,
    Table,
    Text,
    without_pictures,
)
from ifsq.bench.render import comma_separated, html, markdown, target_of
from ifsq.config import InputError

ODD = "a <b> | ``` & 'c' \"d\"\nand $\\frac$"


def page():
    table = Table(f"what {ODD}", ["metric", ODD], [["FD", "1.5"], [ODD, "2.5"]], (1,))
    chart = line_chart(ODD, [Line("one", [1.0, 2.0], [3.0, 4.0], [2.5, 3.5], [3.5, 4.5])], ODD)
    picture = Picture(ODD, "data:image/png;base64,AA", Path("runs/my run/a.png"), 8, ODD)
    blocks = [
        Text(ODD),
        table,
        Details(ODD, table),
        Charts([chart], ODD, [mark(ODD, 0)]),
        Pictures([picture], ODD, [ODD], 4),
        Commands([f"ifsq {ODD}"]),
    ]
    figures = Table("", ["=run", "figure"], [["=cmd()", "-1.5"], [ODD, "2.5"]])
    return Page(ODD, ODD, ODD, ODD, figures, [Fact(ODD, ODD)], [Section(ODD, blocks)], ODD)


def test_html_holds_everything_and_lets_nothing_in():
    text = html(page())
    assert "<b>" not in text
    assert "http" not in text.replace("http://www.w3.org", "").replace("http-equiv", "")
    assert "<script" not in text
    assert text.count("<svg aria-hidden") == 1
    assert "#0102" not in text, "a colour of matplotlib that the page has no variable for"
    assert "id=" not in text.replace('<clipPath id="', "").replace('<path id="', ""), "ids of figures would collide"
    assert text.count("a &lt;b&gt; | ``` &amp; &#39;c&#39;") > 12


def test_markdown_has_the_tables_and_links_beside_itself():
    lines = markdown(page(), Path("runs")).splitlines()
    assert lines[0].startswith("# a &lt;b> | ``` &")
    assert any(line.startswith("| FD | 1.5 |") for line in lines)
    assert any(line.startswith("| a &lt;b> \\| ```") for line in lines)
    assert any("(<my run/a.png>)" in line for line in lines)
    assert "| one | 2 | 4.000 | 3.500 to 4.500 |" in lines
    assert lines.count("````") == 2, "a fence is longer than any in the commands"


def test_points_at_the_same_places_are_a_column_a_line():
    shared = [Line("a", [2.0, 4.0], [0.5, 0.25], [0.25, 0.125], [0.75, 0.5]), Line("b", [4.0], [0.125])]
    table = line_chart("loss", shared, "bits").data
    assert (table.caption, table.columns) == ("loss", ["bits", "a", "b"])
    assert table.rows == [["2", "0.500 (0.250 to 0.750)", ""], ["4", "0.250 (0.125 to 0.500)", "0.125"]]
    apart = line_chart("loss", [Line("a", [2.0, 4.0], [0.5, 0.25]), Line("b", [3.0], [0.125])], "bits").data
    assert apart.rows == [["a", "2", "0.500"], ["a", "4", "0.250"], ["b", "3", "0.125"]]


def test_a_page_without_its_pictures():
    sheet = Pictures([Picture("a", "data:,", Path("a.png"), 8, "a")], "samples")
    page = Page("t", "", "", "", Table("", [], []), sections=[Section("s", [sheet]), Section("b", [Text("c"), sheet])])
    assert without_pictures(page).sections == [Section("b", [Text("c")])]


def test_csv_is_one_table_without_formulas():
    rows = list(csv.reader(io.StringIO(comma_separated(page()))))
    assert rows == [["'=run", "figure"], ["'=cmd()", "-1.5"], [ODD, "2.5"]]


@pytest.mark.parametrize(
    ("out", "form", "target", "told"),
    [
        (None, None, "run/report.html", "html"),
        (None, "md", "run/report.md", "md"),
        ("a.csv", None, "a.csv", "csv"),
        ("a.htm", "html", "a.htm", "html"),
    ],
)
def test_the_name_says_the_form(out, form, target, told):
    assert target_of(Path("run"), out and Path(out), form) == (Path(target), told)


@pytest.mark.parametrize(
    ("out", "form", "told"),
    [
        ("a.txt", None, "a.txt: expected a name that ends in .html, .htm, .md, .csv"),
        ("a.md", "html", "a.md: ends as md does; expected a name for format html"),
        (None, "pdf", "format 'pdf': expected html, md, csv"),
    ],
)
def test_a_name_that_says_another_form_is_refused(out, form, told):
    with pytest.raises(InputError, match=told):
        target_of(Path("run"), out and Path(out), form)
