"""Make the record of chapter 14: the report's full field, of generated and of real galaxies.

    python -m book.mosaic_study FOLDER [--weights NAME_OR_FILE] [--seeds 0 1 2 3 4]

FOLDER (or zip) holds Galaxy Zoo images; the 300 of the test split are used. The chapter itself is run at
preset `laptop`, once for each seed: 3,000 generated galaxies and ten blank ones, 25,000 placements on 8,000 x
8,000 px. Each takes some two minutes and 3.5 GiB on two quiet cores. `galnb/records/14_mosaic.json`, which
is written, holds numbers only: those of the first seed, and the shares and differences of all.
"""

import argparse
import json
import tempfile
from pathlib import Path

import papermill

from book.run_notebooks import ROOT, check_parameters
from galnb import notebook
from galnb.files import write_atomically

NOTEBOOK = ROOT / "notebooks" / "14_mosaic.ipynb"
RECORD = notebook.RECORDS / "14_mosaic.json"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", default="lightweight-64")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    chosen = parser.parse_args()
    records = [of_one_seed(chosen.folder, chosen.weights, seed) for seed in chosen.seeds]
    first = records[0] | {"seeds": {str(record["seed"]): in_short(record) for record in records}}
    write_atomically(RECORD, (json.dumps(first, indent=1) + "\n").encode())


def of_one_seed(folder: Path, weights: str, seed: int) -> dict:
    """Run the chapter in a folder of its own and return what it would keep."""
    with tempfile.TemporaryDirectory() as scratch:
        parameters = {
            "preset": "laptop", "seed": seed, "out_dir": scratch, "weights": weights,
            "galaxyzoo": str(folder.resolve()), "record_file": str(Path(scratch) / "record.json"),
        }  # fmt: skip
        check_parameters(NOTEBOOK, list(parameters))
        papermill.execute_notebook(
            str(NOTEBOOK), None, parameters, kernel_name="python3", cwd=scratch, progress_bar=False
        )
        return json.loads((Path(scratch) / "record.json").read_text(encoding="utf-8"))


def in_short(record: dict) -> dict:
    """Return the shares of both fields and their differences, without intervals."""
    shares = {name: {k: v[0] for k, v in field["share"].items()} for name, field in record["fields"].items()}
    return {"share": shares, "difference": {k: v[0] for k, v in record["difference"].items()}}


if __name__ == "__main__":
    main()
