"""What MLflow's page of the experiment shows at first: a saved view of its cells, parameters and scores side by side.

The page keeps such views as tags of the experiment and opens the one whose key stands in the address. A view that
somebody has changed there is left alone.
"""

import json
from collections.abc import Mapping
from typing import Any

KEY = "cells"
ADDRESS = f"viewStateShareKey={KEY}"
TAG = f"mlflow.sharedViewState.{KEY}"
NOTE = "Runs of the pipeline, and below each its stages and cells: a checkpoint's answers under one decoder."
PARAMETERS = ("block_length", "kernel_size", "rule", "top_k")  # the name of the run says which cell
CHARTS = ("kernel_size", "block_length", "top_k")


def set_up(client: Any, experiment: str, params: Mapping[str, Any]) -> None:
    """Give the experiment its view for the budgets of these parameters (the newest run's), a description, and its
    kind, by which the page begins with runs, not with traces."""
    had = client.get_experiment(experiment).tags
    view = saved_view([str(steps) for steps in params.get("decode", {}).get("steps", ())])
    wanted = {"mlflow.experimentKind": "custom_model_development", "mlflow.note.content": NOTE} | had
    if json.loads(had.get(TAG, '{"updatedAt": 0}')).get("updatedAt") == 0:
        wanted[TAG] = view
    for key, value in wanted.items():
        if had.get(key) != value:
            client.set_experiment_tag(experiment, key, value)


def saved_view(budgets: list[str]) -> str:
    """The view as the page itself writes it: columns, order, and charts of quality over what decoders are told."""
    at = [f"_S{steps}" for steps in budgets] or [""]
    metrics = ["area", *(f"nfe{each}" for each in at[-1:]), *(f"quality{each}" for each in at)]
    names = [*(("metrics", name) for name in metrics), *(("params", name) for name in PARAMETERS)]
    columns = [f"{kind}.`{name}`" for kind, name in [*names, ("tags", "experiment")]]
    first = f"quality{at[-1]}"
    state = {
        "searchFilter": "params.decoder LIKE '%'",
        "orderByKey": f"metrics.`{first}`",
        "orderByAsc": False,
        "selectedColumns": columns,
        "runsHiddenMode": "SHOW_ALL",
        "compareRunSections": [_section(name) for name in ("Quality", "Model metrics", "System metrics")],
        "compareRunCharts": [
            _chart("nfe", {"key": f"nfe{at[-1]}", "type": "METRIC"}, first),
            *(_chart(name, {"key": name, "type": "PARAM"}, first) for name in CHARTS),
        ],
    }
    return json.dumps({"name": "Cells", "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)})


def _section(name: str) -> dict[str, Any]:
    return {"uuid": name, "name": name, "display": True, "isReordered": False, "deleted": False, "isGenerated": False}


def _chart(name: str, x: dict[str, str], y: str) -> dict[str, Any]:
    return {
        "type": "SCATTER",
        "uuid": f"{y} over {name}",
        "metricSectionId": "Quality",
        "deleted": False,
        "isGenerated": False,
        "runsCountToCompare": 100,
        "xaxis": x,
        "yaxis": {"key": y, "type": "METRIC"},
    }
