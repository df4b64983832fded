"""The evaluation that a run ends with: its network on the paper's ten views, by all its ranks."""

from dataclasses import replace
from typing import Final

from model.views import Views
from service.evaluation.evaluate import Evaluator, Stopped, open_pictures
from service.network.read import assemble
from service.network.trained import TrainedNetwork
from service.run.checkpoint import Evaluation, find_checkpoint, read_weights
from service.training.worker import Worker

VIEWS: Final[Views] = 10


def evaluate_finished(worker: Worker) -> None:
    """Measure the network of a run whose epochs are done, once; a signal ends it, and the next start does it."""
    saved = worker.ranks.broadcast(worker.saver.wait())
    if not worker.evaluation_due or not saved:
        return
    worker.control_queue.close("the run is trained and measures its network, expected it to train; it ends by itself")
    worker.heartbeat.beat("validating")
    worker.validator.close()  # another pipeline takes its place in the device's memory
    run, ranks, state = worker.run, worker.ranks, worker.state
    evaluator = Evaluator(
        [whole_network(worker)],
        open_pictures(
            run.data.shards,
            worker.loader.device,
            run.data.threads or ranks.threads_per_rank,
            cache=run.data.cache,
            cache_bytes=run.data.cache_bytes,
        ),
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
    worker.loader.damaged += found.damaged
    worker.report_damage()
    top1, top5 = found.result.top1, found.result.top5
    worker.record_evaluation(
        Evaluation(
            epoch=state.position // worker.samples,
            step=state.step,
            views=VIEWS,
            samples=found.samples,
            top1=top1.error,
            top5=top5.error,
            interval=top1.interval,
        )
    )


def whole_network(worker: Worker) -> TrainedNetwork:
    """The network of the checkpoint that was just saved, on every rank, whatever the rank trained of it."""
    run, ranks, path = worker.run, worker.ranks, worker.writer.last_good
    weights = read_weights(find_checkpoint(path).path) if ranks.is_leader and path else {}
    config = replace(run.model, precision="float32")
    tensors = dict(ranks.broadcast_tensors(weights))
    return assemble(run.out, "", config, run.data.crop, worker.preprocessing, tensors, worker.device)
