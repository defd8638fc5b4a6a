"""The table of an alignment: a row a step, time and layer, the figures that were found in the columns."""

from ifsq.evaluation.alignment.measure import FIGURES
from ifsq.evaluation.alignment.record import LayerAlignment

COLUMNS = {
    "cknna": "CKNNA",
    "cknna_cosine": "unit",
    "mutual": "mutual",
    "cka": "CKA",
    "patch_cka": "patch",
    "read_patch_cka": "read",
    "own_token": "own",
    "next_token": "next",
    "probe": "probe",
}
"""Short names, so that a terminal is wide enough; `FIGURES` has them all."""


def figures_table(found: LayerAlignment) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Names of the columns, and the rows, of text; what no layer has is left out."""
    names = [name for name in COLUMNS if any(name in row.values for row in found.rows)]
    told = [named for named in ("step", "time") if any(getattr(row, named) is not None for row in found.rows)]
    rows = [
        (
            *("-" if (value := getattr(row, one)) is None else f"{value:g}" for one in told),
            row.layer,
            *(_number(row.values.get(name)) for name in names),
        )
        for row in found.rows
    ]
    if found.beside:
        rows.append((*("-" for _ in told), "teacher", *(_number(found.beside.get(name)) for name in names)))
    assert COLUMNS.keys() <= FIGURES.keys()
    return (*told, "layer", *(COLUMNS[name] for name in names)), rows


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
