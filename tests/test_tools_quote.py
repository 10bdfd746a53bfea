"""tools/quote.py: README's tables are those of results."""

from pathlib import Path

import quote
from workspaces import ROOT

from dlm.files import write_json

CLAIM = {"number": 5, "text": "EOS-fill saves passes.", "verdict": "seen", "brief": "2.04 times", "beside": []}


def test_the_readme_quotes_the_results() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert quote.quoted(text, ROOT / "results") == text


def test_a_page_by_hand(tmp_path: Path) -> None:
    """Two budgets for every cell that is quoted; conv is best at both, and what stands between other marks stays."""
    rows = [
        {
            **{"checkpoint": checkpoint, "decoder": decoder, "steps": steps, "area": 0.5, "area_ci": [0.4, 0.6]},
            **{"quality": 0.75 if decoder == "conv" else 0.5, "quality_ci": [0.45, 0.55]},
            **{"nfe": steps / 2, "nfe_ci": None},
        }
        for checkpoint, decoder in quote.CELLS
        for steps in (16, 64)
    ]
    write_json(tmp_path / "table.json", rows)
    write_json(tmp_path / "claims.json", [{**CLAIM, "beside": [[16, "mixed"]]}, {**CLAIM, "number": 6}])
    english = {"checkpoint": "sft", "decoder": "conv", **{name: 0.25 for name in quote.ENGLISH}}
    write_json(tmp_path / "smollm2-cpu/table.json", [english | {f"{name}_ci": [0.15, 0.45] for name in quote.ENGLISH}])
    text = "before\n<!-- claims -->\nold\n<!-- /claims -->\nbetween\n<!-- results -->\n<!-- /results -->\n"
    text += "<!-- english -->\n<!-- /english -->\nafter\n"
    lines = quote.quoted(text, tmp_path).split("\n")
    assert [lines[0], lines[7], lines[8]] == ["before", "between", "<!-- results -->"]
    claims, more, results = lines[4], lines[5], lines[9:]
    assert claims.startswith("| 5. EOS-fill saves passes | seen; at S = 16: mixed | 2.04 times | [claim 5](")
    assert "seen; seen [on English]" in more
    assert results[0] == "| checkpoint | decoder | quality, S = 16 ↑ | quality, S = 64 ↑ | NFE, S = 64 ↓ | area ↑ |"
    assert results[2] == "| sft | categorical | 0.50 ± 0.05 | 0.50 ± 0.05 | 32.0 | 0.50 ± 0.10 |"
    assert results[6] == "| sft | conv | **0.75** ± 0.05 | **0.75** ± 0.05 | 32.0 | 0.50 ± 0.10 |"
    assert results[-7:-1] == [
        "<!-- english -->",
        "| checkpoint | decoder | relevance, total | perplexity | repetition-4 ↓ | high-prior | length | NFE ↓ |",
        "|---|---|---|---|---|---|---|---|",
        "| sft | conv | 0.2 ± 0.2 | 0.2 ± 0.2 | 0.250 ± 0.150 | 0.25 ± 0.15 | 0.2 ± 0.2 | 0.2 ± 0.2 |",
        "<!-- /english -->",
        "after",
    ]
