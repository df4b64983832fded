"""What a run does about a step whose numbers went wrong: leave out its batch, or all since the last checkpoint.

Either way the run goes on as if those positions had never been its own, on all ranks alike, and in every repetition.
"""

from service.run.checkpoint import newest_checkpoint, read_tensors, restore
from service.run.events import ANSWERS, make_fault_event
from service.training.step_result import StepFault
from service.training.worker import Worker


def recover(worker: Worker, fault: StepFault) -> None:
    """Go on after a fault as the run's options say; all ranks call it together. Raises the fault where it ends the run:

    where it is to, after too many faults, or with no checkpoint to go back to.
    """
    run, state = worker.run, fault.state
    answered = sum(event["kind"] in ANSWERS for event in state.events)
    if run.on_fault == "end":
        raise fault
    if answered >= run.most_faults:
        raise StepFault(f"{fault}; {answered} faults have been answered, expected no more (--most-faults)", state)
    first = state.position - run.batch_size
    if run.on_fault == "rollback":
        first = go_back(worker, fault)
    worker.go_on_from(state)
    worker.record_event(make_fault_event(run.on_fault, state, worker.samples, first, str(fault)))
    worker.save()


def go_back(worker: Worker, fault: StepFault) -> int:
    """Take the weights, velocities and averages of the newest sound checkpoint; returns its position."""
    worker.saver.wait()
    ranks, training = worker.ranks, worker.training
    checkpoint = ranks.on_all_ranks(
        lambda: newest_checkpoint(worker.run.out, worker.display.say) if ranks.is_leader else None
    )
    position = ranks.broadcast(checkpoint.state.position if checkpoint else None)
    if position is None:
        raise StepFault(f"{fault}; there is no checkpoint yet, expected one to go back to", fault.state)
    tensors = ranks.broadcast_tensors(read_tensors(checkpoint) if checkpoint else {})
    restore(tensors, training.model, training.optimizer)
    return position
