"""`dlm serve`: listen, load, serve until it is stopped."""

import argparse
import os
from pathlib import Path
from typing import Any

from dlm.serving.address import address, api_key, listen


def run(arguments: argparse.Namespace, changes: dict[str, Any]) -> None:
    """Raises UserError: no key where one is needed, an address that is taken, a checkpoint that does not load."""
    host, variable = arguments.host, arguments.key_variable
    key = api_key(os.environ, variable, host, without=arguments.no_key)
    with listen(host, arguments.port) as bound:
        from dlm.cli.run import load_to_talk
        from dlm.serving import conversation, server
        from dlm.serving.body import Defaults

        lm = load_to_talk(arguments)
        folder = Path(arguments.checkpoint)
        name = arguments.name or (folder.resolve().name if folder.exists() else arguments.checkpoint)
        guard = "no key" if key is None else f"the key is in {variable}"
        print(f"{name}: {address(host, bound)} ({guard}; Ctrl-C stops it)", flush=True)
        print(f"conversations go into {conversation.form(lm)}", flush=True)
        server.serve(
            lm,
            name,
            Defaults(arguments.decoder, changes, arguments.steps, arguments.gen_length),
            bound=bound,
            host=host,
            key=key,
            batch_size=arguments.batch_size,
            capacity=arguments.waiting,
        )
