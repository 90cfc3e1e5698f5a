# make run    sets up .venv and trains:  make run CONFIG=configs/grpo_qwen.py:tiny ARGS="--config.seed=1"
# make test   sets up .venv and tests:   make test ARGS="tests/losses -x" JOBS=1
CONFIG ?= configs/grpo_qwen.py
ARGS ?=
JOBS ?= 2
VENV ?= .venv
export VENV PYTHON

.PHONY: run test setup lint format types clean

run:
	@bash setup.sh
	$(VENV)/bin/python -m experiments.run --config=$(CONFIG) $(ARGS)

test:
	@bash setup.sh test
	$(VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

# everything for working on the project itself
setup:
	@bash setup.sh test dev notebooks

lint:
	@bash setup.sh test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format:
	@bash setup.sh test
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

types:
	@bash setup.sh test
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
