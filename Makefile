# The environment is .venv; PYTHON chooses what makes it, EXTRAS what goes into it.
PYTHON ?= python3
EXTRAS ?= dev
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo env test test-slow test-gpu gpu-minutes check bench clean

demo: env
	$(BIN)/compress run pipelines/quickstart.yaml

env: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	touch $(STAMP)

test: env
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

test-slow: env
	$(BIN)/python -m pytest -m slow -n 2 --dist loadscope --no-loadscope-reorder

# On a machine with a GPU; elsewhere its tests fail. Tests that need two or more are skipped with one.
test-gpu: env
	$(BIN)/python -m pytest -m "gpu" tests/gpu tests/train/test_attention_gpu.py
	$(BIN)/python -m pytest -m "" tests/distill/test_gpu_rows.py

gpu-minutes: env
	$(BIN)/python tests/benchmarks/gpu_first_minutes.py

check: env
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: env
	for script in tests/benchmarks/*.py; do $(BIN)/python $$script --quick || exit 1; done

clean:
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
