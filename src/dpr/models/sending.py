"""What a transformers model needs to give the vectors of its layers in a process that it was sent to.

Source: transformers 5.23, utils/output_capturing.py, whose global variables a sent model leaves behind.
"""

import copyreg

from transformers import PreTrainedModel
from transformers.utils import output_capturing


def before_sending() -> None:
    """Have models refer to the collector of layers' vectors by name, as each process has its own."""
    copyreg.pickle(output_capturing.CompileableContextVar, lambda variable: "_active_collector")


def after_sending(model: PreTrainedModel) -> None:
    """Tell transformers, as making the model does, which outputs of its parts can be collected."""
    for part in model.modules():
        if isinstance(part, PreTrainedModel):
            output_capturing._CAN_RECORD_REGISTRY[part] = part._can_record_outputs
