# The commands of this repository; `make help` lists them. Works with GNU make 3.81 and later.

# The interpreter for the virtual environment, and the environment's directory.
PYTHON ?= python3
VENV ?= .venv
# Extra arguments for the command, for instance `make test ARGS="-k login"`.
ARGS ?=

PY = $(VENV)/bin/python
# Not empty if the user set PYTHON: then a virtual environment of another version is rebuilt.
CHOSEN = $(filter command environment,$(origin PYTHON))
ASSETS = $(shell find assets -type f) package-lock.json

.DEFAULT_GOAL := help
.PHONY: help run test test-all lint format migration rehearse bench lock clean python-packages npm-packages

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo 'Variables:'
	@echo '  PORT, HOST      where `make run` listens (default: 127.0.0.1:8000)'
	@echo '  DATABASE_URL    database for `make run` (default: an embedded PostgreSQL in .data/)'
	@echo '  PYTHON          interpreter for the virtual environment (default: python3)'

run: python-packages npm-packages ## serve with reload on http://127.0.0.1:8000
	@exec $(PY) -m development

PYTEST = $(PY) -m pytest -n logical --maxprocesses 4

test: python-packages app/manifest.json ## test the application; ARGS="tests/unit -k login" selects tests of any package
	@exec $(PYTEST) $(ARGS)

test-all: python-packages app/manifest.json ## run all tests, including the slow ones: deploys, browser, make commands
	@exec $(PYTEST) tests quart_upsun rehearsal embedded_postgres $(ARGS)

lint: python-packages ## check style, types and migrations
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(PY) -m development.migrations_lint

format: python-packages ## sort imports and format the code
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

migration: python-packages ## generate a migration from the models: m="add a column"
	@test -n "$$m" || { echo 'A description is required: make migration m="add a column"' >&2; exit 1; }
	@exec $(PY) -m development sh -c \
		'python -m alembic upgrade head && exec python -m alembic revision --autogenerate -m "$$m"'

rehearse: python-packages ## deploy the last commit to a local Upsun; ARGS=--help lists the options
	@exec $(PY) -m rehearsal --strict $(ARGS)

bench: python-packages app/manifest.json ## run the benchmarks and update docs/performance.md; ARGS="--only api" runs one
	@exec $(PY) -m benchmarks $(ARGS)

COMPILE = $(PY) -m uv pip compile pyproject.toml --universal --python-version 3.11 \
	--generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links -q

lock: python-packages ## compile the lock files; ARGS=--upgrade upgrades the packages
	$(COMPILE) -o requirements.txt $(ARGS)
	$(COMPILE) --extra dev -c requirements.txt -o requirements-dev.txt $(ARGS)
	test ! -d benchmarks/side_by_side || \
		$(PY) -m uv pip compile benchmarks/side_by_side/requirements.in --universal \
		--python-version 3.11 --generate-hashes --no-annotate --no-header \
		--no-emit-index-url --no-emit-find-links -q \
		-o benchmarks/side_by_side/requirements.txt $(ARGS)
	npm install --package-lock-only

clean: ## remove caches and build output, but not packages or data
	rm -rf build app/static app/manifest.json .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . \( -name node_modules -o -name '.?*' \) -prune -o -name __pycache__ -type d -prune \
		-exec rm -rf {} +

# The lock file is copied after a successful installation, and compared with that copy later. Unlike
# timestamps, this is not confused by a Git checkout or an interrupted installation.

python-packages:
	@set -eu; \
	python='$(PYTHON)'; \
	if [ -z '$(CHOSEN)' ]; then \
		own=$$($(PY) -c 'import sys; print(sys._base_executable)' 2>/dev/null) || own=; \
		python=$${own:-$$python}; \
	fi; \
	version='import sys; print("%d.%d.%d" % sys.version_info[:3])'; \
	asked=$$("$$python" -c "$$version" 2>/dev/null) || asked='not installed'; \
	case $$asked in \
		3.1[1-9]* | 3.[2-9][0-9]* | [4-9].*) ;; \
		*) echo "Python 3.11 or later is required, but $$python is $$asked." \
			'Choose another interpreter, for instance PYTHON=python3.13.' >&2; exit 1 ;; \
	esac; \
	found=$$($(PY) -c "$$version" 2>/dev/null) || found=; \
	if [ "$$asked" = "$$found" ] && cmp -s requirements-dev.txt $(VENV)/installed.txt; then \
		exit 0; \
	fi; \
	echo "Installing Python packages into $(VENV) (about a minute the first time)"; \
	"$$python" -m venv --clear $(VENV); \
	PIP_USER=0 PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1 \
		$(PY) -m pip install -qq --require-hashes -r requirements-dev.txt; \
	cp requirements-dev.txt $(VENV)/installed.txt

npm-packages:
	@set -eu; \
	if cmp -s package-lock.json node_modules/.installed.json; then exit 0; fi; \
	version=$$(node --version 2>/dev/null) || version='not installed'; \
	case $$version in \
		v[2-9][0-9].* | v[1-9][0-9][0-9].*) ;; \
		*) echo "Node 20 or later is required, but node is $$version." >&2; exit 1 ;; \
	esac; \
	command -v npm >/dev/null || { echo 'npm is required, but not installed.' >&2; exit 1; }; \
	echo 'Installing npm packages'; \
	npm ci --no-progress --loglevel=error >/dev/null; \
	cp package-lock.json node_modules/.installed.json

app/manifest.json: $(ASSETS) | npm-packages
	@npm run --silent build
