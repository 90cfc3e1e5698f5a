"""A few supervised steps before RL, for weights that cannot answer anything yet."""

from experiments.session import Session
from experiments.setup import Model, fresh_state, state_layout
from experiments.sft import make_loss, packed_examples
from jaxalign.data.order import Batches
from jaxalign.data.packing import stack_rows
from jaxalign.training.mesh import spread
from jaxalign.training.optimizers import make_optimizer
from jaxalign.training.step import make_train_step


def warm_start(config, model: Model, session: Session):
    """Parameters after `config.warm_start.steps` supervised steps on the training questions and their answers.

    Always from the first step: it is short, and where a run is resumed its outcome is in the checkpoint already.
    """
    options = config.warm_start
    packed = packed_examples(config.data.source, model.tokenizer, config.data, options)
    batches = Batches(packed, options.rows_per_step, seed=config.seed)
    optimizer = make_optimizer("adamw", options.learning_rate, warmup_steps=min(20, options.steps // 5))
    layout = state_layout(model, optimizer)
    step = make_train_step(make_loss(model.decoder), optimizer, mesh=model.mesh, shardings=layout.shardings)
    state = fresh_state(config, model.read(), optimizer, layout)
    for position in range(options.steps):
        state, metrics = step(state, spread(stack_rows(batches[position]), model.mesh))
    session.print(f"  warm start: {options.steps} supervised steps, loss {float(metrics['loss']):.3f} nats per token")
    return state.params
