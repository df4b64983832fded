"""What a run does about a step whose numbers went wrong: leave out its batch, or all since the last checkpoint.

Either way the run goes on as if those positions had never been its own, on all ranks alike, and in every repetition.
"""

from pipeline.command import InputError
from service.run.checkpoint import newest_checkpoint, read_tensors, restore
from service.run.events import ANSWERS, make_fault_event
from service.training.step_result import StepFault
from service.training.worker import Worker


def recover(worker: Worker, fault: StepFault) -> None:
    """Go on after a fault as the run's options say; all ranks call it together. Raises the fault where it ends the run:

    where it is to, after too many faults, or with no checkpoint to go back to.
    """
    run, state = worker.run, fault.state
    forks = [place for place, event in enumerate(state.events) if event["kind"] == "fork"]
    own = state.events[forks[-1] :] if forks else state.events  # a parent's faults were not this run's
    answered = sum(event["kind"] in ANSWERS for event in own)
    if run.on_fault == "end":
        raise fault
    if answered >= run.most_faults:
        raise StepFault(f"{fault}; {answered} faults have been answered, expected no more (--most-faults)", state)
    first = state.position - run.batch_size
    if run.on_fault == "rollback":
        first = go_back(worker, fault)
    worker.go_on_from(state)
    worker.record_event(make_fault_event(run.on_fault, state, worker.samples, first, str(fault)))
    worker.validate_if_due()
    worker.save()


def go_back(worker: Worker, fault: StepFault) -> int:
    """Take the weights, velocities and averages of the newest sound checkpoint; returns its position."""
    worker.saver.wait()
    ranks, training = worker.ranks, worker.training
    position, why, tensors = None, "", {}
    if ranks.is_leader:
        try:
            if checkpoint := newest_checkpoint(worker.run.out, worker.display.say):
                position, tensors = checkpoint.state.position, read_tensors(checkpoint)
            else:
                why = "there is no checkpoint yet, expected one to go back to"
        except (InputError, OSError) as error:
            position, why = None, str(error)
    position, why = ranks.broadcast((position, why))
    if position is None:
        raise StepFault(f"{fault}; {why}", fault.state)
    restore(ranks.broadcast_tensors(tensors), training.model, training.optimizer)
    return position
