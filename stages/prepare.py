"""Source -> cleaned, templated, tokenised splits, tokenizer and statistics under build/data."""

import shutil

from dlm.pipeline.start import run_script, stage_arguments, start_stage
from dlm.config.params import tracked
from dlm.data.template import Template
from dlm.evaluation.builtin.grammar import GRAMMAR
from dlm.files import atomic_directory
from dlm.pipeline.records import log_source
from dlm.pipeline.tracking import stage_run
from dlm.sources.prepare import fit_splits, left_out, load_splits, make_tokenizer, write_prepared


def main() -> None:
    arguments = stage_arguments(__doc__).parse_args()
    params = start_stage(arguments)
    out = arguments.build / "data"
    with stage_run("prepare", params=tracked(params, "seed", "data", "template", "tokenizer")) as run:
        log_source(run, tracked(params, "data")["data"])
        records, counts = load_splits(params.data, params.seed)
        template = Template(params.template.prompt, params.template.prompt_with_input)
        tokenizer = make_tokenizer(params.tokenizer, template, records["train"][: params.data.max_records])
        splits, dropped = fit_splits(records, template, tokenizer, params.data)
        for line in left_out(counts, splits, dropped, params.data):
            print(line)
        with atomic_directory(out) as folder:
            if params.data.has_grammar:
                shutil.copyfile(params.data.builtin.grammar, folder / GRAMMAR)
            stats = write_prepared(folder, splits, tokenizer, {**counts, "dropped": dropped})
        run.metrics({f"examples_{name}": count for name, count in stats["examples"].items()})
        run.table("samples", [{"prompt": e.prompt, "answer": e.record.output} for e in splits["train"][:20]])
        run.outputs([out])


if __name__ == "__main__":
    run_script(main)
