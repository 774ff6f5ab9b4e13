"""Questions to the performance model over the bus, about servers that the request describes."""

from functools import cache, partial

from schemas.request import PerformanceAnswered, PerformanceRequested
from services.perfmodel.queueing import QueueingModel
from services.runtime import plugins

# It takes seconds a problem, and a service that plans has none to give away.
TOO_SLOW = "simulation"


def answer_request(verb: str, request: PerformanceRequested) -> PerformanceAnswered:
    """The answers to a request; may take a second, so it belongs into a thread.

    verb: a question of the performance model, as its command is called.

    Raises ValueError for a law or a model that does not exist.
    """
    # Imported with the first question: most optimizers are never asked one, and start sooner.
    from services.perfmodel.problems.answering import BATCH_SIZES_PER_CALL, Asking, Models, Question, answer

    models = Models(cache(partial(plugins.build, "stoker.laws")), cache(_model))
    if request.law is not None:
        models.law(request.law)
    if request.model is not None:
        models.queueing(request.model)
    asking = Asking(request.law, request.model, most_batch_sizes=BATCH_SIZES_PER_CALL)
    many = not isinstance(request.problems, dict)
    posed = request.problems if isinstance(request.problems, tuple) else (request.problems,)
    bodies = tuple(one.body for one in answer(Question(verb), posed, models, asking))
    return PerformanceAnswered(answers=bodies if many else bodies[0])


def _model(name: str) -> QueueingModel:
    if name == TOO_SLOW:
        raise ValueError(f"model: {name} is not asked over the bus; `stoker analyze --model {name}` runs it")
    model: QueueingModel = plugins.build("stoker.queueing", name)
    return model
