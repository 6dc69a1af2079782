# The verbs of this repository; `make help` lists them. Written for GNU make 3.81 and later.

# The interpreter that the virtual environment is made with, and where that lies.
PYTHON ?= python3
VENV ?= .venv
# What a verb passes on, for instance `make test ARGS="-k login"`.
ARGS ?=

PY = $(VENV)/bin/python
# Not empty if PYTHON was named by the user: then an environment of another version will not do.
CHOSEN = $(filter command environment,$(origin PYTHON))
ASSETS = $(shell find assets -type f) package-lock.json

.DEFAULT_GOAL := help
.PHONY: help run test test-all lint format migration rehearse bench lock clean python-packages npm-packages

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo 'PORT and HOST say where `make run` serves, DATABASE_URL names a database to use instead'
	@echo 'of its own, PYTHON=python3.13 makes the virtual environment with that interpreter.'

run: python-packages npm-packages ## serve with reload on http://127.0.0.1:8000
	@exec $(PY) -m development

PYTEST = $(PY) -m pytest -n logical --maxprocesses 4

test: python-packages app/manifest.json ## test the application; ARGS="tests/unit -k login" for some tests of any package
	@exec $(PYTEST) $(ARGS)

test-all: python-packages app/manifest.json ## test all packages, and what takes long: deploys, browser, the verbs of make
	@exec $(PYTEST) tests quart_upsun rehearsal embedded_postgres $(ARGS)

lint: python-packages ## check style, types and migrations
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(PY) -m development.migrations_lint

format: python-packages ## sort imports and format
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

migration: python-packages ## write a migration for what changed in the models: m="add a column"
	@test -n "$$m" || { echo 'Say what it does: make migration m="add a column"' >&2; exit 1; }
	@exec $(PY) -m development sh -c \
		'python -m alembic upgrade head && exec python -m alembic revision --autogenerate -m "$$m"'

rehearse: python-packages ## deploy to a local Upsun, as committed; ARGS=--help for what it can do
	@exec $(PY) -m rehearsal $(ARGS)

bench: python-packages app/manifest.json ## measure what is promised of speed, for docs/performance.md; ARGS="--only api"
	@exec $(PY) -m benchmarks $(ARGS)

COMPILE = $(PY) -m uv pip compile pyproject.toml --universal --python-version 3.11 \
	--generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links -q

lock: python-packages ## pin what pyproject.toml and package.json ask for; ARGS=--upgrade for newer
	$(COMPILE) -o requirements.txt $(ARGS)
	$(COMPILE) --extra dev -c requirements.txt -o requirements-dev.txt $(ARGS)
	test ! -d benchmarks/side_by_side || \
		$(PY) -m uv pip compile benchmarks/side_by_side/requirements.in --universal \
		--python-version 3.11 --generate-hashes --no-annotate --no-header \
		--no-emit-index-url --no-emit-find-links -q \
		-o benchmarks/side_by_side/requirements.txt $(ARGS)
	npm install --package-lock-only

clean: ## remove caches and what was built, but neither packages nor data
	rm -rf build app/static app/manifest.json .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . \( -name node_modules -o -name '.?*' \) -prune -o -name __pycache__ -type d -prune \
		-exec rm -rf {} +

# What is installed is compared with a copy of its lock file, which is written last: neither the
# times that git gives to files nor a set-up that was interrupted can mislead that.

python-packages:
	@set -eu; \
	python='$(PYTHON)'; \
	if [ -z '$(CHOSEN)' ]; then \
		own=$$($(PY) -c 'import sys; print(sys._base_executable)' 2>/dev/null) || own=; \
		python=$${own:-$$python}; \
	fi; \
	version='import sys; print("%d.%d.%d" % sys.version_info[:3])'; \
	asked=$$("$$python" -c "$$version" 2>/dev/null) || asked='not to be found'; \
	case $$asked in \
		3.1[1-9]* | 3.[2-9][0-9]* | [4-9].*) ;; \
		*) echo "Python 3.11 or later is needed, but $$python is $$asked;" \
			'name another with PYTHON=python3.13 or the like.' >&2; exit 1 ;; \
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
	version=$$(node --version 2>/dev/null) || version='not to be found'; \
	case $$version in \
		v[2-9][0-9].* | v[1-9][0-9][0-9].*) ;; \
		*) echo "Node 20 or later is needed, but node is $$version." >&2; exit 1 ;; \
	esac; \
	command -v npm >/dev/null || { echo 'npm is needed, but not to be found.' >&2; exit 1; }; \
	echo 'Installing npm packages'; \
	npm ci --no-progress --loglevel=error >/dev/null; \
	cp package-lock.json node_modules/.installed.json

app/manifest.json: $(ASSETS) | npm-packages
	@npm run --silent build
