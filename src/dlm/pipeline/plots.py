"""`dvc plots` without a network: DVC's page has Vega from the web, ours from a package. `make setup` runs this."""

import subprocess
import sys
from pathlib import Path

import vl_convert

from dlm.pipeline.start import run_script
from dlm.errors import UserError
from dlm.files import write_text

VEGA_LITE = "5.21"  # DVC's templates are written for version 5
PAGE = Path("tmp/plots.html")  # below .dvc, where DVC looks and git does not
HTML = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
{{refresh_tag}}
<title>Training curves</title>
<script>{vega}</script>
</head>
<body>
{{plot_divs}}
</body>
</html>
"""


def main() -> None:
    if not Path(".dvc").is_dir():
        raise UserError(".dvc: no such folder; run from the repository's root")
    vega = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE).replace("</script", r"<\/script")
    write_text(Path(".dvc") / PAGE, HTML.format(vega=vega))
    dvc = [sys.executable, "-m", "dvc", "config", "--quiet", "--local", "plots.html_template", str(PAGE)]
    subprocess.run(dvc, check=True)


if __name__ == "__main__":
    run_script(main)
