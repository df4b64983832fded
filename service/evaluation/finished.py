"""The evaluation that a run ends with: its network on the paper's ten views, by all its ranks."""

from dataclasses import replace
from typing import Final

from model.views import Views
from service.evaluation.evaluate import Evaluator, Stopped, open_pictures
from service.network.read import assemble
from service.run.checkpoint import Evaluation, find_checkpoint, read_weights
from service.training.worker import Worker

VIEWS: Final[Views] = 10


def evaluate_finished(worker: Worker) -> None:
    """Measure the network of a run whose epochs are done, once; a signal ends it, and the next start does it.

    Every rank gets the whole network from the checkpoint that was just saved, whatever it trained of it.
    """
    saved = worker.ranks.broadcast(worker.saver.wait())
    if not worker.evaluation_due or not saved:
        return
    worker.heartbeat.beat("validating")
    run, ranks, path = worker.run, worker.ranks, worker.writer.last_good
    weights = read_weights(find_checkpoint(path)) if ranks.is_leader and path else {}
    network = assemble(
        run.out,
        "",
        replace(run.model, precision="float32"),
        run.data.crop,
        worker.preprocessing,
        dict(ranks.broadcast_tensors(weights)),
        worker.device,
    )
    evaluator = Evaluator(
        [network],
        open_pictures(run.data.shards, worker.loader.device, run.data.threads or ranks.threads_per_rank),
        "val",
        views=VIEWS,
        ranks=ranks,
        advance=lambda count: worker.heartbeat.beat("validating"),
        should_stop=lambda: worker.stop.signal is not None,
    )
    try:
        found = evaluator.evaluate()
    except Stopped:
        return
    result, state = found.result, worker.state
    worker.record_evaluation(
        Evaluation(
            epoch=state.position // worker.samples,
            step=state.step,
            views=VIEWS,
            samples=found.samples,
            top1=result.top1.error,
            top5=result.top5.error,
            interval=result.top1.interval,
        )
    )
