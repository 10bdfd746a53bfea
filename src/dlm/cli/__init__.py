"""The `dlm` command: decoders, generate, infill, chat, serve."""

import signal


def cli() -> None:
    """The console script: a mistake is one line and status 2; Ctrl-C ends with 130, a closed pipe with 141, quietly."""
    try:
        from dlm.pipeline.start import run_script
        from dlm.cli.main import main_to_the_end  # Ctrl-C during the imports is quiet too

        run_script(main_to_the_end)
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except Exception as error:
        # Ctrl-C, and a library's `finally` that failed on the way out (argparse has one).
        if not isinstance(error.__context__, KeyboardInterrupt):
            raise
        raise SystemExit(128 + signal.SIGINT) from None
