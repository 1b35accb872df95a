.PHONY: test check local bench lock screenshots tools
PYTHON ?= python3
export PATH := $(PATH):/usr/sbin

test: .venv tools
	.venv/bin/pytest

check: .venv
	.venv/bin/ruff format --check
	.venv/bin/ruff check
	.venv/bin/mypy .
	.venv/bin/shellcheck --shell=bash users.sh .ci/run

local: .venv tools
	@.venv/bin/python -m tests.local

bench: bench/.venv tools
	@for tool in wrk mysql mysqldump; do command -v $$tool >/dev/null || { echo "Install $$tool: the bench needs it."; exit 1; }; done
	@! command -v npm >/dev/null || npm install --prefix bench --no-package-lock --no-audit --no-fund --silent
	bench/.venv/bin/python -m bench $(BENCH)

bench/.venv: bench/requirements.txt | tools
	$(PYTHON) -m venv --clear bench/.venv
	bench/.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r bench/requirements.txt
	@touch bench/.venv

lock: .venv
	.venv/bin/uv pip compile -q --universal --generate-hashes --python-version 3.11 pyproject.toml -o requirements.txt
	.venv/bin/uv pip compile -q --universal --generate-hashes --python-version 3.11 --group dev pyproject.toml -o tests/requirements.txt
	.venv/bin/uv pip compile -q --universal --generate-hashes --python-version 3.11 --group bench pyproject.toml -o bench/requirements.txt

screenshots: .venv
	SCREENSHOTS=docs .venv/bin/pytest tests/test_page.py -k whole_heal

.venv: tests/requirements.txt | tools
	$(PYTHON) -m venv --clear .venv
	.venv/bin/pip install --quiet --disable-pip-version-check --require-hashes --only-binary :all: -r tests/requirements.txt
	@touch .venv

# What the tests need of the system, installed where it is missing: Python's venv, openssl, a MySQL or MariaDB server.
tools:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null && command -v openssl >/dev/null && \
	{ command -v mysqld || command -v mariadbd; } >/dev/null || \
	if command -v apt-get >/dev/null; then \
	  sudo=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	  $$sudo apt-get update -q && $$sudo apt-get install -qy --no-install-recommends mariadb-client-core mariadb-server-core openssl python3-venv; \
	elif command -v brew >/dev/null; then brew install mariadb; \
	else echo "Install a MySQL or MariaDB server: there is no apt and no brew here to do it."; exit 1; fi
