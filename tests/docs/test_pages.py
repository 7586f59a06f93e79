"""All pages: their links lead somewhere, their commands are ones that the parsers take, the index has every page."""
import re

import pytest
import yaml
from pages import PAGES, ROOT, anchors, commands, links, of_the_package, parsed, text_of
from torch.distributed.run import parse_args

#: In which a word in capitals stands for a file of the reader's, or a config for one that the page makes.
MADE_BY_THE_PAGE = {"flowers.py", "fruit.py"}
COMMANDS = sorted({tuple(ours) for page in PAGES for words in commands(page) if (ours := of_the_package(words))})


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target, heading in links(page):
        assert (ROOT / target).exists(), target
        assert not heading or heading in anchors(target), f"{target}#{heading}"


@pytest.mark.parametrize("words", [c for c in COMMANDS if not MADE_BY_THE_PAGE & {*c}], ids=" ".join)
def test_a_command_is_one_that_its_parser_takes(words):
    assert parsed(list(words))


@pytest.mark.parametrize("line", sorted({" ".join(c) for page in PAGES for c in commands(page) if c[0] == "torchrun"}))
def test_torchrun_takes_its_line(line):
    args = parse_args(line.split()[1:])
    assert args.module and args.training_script == "ce_mm" and args.nproc_per_node == "8"


def test_every_script_that_a_page_names_is_there():
    named = {name for page in PAGES for name in re.findall(r"\b(?:bash|python) (tools/[\w/.]+)", text_of(page))}
    assert len(named) >= 5
    assert all((ROOT / name).is_file() for name in named), named


def test_there_are_commands_to_parse():
    assert {words[0] for words in COMMANDS} >= {"train", "test", "eval", "convert", "predict", "run", "shapes"}


def test_a_wrong_option_would_be_seen(capsys):
    with pytest.raises(SystemExit):
        parsed(["train", "CONFIG", "--no-such-option"])
    with pytest.raises(SystemExit):
        parsed(["eval", "a.json", "b.pkl", "--no-such-option"])


def test_the_index_has_every_page():
    pages = {page for page in PAGES if page.startswith("docs/")} - {"docs/README.md"}
    assert {target for target, _ in links("docs/README.md")} >= pages


def test_each_folder_of_configs_names_all_of_its_configs():
    for folder in {path.parent for path in ROOT.glob("configs/*/*.py")} - {ROOT / "configs/_base_"}:
        readme = (folder / "README.md").relative_to(ROOT).as_posix()
        rows = re.findall(r"^\| [^|]+ \| \[\S+\]\((\S+)\) \| ([^|]+) \| ([^|]+) \|$", text_of(readme), re.MULTILINE)
        assert sorted(name for name, _, _ in rows) == sorted(path.name for path in folder.glob("*.py"))
        assert all(status.startswith(("recipe here, not run", "run: ")) for _, _, status in rows)


def test_the_figures_of_imagenet_are_those_of_its_metafile():
    models = yaml.safe_load(text_of("configs/imagenet/metafile.yml"))["Models"]
    expected = {}
    for model in models:
        metrics = model.get("Results", [{"Metrics": {}}])[0]["Metrics"]
        top = {name[:5]: value for name, value in metrics.items()}
        who = {name.rpartition(" ")[2].rstrip(")") for name in metrics}
        expected[model["Name"]] = f"{top['Top 1']} / {top.get('Top 5', '–')} ({who.pop()})" if top else "–"
    readme = text_of("configs/imagenet/README.md")
    found = re.findall(r"^\| [^|]+ \| \[(\S+)\]\(\S+\) \| ([^|]+) \|", readme, re.MULTILINE)
    assert dict(found) == expected


def test_no_page_repeats_a_row_of_readme_s_table():
    rows = re.findall(r"^\| (?:ResNet|MobileNetV2|Mask R-CNN).*$", text_of("README.md"), re.MULTILINE)
    assert len(rows) == 4
    for page in {*PAGES} - {"README.md"}:
        assert not [row for row in rows if row in text_of(page)]
