"""The judges that params.yaml asks for."""

from dlm.config.evaluation import JudgeParams
from dlm.evaluation.exact import CorpusJudge
from dlm.evaluation.judges.exact import ExactJudge
from dlm.evaluation.judges.grades import Grader
from dlm.evaluation.judges.pairs import Judge
from dlm.pipeline import processes


def make_judges(judge: JudgeParams, exact: CorpusJudge | None, seed: int) -> tuple[Judge | None, Grader | None]:
    """The judge of pairs and the grader, on one model; None for one that is not asked for.

    Args:
        exact: that of the corpus, for kind auto; None where it has none.
        seed: of the order in which an endpoint is shown two answers.

    Raises:
        UserError: no key in the environment, or no local model.
    """
    if judge.kind == "endpoint":
        # openai takes a second to import.
        from dlm.evaluation.judges.chat import ChatEndpoint
        from dlm.evaluation.judges.endpoint import EndpointGrader, EndpointJudge

        endpoint = ChatEndpoint(
            base_url=judge.base_url, model=judge.model, key_variable=judge.key_variable, concurrency=judge.concurrency
        )
        return EndpointJudge(endpoint, seed), EndpointGrader(endpoint) if judge.grades else None
    if judge.kind == "local":
        from dlm.evaluation.judges.local import LocalGrader, LocalJudge, load_local_model

        model = load_local_model(judge.model, device=processes.device())
        return LocalJudge(model), LocalGrader(model) if judge.grades else None
    return ExactJudge(exact) if judge.kind == "auto" and exact is not None else None, None
