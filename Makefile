# Two commands do everything on a machine with python3 (3.11+), make and a package index:
#   make demo    the main job on real data
#   make test    the tests
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow check bench clean
.DELETE_ON_ERROR:

demo: .venv/run.stamp
	$(BIN)/privet simulate --compare

test: .venv/dev.stamp
	$(BIN)/pytest -n 2 --dist loadfile -m "not slow"

# Kills, cuts and floods that take their time; CI runs these too.
test-slow: .venv/dev.stamp
	$(BIN)/pytest -m slow

check: .venv/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	mkdir -p .venv/check && ln -sfn "$(CURDIR)" .venv/check/privet # mypy wants the folder to bear the package's name
	MYPYPATH=.venv/check $(BIN)/mypy -p privet
	$(BIN)/pytest

# Simulated rounds against peers, each in an environment of its own (about 4 GB, once). A peer that cannot be installed
# is a line of the table that says so. `make bench BENCH=--quick` only shows that all of them run.
PEERS := flower opacus pfl
bench: .venv/run.stamp $(PEERS:%=.venv-bench/%.stamp)
	$(BIN)/python benchmarks/bench.py $(BENCH)

.venv-bench/%.stamp: benchmarks/peers/%.txt
	@echo "setting up .venv-bench/$* (about a minute, once)"
	-test -x .venv-bench/$*/bin/python || $(PYTHON) -m venv .venv-bench/$*
	-.venv-bench/$*/bin/python -m pip install --quiet --disable-pip-version-check -c $< "torch==2.13.0" \
		&& .venv-bench/$*/bin/python -m pip install --quiet --disable-pip-version-check -r $< && touch $@

# torch first: asked for by another package it would come with CUDA (constraints.txt).
.venv/run.stamp: pyproject.toml constraints.txt
	@echo "setting up .venv (about a minute, once)"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	@touch $@

.venv/dev.stamp: .venv/run.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

clean:
	rm -rf .venv .venv-bench runs build *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
