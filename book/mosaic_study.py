"""Make the record of chapter 14: the report's full field, of generated and of real galaxies.

    python -m book.mosaic_study FOLDER [--weights NAME_OR_FILE] [--seed 0]

FOLDER (or zip) holds Galaxy Zoo images; the 300 of the test split are used. The chapter itself is run at
preset `laptop`: 3,000 generated galaxies and ten blank ones, 25,000 placements on 8,000 x 8,000 px. Some five
minutes and 3.5 GiB on two quiet cores. `book/records/14_mosaic.json`, which is written, holds numbers only.
"""

import argparse
import tempfile
from pathlib import Path

import papermill

from book.run_notebooks import ROOT, check_parameters
from galnb.files import write_atomically

NOTEBOOK = ROOT / "notebooks" / "14_mosaic.ipynb"
RECORD = ROOT / "book" / "records" / "14_mosaic.json"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", default="lightweight-64")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        parameters = {
            "preset": "laptop", "seed": chosen.seed, "out_dir": scratch, "weights": chosen.weights,
            "galaxyzoo": str(chosen.folder.resolve()), "record_file": str(Path(scratch) / "record.json"),
        }  # fmt: skip
        check_parameters(NOTEBOOK, list(parameters))
        papermill.execute_notebook(
            str(NOTEBOOK), None, parameters, kernel_name="python3", cwd=scratch, progress_bar=False
        )
        write_atomically(RECORD, (Path(scratch) / "record.json").read_bytes())


if __name__ == "__main__":
    main()
