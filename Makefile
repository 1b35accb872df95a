.PHONY: help test check local cluster screenshots bench lock
PYTHON ?= python3
RUN = .venv/bin/

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s%s\n", $$1, $$2 }' Makefile

test: .venv ## all tests but those of a cluster; only some: make test TESTS=tests/app
	@tools/require.sh database
ifdef TESTS
	$(RUN)pytest $(TESTS)
else
	@rm -f $(SUMMARY)
	$(RUN)pytest --numprocesses 3 $(SIDE_BY_SIDE) tests/files tests/app
	$(RUN)pytest --numprocesses 4 $(SIDE_BY_SIDE) tests/engine tests/platforms
	$(RUN)pytest -m timed
	@cat $(SUMMARY)
endif
export SUMMARY = .venv/summary
# A worker runs a whole file, in the order of the names. By default, files with few tests come last,
# but here such files run long.
SIDE_BY_SIDE = --dist loadfile --no-loadscope-reorder -m "not timed"

check: .venv ## format, lint, types, schemas
	$(RUN)ruff format --check
	$(RUN)ruff check
	$(RUN)mypy .
	$(RUN)shellcheck db/*.sh tools/*.sh .ci/run
	DENO_NO_UPDATE_CHECK=1 $(RUN)deno fmt --check --no-semicolons --line-width 100 page/
	$(RUN)deno lint page/page.js
	$(RUN)check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	$(RUN)check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/ci.yml
	$(RUN)check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	$(RUN)zizmor --quiet --offline .github

local: .venv ## the stack without Docker: a private database, seeder, server, healer
	@tools/require.sh database
	@$(RUN)python -m tools.local

cluster: .venv ## the tests of deploy/kubernetes.yml, on the cluster that kubectl reaches
	CLUSTER=1 $(RUN)pytest tests/platforms/test_cluster.py

screenshots: .venv ## the pictures in docs/
	SCREENSHOTS=docs $(RUN)pytest tests/engine -k whole_heal

bench: .venv ## requests a second, beside Go; needs wrk
	@tools/require.sh database
	$(RUN)python -m bench $(BENCH)

lock: .venv ## the locked packages, from pyproject.toml
	$(RUN)uv pip compile $(LOCK) -o requirements.txt
	$(RUN)uv pip compile $(LOCK) --group dev -o tests/requirements.txt
LOCK = -q --universal --generate-hashes --python-version 3.11 pyproject.toml

.venv: tests/requirements.txt
	@tools/require.sh python $(PYTHON)
	$(PYTHON) -m venv --clear .venv
	$(RUN)pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r $<
	@touch .venv
