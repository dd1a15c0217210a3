"""The page of two tables compared: what it says of each difference."""

import re

from report_runs import Page

from sparsebench.sweep.differences import VerdictChange, differences
from sparsebench.sweep.html.compare import compare_html

ACCURACY = "test/accuracy"
OLD = {
    ("rigl", "0.9", ACCURACY): {0: 0.90, 1: 0.91, 2: 0.92},
    ("set", "0.9", ACCURACY): {0: 0.80, 1: 0.85, 2: 0.90},
    ("set", "0.9", "nonzeros"): {0: 1000.0, 1: 1000.0},
    ("gone", "0.9", ACCURACY): {0: 0.5},
    ("<b>few</b>", "0.9", ACCURACY): {0: 0.5},
    ("same", "0.9", ACCURACY): {0: 0.5},
}
NEW = {
    ("rigl", "0.9", ACCURACY): {0: 0.9500, 1: 0.9601, 2: 0.9699},
    ("set", "0.9", ACCURACY): {0: 0.81, 1: 0.84, 2: 0.91},
    ("set", "0.9", "nonzeros"): {0: 1004.0, 1: 1004.0},
    ("<b>few</b>", "0.9", ACCURACY): {0: 0.49},
    ("same", "0.9", ACCURACY): {0: 0.5},
}
VERDICTS = [VerdictChange("better", "RigL <beats> SET", None, "not decided")]


def page(old=OLD, new=NEW, verdicts=VERDICTS):
    return compare_html("results/old", "results/new", len({*old, *new}), differences(old, new),
                        verdicts)  # fmt: skip


def group(text, name):
    """The lines of a group as texts of their fields."""
    (body,) = re.findall(f'<tbody class="{name}">(.*?)</tbody>', text, re.DOTALL)
    return [re.findall(r"<t[hd][^>]*>([^<]*)<", line) for line in body.split("<tr>")[1:]]


def test_each_difference_stands_in_its_group():
    """RigL moved by 0.05, 0.0501 and 0.0499: mean 0.05 with an error of 0.0000577."""
    text = page()
    (rigl,) = group(text, "significant")
    assert rigl[:6] == ["rigl", "0.9", ACCURACY, "0.91 (3)", "0.96 (3)", "+0.05"]
    assert rigl[-1] == "paired"
    assert float(rigl[-2]) < 1e-5
    assert [line[0] for line in group(text, "chance")] == ["set"]
    assert group(text, "exact")[0][3:6] == ["1,000 (2)", "1,004 (2)", "+4"]
    assert [line[0] for line in group(text, "few")] == ["&lt;b&gt;few&lt;/b&gt;"]
    (alone,) = group(text, "alone")
    assert (alone[0], alone[4], alone[-1]) == ("gone", "–", "gone")
    assert "6 compared, 5 differ, 1 significantly" in text


def test_bars_share_a_scale_by_figure_and_zero_is_in_the_middle():
    """SET moved by 0.01, -0.01, 0.01: mean 1/300, half 4.3027 * 0.011547 / sqrt(3) = 0.028684."""
    text = page()
    low, high, far = 1 / 300 - 0.028684, 1 / 300 + 0.028684, 0.05 + 4.302653 * 1e-4 / 3**0.5
    (body,) = re.findall('<tbody class="chance">(.*?)</tbody>', text, re.DOTALL)
    assert f"left:{50 + 48 * low / far:.1f}%;width:{48 * (high - low) / far:.1f}%" in body
    assert f"left:{50 + 48 / 300 / far:.1f}%" in body


def test_verdicts_are_shown_and_text_is_text():
    text = page()
    assert "RigL &lt;beats&gt; SET" in text
    assert '<span class="not-decided"><span class="verdict">not decided</span></span>' in text
    assert '<span class="none"><span class="verdict">not there</span></span>' in text
    assert "1 differs" in text
    assert "<script" not in text
    assert not [a for tag, a in Parsed(text).elements if tag in ("img", "iframe")]


def test_nothing_changed_is_said():
    text = page(OLD, OLD, [])
    assert "All figures are the same, seed by seed." in text
    assert 'id="verdicts"' not in text
    assert "6 compared, 0 differ, 0 significantly" in text


def test_the_same_differences_give_the_same_bytes():
    assert page() == page()


class Parsed(Page):
    """A page without data."""

    def __init__(self, text):
        super().__init__(text + '<script type="application/json">{}</script>')
