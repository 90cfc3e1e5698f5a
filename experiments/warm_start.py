"""A few supervised steps before RL, for weights that cannot answer anything yet."""

from collections.abc import Callable

from experiments.setup import Model, Policy, fresh_state, state_layout
from experiments.sft import make_loss, packed_examples
from jaxalign.data.order import Batches
from jaxalign.data.packing import stack_rows
from jaxalign.training.mesh import spread
from jaxalign.training.optimizers import make_optimizer


def warm_start(config, model: Model, say: Callable[[str], None]):
    """Parameters after `config.warm_start.steps` supervised steps on the training questions and their answers.

    Always from the first step: it is short. Where a run is resumed its outcome is in the checkpoint already; the base
    of an adapter is not, and is made again.
    """
    options = config.warm_start
    packed = packed_examples(config.data.source, model.tokenizer, config.data, options)
    batches = Batches(packed, options.rows_per_step, seed=config.seed)
    optimizer = make_optimizer("adamw", options.learning_rate, warmup_steps=min(20, options.steps // 5))
    policy = Policy(model)
    layout = state_layout(policy, optimizer)
    step = policy.train_step(make_loss(model.decoder), optimizer, layout)
    state = fresh_state(config, model.read(), optimizer, layout)
    for position in range(options.steps):
        state, metrics = step(state, spread(stack_rows(batches[position]), model.mesh))
    say(f"  warm start: {options.steps} supervised steps, loss {float(metrics['loss']):.3f} nats per token")
    return state.params


def first_weights(config, model: Model, say: Callable[[str], None]) -> dict:
    """What training starts from: the model's weights, after the warm start where `config.warm_start` has one."""
    warm = "warm_start" in config and config.warm_start.steps
    return warm_start(config, model, say) if warm else model.read()
