"""The reference (make docs): built strictly, each method told, no link broken, no network."""

import importlib
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from sparsebench.config.check import check
from sparsebench.config.compose import compose
from sparsebench.config.paths import config_files
from sparsebench.config.rules import keys
from sparsebench.sparsity import registry
from sparsebench.sparsity.composed import Composed

for package in ("mkdocs", "material", "mkdocstrings", "mkdocstrings_handlers.python"):
    pytest.importorskip(package, reason=f"{package} is missing: make setup installs the extra docs")

ROOT = Path(__file__).parents[1]
SECTIONS = (
    "what-it-does",
    "when-to-use-it",
    "cost",
    "parts",
    "defaults",
    "run-it",
    "verdicts-so-far",
)
LOADED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href"}
#: Elements of a page of Material, and of its text; a name of any other kind is a docstring's <x>.
KNOWN = {
    "html", "head", "meta", "title", "link", "script", "style", "body", "div", "header", "nav",
    "main", "article", "footer", "aside", "section", "a", "abbr", "b", "br", "button", "code",
    "em", "form", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "i", "img", "input", "kbd", "label",
    "li", "ol", "p", "path", "pre", "small", "span", "strong", "sub", "sup", "svg", "table",
    "tbody", "td", "th", "thead", "tr", "ul", "dialog", "details", "summary", "dl", "dt", "dd",
    "blockquote", "del", "mark", "noscript", "base",
}  # fmt: skip


class Page(HTMLParser):
    """What a page names, links to and loads."""

    def __init__(self, path: Path):
        super().__init__()
        self.anchors, self.links, self.loads, self.elements = set(), [], [], set()
        self.text = path.read_text()
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.elements.add(tag)
        self.anchors |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])
        if tag in LOADED and given.get(LOADED[tag]) and given.get("rel") != "canonical":
            self.loads.append(given[LOADED[tag]])


def build(folder: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)]
    threads = {"OMP_NUM_THREADS": "1", "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **threads}, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return {path.relative_to(site).as_posix(): Page(path) for path in site.rglob("*.html")}


@pytest.fixture
def generator(monkeypatch):
    """A module of scripts/docs by its name, which others of the same name do not hide."""
    names = {path.stem for path in (ROOT / "scripts" / "docs").glob("*.py")}
    for name in names & set(sys.modules):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(ROOT / "scripts" / "docs")
    yield importlib.import_module
    for name in names & set(sys.modules):
        del sys.modules[name]


# --- the site --------------------------------------------------------------------------------


def test_each_method_has_a_page_with_all_its_sections(pages):
    for name in config_files("method"):
        page = pages[f"methods/{name}.html"]
        assert set(SECTIONS) <= page.anchors, name
        assert f"{name}.html" in pages["methods/index.html"].links


def test_a_page_tells_what_the_code_says(pages):
    page = re.sub(r"<[^>]+>|\s+", " ", pages["methods/topkast.html"].text)
    for said in (
        "arXiv 2106.03517",  # the YAML
        "There is no official code",  # the engine's docstring
        "method.options.backward_sparsity",  # its options
        "dense weights kept",  # its kind
    ):
        assert said in page
    rigl = pages["methods/rigl.html"]
    assert "../parts.html#sparsebench.sparsity.scores.gradient" in rigl.links
    assert "RigL is better than a random topology that never changes" in rigl.text


def test_every_part_and_every_key_is_there(pages, generator):
    parts = generator("parts")
    for key in parts.SECTIONS:
        for name in getattr(registry, key):
            if parts.pages_of(key, name):
                assert parts.path(name, key) in pages["parts.html"].anchors, (key, name)
    for key in keys():
        group = "." not in key and f'id="{key}"' in pages["config.html"].text
        assert group or key == "table" or f"<code>{key}</code>" in pages["config.html"].text, key


def test_every_link_and_anchor_inside_the_site_is_there(pages, site):
    broken = []
    for place, page in pages.items():
        for link in page.links + page.loads:
            found = urlsplit(link)
            if found.scheme or found.netloc or (place == "404.html" and link.startswith("/")):
                continue  # the page 404 has a server's links, from its root on
            target = (site / place).parent / unquote(found.path) if found.path else site / place
            target = target / "index.html" if target.is_dir() else target
            anchor, name = unquote(found.fragment), target.resolve().relative_to(site.resolve())
            known = pages[name.as_posix()].anchors if name.as_posix() in pages else set()
            if not target.is_file() or (anchor and anchor not in known):
                broken.append((place, link))
    assert not broken


def test_nothing_is_loaded_from_elsewhere(pages, site):
    for place, page in pages.items():
        for load in page.loads:
            assert not urlsplit(load).netloc, (place, load)
    for path in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", path.read_text()), path


def test_no_mark_of_a_docstring_is_left_as_it_was(pages):
    for place, page in pages.items():
        unknown = page.elements - KNOWN
        assert not unknown, (place, unknown)
        assert not re.search(r":(class|func|meth|mod|data):<code>", page.text), place
        assert "::\n" not in re.sub(r"<pre>.*?</pre>", "", page.text, flags=re.DOTALL), place


# --- what it is made from --------------------------------------------------------------------


def test_commands_of_pages_are_accepted(generator):
    """One of each kind of command: all that is beside the method's name."""
    methods, kinds = generator("methods"), {}
    for name in config_files("method"):
        words = methods.command(name)
        kinds.setdefault(tuple(word for word in words if word != f"method={name}"), words)
    assert len(kinds) > 2
    for words in kinds.values():
        check(compose(words, None))


def test_an_engine_without_a_source_is_refused(generator, monkeypatch):
    methods = generator("methods")
    for path in registry.ENGINES.values():
        module, _, attribute = path.rpartition(".")
        engine = getattr(importlib.import_module(module), attribute)
        if engine is not Composed:
            methods.check_source(engine)
    bare = importlib.import_module("sparsebench.sparsity.methods.deepr")
    monkeypatch.setattr(bare, "__doc__", "Rewires at random.")
    with pytest.raises(ValueError, match=r"methods\.deepr: its docstring must name the source"):
        methods.page("deepr")


def test_costs_are_those_of_the_papers_arithmetic(generator):
    """Uniform sparsity costs its density, dense training 1, and N:M weights N/M forward."""
    cost = generator("cost").cost
    assert cost("dense").training == cost("dense").inference == 1.0
    assert cost("cht").training == pytest.approx(0.1, abs=1e-3)  # strict uniform, 90 %
    # 2:8 forward and for the activations, all of the weights' gradient; the rest is dense
    assert cost("bdwp").training == pytest.approx((0.25 + 0.25 + 1) / 3, abs=0.01)


def test_who_looks_at_data(generator):
    methods, looks = generator("methods"), generator("cost").looks_at_data
    told = {name: looks(methods.built(name)) for name in ("snip", "rigl", "synflow", "soup", "set")}
    assert told == {
        "snip": "`gradient`, before the first step", "rigl": "", "synflow": "", "soup": "`soup`",
        "set": "",
    }  # fmt: skip


def test_verdicts_are_those_of_the_results(generator, monkeypatch):
    verdicts = generator("verdicts")
    claim = {
        "table": "t", "scale": "quick", "id": "a", "claim": "|A| above B", "method": "set",
        "verdict": "inconclusive", "difference": 0.5, "interval": [-1.0, 2.0], "n": 3,
        "seeds_needed": 12, "source": "S",
    }  # fmt: skip
    later = {"claims": [{"id": "b", "claim": "B above C", "method": "set"}]}
    monkeypatch.setattr(verdicts, "tried", lambda: [claim])
    monkeypatch.setattr(verdicts, "tables", lambda: {"t": {"claims": [claim, *later["claims"]]}})
    text = verdicts.section("set")
    assert (
        r"| \|A\| above B | **inconclusive** (about 12 seeds would decide) | +0.5 [-1, +2] | 3 | "
        "t, quick | S |" in text
    )
    assert "`sparsebench -m +table=t` will judge:\n\n- B above C\n" in text
    assert "A| above B" not in text.split("will judge")[1]
    assert verdicts.section("rigl") == "None yet.\n"
