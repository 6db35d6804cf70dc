"""What the README promises about the repository."""

import re


def test_files_to_edit_exist(source_root):
    text = (source_root / "README.md").read_text()
    table = text.split("## Which file to edit")[1].split("##")[0]
    named = re.findall(r"`([\w./*-]+/[\w./*-]*)`", table)
    assert len(named) > 15
    for name in named:
        assert list(source_root.glob(name.rstrip("/"))), name


def test_links_lead_somewhere(source_root):
    text = (source_root / "README.md").read_text()
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        if not target.startswith("http"):
            assert (source_root / target).exists(), target


def test_commands_are_make_targets(source_root):
    makefile = (source_root / "Makefile").read_text()
    text = (source_root / "README.md").read_text()
    for target in re.findall(r"make ([a-z-]+)", text):
        assert target == "and" or re.search(rf"^{target}:", makefile, re.M), target
