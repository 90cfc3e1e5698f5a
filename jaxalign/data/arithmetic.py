"""Short arithmetic with one integer answer: a task on which a small model can be seen to learn.

By default the questions are all of "What is a+b?" with 0 <= a, b <= 20, "What is a-b?" with 0 <= b <= a <= 20 and
"What is a*b?" with 0 <= a, b <= 12: 441 + 231 + 169 = 841 different ones. The ranges are small on purpose.
Policy-gradient training learns only from prompts that are answered right now and then. An instruction-tuned model of
135 million parameters does so for operands like these; hardly ever for sums of arbitrary two-digit numbers or for word
problems, and never for differences below zero (`negative` adds them).

Nothing is drawn with replacement: the set is enumerated and divided, so that no held-out question was ever trained on.
Neither was its twin: a+b and b+a, a*b and b*a, a-b and b-a (which differ in sign only) fall on the same side.
"""

import math

from jaxalign.data.hashing import digest
from jaxalign.data.rows import Rows
from jaxalign.errors import UserError

_OPERATIONS = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


class Arithmetic(Rows):
    """A source of {'prompt': str, 'answer': str, 'id': int}.

    `id` numbers the questions of the whole set (both splits) and does not depend on the seed. Which
    questions are held out, and the order of the rows, follow from a hash of (seed, question): the
    same on every machine and with every version of every library.

    Args:
        split: "train", "held_out" or "all".
        seed: of the division into splits.
        max_operand: largest operand of sums and differences.
        max_factor: largest factor of products.
        held_out: share of each operation's questions that is held out, in [0, 1); with the defaults, 213 or so.
        operations: which of "+-*" to use.
        negative: whether to ask for differences below zero too.
        template: text of the prompt; "{question}" stands for e.g. "3+4".

    Raises UserError: unknown split or operation, a range, share or template that makes no sense.
    """

    def __init__(
        self,
        split: str = "train",
        seed: int = 0,
        max_operand: int = 20,
        max_factor: int = 12,
        held_out: float = 0.25,
        operations: str = "+-*",
        negative: bool = False,
        template: str = "What is {question}?",
    ):
        if split not in ("train", "held_out", "all"):
            raise UserError(f"arithmetic split {split!r} is not known; choose train, held_out or all")
        if not operations or set(operations) - set(_OPERATIONS) or len(set(operations)) < len(operations):
            raise UserError(f"arithmetic operations {operations!r} must be different ones out of '+-*'")
        if max_operand < 0 or max_factor < 0:
            raise UserError(f"arithmetic ranges max_operand={max_operand}, max_factor={max_factor} must be >= 0")
        if not 0 <= held_out < 1:
            raise UserError(f"arithmetic held_out={held_out} is a share of the questions and must be in [0, 1)")
        if "{question}" not in template:
            raise UserError(f"arithmetic template {template!r} must contain {{question}}")
        rows = []
        first_id = 0
        for operation in operations:
            largest = max_factor if operation == "*" else max_operand
            rows += _divide(operation, largest, negative, split, seed, held_out, first_id)
            first_id += (largest + 1) ** 2
        rows.sort()  # by hash: operations mixed
        if not rows:
            raise UserError(f"arithmetic split {split!r} is empty with held_out={held_out}")
        examples = (
            {"prompt": template.replace("{question}", question), "answer": str(answer), "id": number}
            for _, question, answer, number in rows
        )
        super().__init__(examples, f"arithmetic ({split})")


class ArithmeticPairs(Rows):
    """The questions of `Arithmetic` with a right and a wrong answer.

    Rows are {'prompt', 'chosen', 'rejected', 'answer', 'id', 'objectives': {'correct': 1}}. The wrong answer is off by
    1 to 9, by how much follows from a hash of (seed, question). Options are those of `Arithmetic`.
    """

    def __init__(self, split: str = "train", seed: int = 0, **options):
        def with_answers(question: dict) -> dict:
            draw = digest(seed, f"wrong {question['prompt']}")
            right, distance = int(question["answer"]), 1 + draw[0] % 9
            wrong = right - distance if draw[1] % 2 and right >= distance else right + distance
            answers = {"chosen": question["answer"], "rejected": str(wrong)}
            return question | answers | {"objectives": {"correct": 1}}

        questions = Arithmetic(split, seed, **options)
        super().__init__(map(with_answers, questions), f"arithmetic ({split})")


def _divide(
    operation: str, largest: int, negative: bool, split: str, seed: int, held_out: float, first_id: int
) -> list:
    """(hash, question, answer, id) of the questions of one operation that belong to `split`."""
    compute = _OPERATIONS[operation]
    families = []  # a question and its twin, which stay together
    for low in range(largest + 1):
        for high in range(low, largest + 1):
            twins = sorted({(low, high), (high, low)})
            families.append([(a, b) for a, b in twins if negative or compute(a, b) >= 0])
    families.sort(key=lambda twins: digest(seed, f"{operation} {min(twins[0])} {max(twins[0])}"))
    wanted = math.ceil(held_out * sum(map(len, families)))
    rows, held = [], 0
    for twins in families:
        side = "held_out" if held < wanted else "train"
        held += len(twins) if side == "held_out" else 0
        if split not in (side, "all"):
            continue
        for a, b in twins:
            question = f"{a}{operation}{b}"
            number = first_id + a * (largest + 1) + b
            rows.append((digest(seed, question), question, compute(a, b), number))
    return rows
