"""A GRPO step of SmolLM2-135M: 8 prompts x 8 completions of 12 new tokens, prompts of 24, full fine-tune, against TRL.

Both sides sample at temperature 1, reward, and make one on-policy update with AdamW; no KL term. Our side is the
experiment's own rollout and step (`experiments.rl`); TRL's is `GRPOTrainer`, its time taken by a callback between the
beginning and the end of a step. The rewards are as good as random, so that every group has a signal and nothing is left
out. What is compared is the time of equal work; that the loss is the formula's is shown by the library's tests.
"""

import statistics
import tempfile
import time

import numpy as np

from benchmarks import common

PROMPTS, GROUP, PROMPT, NEW = 8, 8, 24, 12


def random_reward(prompt: str, completion: str, example: dict) -> float:
    """A hash of the text: as good as random, and quick."""
    return float(sum(map(ord, completion)) % 7)


def prompt_texts(count: int) -> list[str]:
    random = np.random.default_rng(0)
    return [" ".join(map(str, random.integers(0, 10, 12))) for _ in range(count)]  # digit and blank: 23 tokens


class Jax:
    def __init__(self):
        from experiments import rl
        from experiments.rollout import RolloutWorker
        from experiments.setup import Policy, build_model, build_optimizer, fresh_state, state_layout
        from jaxalign.rewards.runner import Reward, RewardRunner
        from jaxalign.training.configuration import load_config
        from jaxalign.training.step import make_train_step

        config = load_config("configs/grpo_smollm.py")
        with config.unlocked():
            config.rollout.prompts_per_step, config.rollout.group_size = PROMPTS, GROUP
            config.rollout.max_new_tokens = NEW
            config.rl.report_kl_prompts = 0
            config.optimizer.schedule = "constant"
        model = build_model(config)
        rewards = RewardRunner([Reward("benchmarks.grpo_step:random_reward", trusted=True)])
        self._rollout = RolloutWorker(config, model, rewards, PROMPT)
        loss_fn = rl.make_loss(model.decoder, temperature=1.0, share_prompt=True, **config.rl.loss)
        optimizer = build_optimizer(config)
        layout = state_layout(Policy(model), optimizer)
        self._step = make_train_step(loss_fn, optimizer, mesh=model.mesh, shardings=layout.shardings)
        self._state = fresh_state(config, model.read(), optimizer, layout)
        self._mesh = model.mesh
        encode = model.tokenizer.encode
        self._examples = [dict(prompt=text, prompt_ids=encode(text)[:PROMPT]) for text in prompt_texts(400)]
        self._count = 0

    def steps(self, count: int) -> list[float]:
        """Seconds of each step."""
        from jaxalign.training.mesh import put_batch

        seconds = []
        for _ in range(count):
            began = time.perf_counter()
            start = PROMPTS * self._count % len(self._examples)
            batch = self._rollout(self._state.params, None, self._examples[start : start + PROMPTS], self._count).batch
            self._state, metrics = self._step(self._state, put_batch(batch, self._mesh))
            float(metrics["loss"])
            self._count += 1
            seconds.append(time.perf_counter() - began)
        return seconds


class Trl:
    """`form`: "float32" or "bfloat16" (autocast over float32 masters)."""

    def __init__(self, form: str, folder: str):
        self._form, self._folder = form, folder

    def steps(self, count: int) -> list[float]:
        """Seconds of each step but the first of a new trainer."""
        from datasets import Dataset
        from transformers import AutoTokenizer, TrainerCallback
        from trl import GRPOConfig, GRPOTrainer

        seconds = []

        class Clock(TrainerCallback):
            def on_step_begin(self, *unused, **also_unused):
                self.began = time.perf_counter()

            def on_step_end(self, *unused, **also_unused):
                seconds.append(time.perf_counter() - self.began)

        def rewards(completions, **unused):
            return [random_reward("", text, {}) for text in completions]

        tokenizer = AutoTokenizer.from_pretrained(self._folder)
        tokenizer.pad_token = tokenizer.eos_token
        settings = GRPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=PROMPTS * GROUP,
            num_generations=GROUP,
            max_completion_length=NEW,
            max_steps=count + 1,
            learning_rate=1e-5,
            beta=0.0,
            temperature=1.0,
            save_strategy="no",
            report_to=[],
            use_cpu=common.torch_device() == "cpu",
            bf16=self._form == "bfloat16",
            gradient_checkpointing=False,
            disable_tqdm=True,
            model_init_kwargs={"dtype": "float32"},
        )
        trainer = GRPOTrainer(
            model=self._folder,
            args=settings,
            train_dataset=Dataset.from_dict({"prompt": prompt_texts(400)}),
            reward_funcs=rewards,
            processing_class=tokenizer,
            callbacks=[Clock()],
        )
        trainer.train()
        return seconds[1:]


def main() -> None:
    arguments = common.parser(__doc__, rounds=2).parse_args()
    peer = common.has_peer(arguments.peer_python, "torch", "transformers", "trl", "datasets")
    common.print_machine()
    seconds: dict[str, list[float]] = {"jaxalign": []}
    workers = {"jaxalign": common.Worker("benchmarks.grpo_step:Jax", priority=arguments.priority)}
    try:
        with tempfile.TemporaryDirectory() as folder:
            if peer:
                common.export_model(folder)
                for form in ("float32", "bfloat16"):
                    workers[f"TRL, {form}"] = common.Worker(
                        "benchmarks.grpo_step:Trl",
                        python=arguments.peer_python,
                        form=form,
                        folder=folder,
                        priority=arguments.priority,
                    )
                    seconds[f"TRL, {form}"] = []
            workers["jaxalign"].call("steps", count=2)
            for _ in range(arguments.rounds):
                for name, worker in workers.items():
                    seconds[name] += worker.call("steps", count=3 if name == "jaxalign" else 2)
        medians = {name: statistics.median(times) for name, times in seconds.items()}
        rows = [
            [name, f"{medians[name]:.2f} s", f"{min(times):.2f} s", str(len(times))] for name, times in seconds.items()
        ]
        common.print_table(("", "median step", "quickest", "steps"), rows)
        print(f"  peak memory of our side: {workers['jaxalign'].call('memory_peak') / 1e9:.2f} GB")
        common.print_target("a step", medians["jaxalign"], 6, "s")
        for form, limit in (("float32", 3), ("bfloat16", 2.5)):
            if f"TRL, {form}" in medians:
                ratio = medians[f"TRL, {form}"] / medians["jaxalign"]
                common.print_target(f"speed of TRL, {form}", ratio, limit, "x", at_most=False)
    finally:
        for worker in workers.values():
            worker.close()


if __name__ == "__main__":
    main()
