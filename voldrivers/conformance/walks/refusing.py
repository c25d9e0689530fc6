"""What refuses a rule of the stateful machine, by the model: errors of which it must get one, or none."""

from voldrivers.conformance.walks.model import Known, Model, Target
from voldrivers.conformance.walks.traces import Step
from voldrivers.errors import InvalidSize, InvalidState, NotFound, NotSupported, VolDriverError

Refusals = tuple[type[VolDriverError], ...]


def target(step: Step) -> Target:
    """Give where a step attaches or detaches."""
    return step.number("place"), step.flag("instance")


def never(_model: Model, _step: Step) -> Refusals:
    """Nothing stands against it."""
    return ()


def no_create(model: Model, step: Step) -> Refusals:
    """A volume for several attachments needs to be declared."""
    lacking = step.flag("multi") and not model.ground.declared.multi_attach
    return (NotSupported,) if lacking else ()


def always(_model: Model, _step: Step) -> Refusals:
    """What is taken is taken."""
    return (InvalidState,)


def no_delete(model: Model, step: Step) -> Refusals:
    """A volume that something needs stays."""
    known = model.volume(step)
    return (InvalidState,) if known.targets or known.snapshots or known.pending_bytes else ()


def no_attach(model: Model, step: Step) -> Refusals:
    """One place at a time, unless it is made for several, and none twice."""
    known = model.volume(step)
    alone = known.targets and not known.multi
    return (InvalidState,) if alone or known.pending_bytes or target(step) in known.targets else ()


def no_detach(model: Model, step: Step) -> Refusals:
    """It must be attached there, and not be extended."""
    if target(step) not in model.volume(step).targets:
        return (NotFound,)
    return _busy(model.volume(step))


def no_extend(model: Model, step: Step) -> Refusals:
    """One extend at a time; of a volume in use where that is declared."""
    known = model.volume(step)
    lacking = known.targets and not model.ground.declared.declares("in_use_extend")
    return (*_busy(known), *((NotSupported,) if lacking else ()))


def no_bad_extend(model: Model, step: Step) -> Refusals:
    """The size is none, or too small or large."""
    return (InvalidSize, *_busy(model.volume(step)))


def no_snapshot(model: Model, step: Step) -> Refusals:
    """It must be declared."""
    lacking = () if model.ground.declared.snapshots else (NotSupported,)
    return (*_busy(model.volume(step)), *lacking)


def no_snapshot_removal(model: Model, step: Step) -> Refusals:
    """A volume that is extended is left alone."""
    return _busy(model.volume(step))


def no_revert(model: Model, step: Step) -> Refusals:
    """Only a detached volume goes back, where that is declared."""
    known = model.volume(step)
    lacking = () if model.ground.declared.revert else (NotSupported,)
    return (*((InvalidState,) if known.targets or known.pending_bytes else ()), *lacking)


def no_clone(model: Model, step: Step) -> Refusals:
    """It must be declared, and its source not be extended."""
    lacking = () if model.ground.declared.clones else (NotSupported,)
    return (*_busy(model.source(step)), *lacking)


def no_bad_clone(model: Model, step: Step) -> Refusals:
    """A copy is not smaller than its source."""
    return (InvalidSize, *no_clone(model, step))


def _busy(known: Known) -> Refusals:
    return (InvalidState,) if known.pending_bytes else ()
