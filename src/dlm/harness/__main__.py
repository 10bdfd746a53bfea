"""`python -m dlm.harness` is lm-eval's own command line, with `--model dlm`."""

from dlm.pipeline.start import run_script


def main() -> None:
    from lm_eval.__main__ import cli_evaluate

    import dlm.harness.model  # noqa: F401  (registers the model)

    cli_evaluate()


run_script(main)
