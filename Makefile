.PHONY: help test check local cluster screenshots bench lock tools
PYTHON ?= python3
export PATH := $(PATH):/usr/sbin

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-12s%s\n", $$1, $$2 }' Makefile

test: .venv tools ## all tests; at the end a list of what was skipped, and what would have to be installed for it
	.venv/bin/pytest --ignore=tests/test_cluster.py

check: .venv ## format, lint, types, schemas
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/mypy .
	.venv/bin/shellcheck --shell=bash users.sh .ci/run
	DENO_NO_UPDATE_CHECK=1 .venv/bin/deno fmt --check --no-semicolons --line-width 120 page/
	.venv/bin/deno lint page/page.js
	.venv/bin/check-jsonschema --builtin-schema vendor.compose-spec docker-compose.yml
	.venv/bin/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/ci.yml
	.venv/bin/check-jsonschema --builtin-schema vendor.dependabot .github/dependabot.yml
	.venv/bin/zizmor --quiet --offline .github

local: .venv tools ## the stack as plain processes, without Docker, on APP_ADDRESS (127.0.0.1) and APP_PORT (5000)
	@.venv/bin/python -m tests.local

cluster: .venv ## the tests of deploy/kubernetes.yml on the cluster that kubectl points to
	CLUSTER=1 .venv/bin/pytest tests/test_cluster.py

screenshots: .venv ## the pictures of docs/
	SCREENSHOTS=docs .venv/bin/pytest tests/test_page.py -k whole_heal

bench: bench/.venv tools ## requests a second, beside other frameworks; needs wrk
	@for tool in wrk mysql mysqldump; do command -v $$tool >/dev/null || { echo "Install $$tool: the bench needs it."; exit 1; }; done
	@! command -v npm >/dev/null || npm install --prefix bench --no-package-lock --no-audit --no-fund --silent
	bench/.venv/bin/python -m bench $(BENCH)

bench/.venv: bench/requirements.txt | tools
	$(PYTHON) -m venv --clear bench/.venv
	bench/.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r bench/requirements.txt
	@touch bench/.venv

lock: .venv ## the locked packages, from pyproject.toml
	.venv/bin/uv pip compile -q --universal --generate-hashes --python-version 3.11 pyproject.toml -o requirements.txt
	.venv/bin/uv pip compile -q --universal --generate-hashes --python-version 3.11 --group dev pyproject.toml -o tests/requirements.txt
	.venv/bin/uv pip compile -q --universal --generate-hashes --python-version 3.11 --group bench pyproject.toml -o bench/requirements.txt

.venv: tests/requirements.txt | tools
	$(PYTHON) -m venv --clear .venv
	.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r tests/requirements.txt
	@touch .venv

# What the tests need of the system. The command that installs what is missing is shown before it runs.
tools:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	@{ $(PYTHON) -c 'import ensurepip' && command -v openssl && { command -v mysqld || command -v mariadbd; }; } >/dev/null 2>&1 || { \
	  sudo=$$([ "$$(id -u)" = 0 ] || echo "sudo "); \
	  if command -v apt-get >/dev/null; then \
	    install="$${sudo}apt-get update -q && $${sudo}apt-get install -qy --no-install-recommends mariadb-client-core mariadb-server-core openssl python3-venv"; \
	  elif command -v brew >/dev/null; then install="brew install mariadb"; \
	  else echo "Install Python's venv, openssl and a MySQL or MariaDB server: one of them is missing."; exit 1; fi; \
	  echo "Python's venv, openssl, or a MySQL or MariaDB server is missing. This installs it:"; echo "  $$install"; \
	  eval "$$install"; }
