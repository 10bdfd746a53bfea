"""The judge that params.yaml asks for."""

from dlm import processes
from dlm.blocks import DataParams
from dlm.blocks_results import JudgeParams
from dlm.data.grammar import load_grammar
from dlm.evaluation.judges.exact import ExactJudge
from dlm.evaluation.judges.pairs import Judge


def make_judge(judge: JudgeParams, data: DataParams, seed: int) -> Judge | None:
    """None where nobody compares answers.

    Args:
        seed: of the order in which an endpoint is shown two answers.

    Raises:
        UserError: no key in the environment, or no local model.
    """
    if judge.kind == "endpoint":
        # openai takes a second to import.
        from dlm.evaluation.judges.chat import ChatEndpoint
        from dlm.evaluation.judges.endpoint import EndpointJudge

        endpoint = ChatEndpoint(
            base_url=judge.base_url, model=judge.model, key_variable=judge.key_variable, concurrency=judge.concurrency
        )
        return EndpointJudge(endpoint, seed)
    if judge.kind == "local":
        from dlm.evaluation.judges.local import load_local_judge

        return load_local_judge(judge.model, device=processes.device())
    if judge.kind == "auto" and data.source == "builtin":
        return ExactJudge(load_grammar(data.builtin.grammar))
    return None
