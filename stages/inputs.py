"""Digests of the files and folders that params.yaml names, under build/inputs: a file for each stage that reads any."""

from dlm.pipeline.start import run_script, stage_arguments, start_stage
from dlm.files import atomic_directory, write_json
from dlm.pipeline.inputs import known_digests, read_by


def main() -> None:
    arguments = stage_arguments(__doc__).parse_args()
    params = start_stage(arguments)
    digests = known_digests()
    with atomic_directory(arguments.build / "inputs") as folder:
        for stage, named in read_by(params).items():
            write_json(folder / f"{stage}.json", digests.record(named))
    digests.keep()


if __name__ == "__main__":
    run_script(main)
