.PHONY: help test test-image check local cluster screenshots bench lock database
PYTHON ?= python3
RUN = .venv/bin/
CHECK = .venv-check/bin/

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s%s\n", $$1, $$2 }' Makefile

test: database .venv ## all tests but those of a cluster; only some: make test TESTS=tests/app
ifdef TESTS
	$(RUN)pytest $(TESTS)
else
	$(RUN)pytest --numprocesses 3 $(SIDE_BY_SIDE) tests/files tests/app
	$(RUN)pytest --numprocesses 4 $(SIDE_BY_SIDE) tests/engine tests/platforms
	$(RUN)pytest -m timed
endif
# A worker runs a whole file, in the order of the names. By default, files with few tests come last,
# but here such files run long.
SIDE_BY_SIDE = --dist loadfile --no-loadscope-reorder -m "not timed"

test-image: ## the tests of the app on the Python of the images; without those in the browser
	docker build --quiet --file tests/Dockerfile --tag cct-tests .
	docker run --rm --init --volume "$(CURDIR):/cct:ro" cct-tests

check: .venv .venv-check ## format, lint, types, schemas
	$(CHECK)ruff format --check
	$(CHECK)ruff check
	$(CHECK)mypy --python-executable $(RUN)python .
	$(CHECK)shellcheck db/*.sh tools/*.sh .ci/run
	DENO_NO_UPDATE_CHECK=1 $(CHECK)deno fmt --check --no-semicolons --line-width 100 page/
	$(CHECK)deno lint page/page.js
	for version in 1.30 1.37; do $(CHECK)kubernetes-validate --strict --quiet \
	  --kubernetes-version $$version deploy/kubernetes/[!k]*.yml || exit 1; done
	$(CHECK)zizmor --quiet --offline .github

local: database .venv ## the stack without Docker: a private database, seeder, server, healer
	@$(RUN)python -m tools.local

cluster: .venv ## the tests of deploy/kubernetes, on the cluster that kubectl reaches
	CLUSTER=1 $(RUN)pytest tests/platforms/test_cluster.py

screenshots: .venv ## the pictures in docs/
	SCREENSHOTS=docs $(RUN)pytest tests/engine -k whole_heal

bench: .venv ## what a request costs, beside Go; needs Docker
	$(RUN)python -m bench $(BENCH)

lock: .venv-check ## the locked packages, from pyproject.toml
	$(CHECK)uv pip compile $(LOCK) pyproject.toml -o requirements.txt
	$(CHECK)uv pip compile $(LOCK) pyproject.toml --group test -o tests/requirements.txt
	$(CHECK)uv pip compile $(LOCK) --group check -o tools/requirements.txt
LOCK = -q --universal --generate-hashes --python-version 3.11

database:
	@tools/require.sh database

.venv: tests/requirements.txt
.venv-check: tools/requirements.txt
.venv .venv-check:
	@tools/require.sh python $(PYTHON)
	$(PYTHON) -m venv --clear $@
	$@/bin/pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r $<
	@touch $@
