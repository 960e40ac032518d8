"""What README and docs say exists: commands and their options, config fields, links, files."""

import ast
import contextlib
import importlib.util
import io
import re
import shlex
import sys
from pathlib import Path

import ml_collections
import pytest
import yaml

from cotir_jax import cli, main

ROOT = Path(__file__).parents[1]
MODEL_CARD = ROOT / "cotir_jax" / "weights" / "nano" / "MODEL_CARD.md"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "launch/README.md")),
    MODEL_CARD,
    *sorted((ROOT / "docs").glob("*.md")),
]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))


def _id(path):
    return str(path.relative_to(ROOT))


def _blocks(text):
    """Code blocks, fenced (unless they are Python) and indented, a list of lines each."""
    block, fence = [], None
    for line in [*text.splitlines(), ""]:
        if fence is not None or line.startswith("```"):
            if line.startswith("```"):
                if fence == "":
                    yield block
                block, fence = [], line[3:] if fence is None else None
            else:
                block.append(line)
        elif line.startswith("    "):
            block.append(line[4:])
        elif block and line:
            yield block
            block = []
    if block:
        yield block


def _commands(text):
    """Commands in code blocks and in backticks, as lists of words."""
    lines = [line for block in _blocks(text) for line in "\n".join(block).replace("\\\n", " ")
             .splitlines()]  # fmt: skip
    spans = re.findall(r"(?<!`)`([^`]+)`(?!`)", re.sub(r"(?ms)^```.*?^```", "", text))
    # A command that is only named, as `cotir bench check`, has at least its help.
    spans = [
        re.sub(r"^cotir( [a-z-]+)+$", r"\g<0> --help", " ".join(span.split())) for span in spans
    ]
    for line in [*lines, *spans]:
        if not re.match(r"(\w+=\S+ )*(cotir|python|pip|pytest|git) |cotir$|pytest$", line):
            continue
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            while words and re.match(r"[A-Z_0-9]+=", words[0]):
                words = words[1:]
            yield words


def _option_names(path):
    """Every option that a script defines with argparse, without dashes."""
    return set(re.findall(r'add_argument\(\s*"--([\w-]+)"', path.read_text()))


def _config(name):
    """The config that `--config=NAME[:MODEL]` names, by a path or without one."""
    file, _, model = name.partition(":")
    module = file.removeprefix("configs/").removesuffix(".py") if "/" in file else file
    assert (ROOT / "configs" / f"{module}.py").is_file(), f"no config {name}"
    get_config = importlib.import_module(f"cotir_jax.configs.{module}").get_config
    return get_config(model) if model else get_config()


def _set_field(config, field, value):
    *parents, last = field.split(".")
    for name in parents:
        assert name in config, f"no config field {field}"
        config = config[name]
    assert last in config, f"no config field {field}"
    with contextlib.suppress(SyntaxError, ValueError):  # else text
        value = ast.literal_eval(value)
    if not isinstance(config[last], ml_collections.ConfigDict):
        config[last] = value  # a ConfigDict refuses another type


def _check_training(words):
    """Parses with the real flags: config found, fields known, values of their types."""
    errors = io.StringIO()
    arguments = sys.argv
    try:
        with contextlib.redirect_stderr(errors):
            assert main.parse_flags(["main", *words]) == ["main"], words
    except SystemExit as end:
        raise AssertionError(f"{words}: {end.code} {errors.getvalue()}") from None
    finally:
        # parse_flags sets sys.argv and defines a flag for each field that is set.
        sys.argv = arguments
        known = main.flags.FLAGS
        known.unparse_flags()
        for name in [name for name in known if name.startswith("config.")]:
            delattr(known, name)


def _check_script(words):
    path = ROOT / words[0]
    assert path.is_file(), f"no script {words[0]}"
    # Options that a script hands on to training are fields of its config.
    fields = [word for word in words[1:] if word.startswith("--config.")]
    for field in fields:
        _set_field(_config("nano_release"), *field.removeprefix("--config.").split("=", 1))
    named = {word[2:].split("=")[0] for word in words[1:] if word.startswith("--")}
    assert {name for name in named if "." not in name} <= _option_names(path), words


def _check_pip(words):
    assert words[0] in ("install", "download"), words
    for extra in re.findall(r"\.\[(.+?)\]", " ".join(words)):
        text = (ROOT / "setup.py").read_text()
        assert all(f'"{name}": [' in text for name in extra.split(",")), f"no extra {extra}"


def check_command(words):
    match words:
        case ["cotir", *rest]:
            errors = io.StringIO()
            with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(io.StringIO()):
                try:
                    cli.make_parser().parse_args(rest)
                except SystemExit as end:
                    assert not end.code, errors.getvalue()
        case ["python", "-m", "cotir_jax.main", *rest] if rest:
            _check_training(rest)
        case ["python", "-m", module, *_]:
            assert not module.startswith("cotir_jax") or importlib.util.find_spec(module), module
        case ["python", "-c", code]:
            for node in ast.walk(ast.parse(code)):
                if isinstance(node, ast.ImportFrom):
                    module = importlib.import_module(node.module)
                    assert all(hasattr(module, alias.name) for alias in node.names), code
        case ["python", script, *rest]:
            _check_script([script, *rest])
        case ["pip", *rest]:
            _check_pip(rest)
        case ["pytest", *rest]:
            for word in rest:
                assert (
                    word.startswith("-") or not word.startswith("tests") or (ROOT / word).exists()
                )
        case ["git", *rest]:
            assert rest[0] == "clone"


@pytest.mark.parametrize("page", [*PAGES, *CONFIGS, ROOT / "cotir_jax" / "main.py"], ids=_id)
def test_commands_parse(page):
    text = page.read_text()
    if page.suffix == ".py":
        text = ast.get_docstring(ast.parse(text)) or ""
    for words in _commands(text):
        check_command(words)


def test_examples_in_help_parse():
    with contextlib.redirect_stdout(io.StringIO()) as text:
        cli.make_parser().parse_args([]).run(None)
    names = re.findall(r"(?m)^  ([a-z][a-z-]+)  ", text.getvalue())
    assert {"restore", "bench", "quickstart"} <= set(names)
    for words in [*([name] for name in names), ["bench", "build"], ["bench", "check"]]:
        with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
            cli.make_parser().parse_args([*words, "--help"])
        examples = re.findall(
            r"(?m)^  ((?:cotir|python) .*)$", text.getvalue().split("example")[-1]
        )
        assert examples, f"cotir {words}: no example in its help"
        for example in examples:
            check_command(shlex.split(example))


def test_first_page_has_its_commands():
    """The extraction above finds commands at all."""
    found = [" ".join(words[:3]) for words in _commands((ROOT / "README.md").read_text())]
    for start in (
        "git clone", "pip install .", "cotir quickstart", "cotir restore photo.jpg",
        "python -m cotir_jax.main", "cotir bench build", "cotir evaluate", "pytest",
    ):  # fmt: skip
        assert any(command.startswith(start) for command in found), start


@pytest.mark.parametrize(
    "line",
    [
        "cotir restore photo.jpg --promt=x",
        "cotir evaluate --hq=a",
        "cotir unknown",
        "python -m cotir_jax.main --config=nano --workdri=x",
        "python -m cotir_jax.main --config=nanoo --workdir=x",
        "python -m cotir_jax.main --config=nano --workdir=x --config.train.step=3",
        "python -m cotir_jax.main --config=nano --workdir=x --config.train.steps=many",
        "python tests/benchmarks/nano_speed.py --no-such-option=1",
        "python tests/benchmarks/no_such_file.py",
        "pip install '.[tset]'",
    ],
)
def test_wrong_commands_are_found(line):
    with pytest.raises((AssertionError, TypeError)):
        check_command(shlex.split(line))


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_config_fields_exist(page):
    config = _config("default")
    for field in re.findall(r"`(?:--)?config\.(?!json)([\w.]*\w)", page.read_text()):
        node = config
        for name in field.split("."):
            assert name in node, f"no config field {field}"
            node = node[name]


def _anchors(page):
    """Anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"(?m)^#+ (.*)$", re.sub(r"(?ms)^```.*?^```", "", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_links_and_files_exist(page):
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        assert path.exists(), f"{target}: no such file"
        if anchor:
            assert anchor in _anchors(path), f"{target}: no such heading"
    # Files of this repository named in backticks; those of the package may leave its name out.
    for name in re.findall(r"`([\w./-]+/[\w.-]*\.(?:py|sh|md|toml|ipynb|Dockerfile))`", text):
        places = (ROOT, ROOT / "cotir_jax", page.parent)
        assert any((place / name).exists() for place in places), f"{name}: no such file"


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_all_pages_are_reached_from_the_readme():
    text = "".join(page.read_text() for page in PAGES)
    for page in sorted((ROOT / "docs").glob("*.md")):
        assert re.search(rf"\]\((docs/)?{re.escape(page.name)}[)#]", text), page.name
    pictures = {path.name for path in (ROOT / "docs" / "images").iterdir()}
    assert pictures == set(re.findall(r"images/([\w.-]+)\)", text))


def test_sections_of_design_that_code_names_exist():
    design = (ROOT / "docs" / "design.md").read_text()
    for path in [*(ROOT / "cotir_jax").rglob("*.py"), *CONFIGS]:
        text = path.read_text()
        assert not re.search(r"\bSPEC\b", text), f"{path}: SPEC is docs/design.md"
        for number in re.findall(r"docs/design\.md, sections? (\d+)", text):
            assert f"\n### {number}. " in design, f"{path}: section {number}"


def test_citation():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["cff-version"] == "1.2.0"
    assert {"message", "title", "authors", "version", "license"} <= cited.keys()
    assert cited["license"] == "Apache-2.0"
    assert f'version="{cited["version"]}"' in (ROOT / "setup.py").read_text()
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    paper = cited["preferred-citation"]
    assert {"type", "title", "authors", "year"} <= paper.keys()
    assert "2606.17557" in paper["url"]
    for author in [*cited["authors"], *paper["authors"]]:
        assert "name" in author or {"family-names", "given-names"} <= author.keys()
