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
.PHONY: help start run test test-all check lint format feature migration remove upgrade rehearse bench lock audit sbom clean python-packages npm-packages

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo 'Variables:'
	@echo '  PORT, HOST      where `make run` listens (default: 127.0.0.1:8000)'
	@echo '  DATABASE_URL    database for `make run` (default: an embedded PostgreSQL in .data/)'
	@echo '  PYTHON          interpreter for the virtual environment (default: python3)'

# The interpreter that runs `make start`, before or after the packages are installed.
START = $(if $(CHOSEN),$(PYTHON),$(firstword $(wildcard $(PY)) $(PYTHON)))
# An option with the value of a variable, if it was given on the command line.
given = $(if $(filter command,$(origin $(1))),--$(2)="$$$(1)")

start: ## make this your own application: NAME=my-service; ARGS=--help lists the options
	@test -d development/start || { \
		echo 'This application was started already. `make remove FEATURE=…` removes a feature.' >&2; exit 2; }
	@exec $(START) -m development.start $(call given,NAME,name) $(call given,TITLE,title) \
		$(call given,AUTHOR,author) $(call given,LICENSE,license) $(call given,KEEP,keep) $(ARGS)

run: python-packages npm-packages ## serve with reload on http://127.0.0.1:8000
	@exec $(PY) -m development

PYTEST = $(PY) -m pytest -n logical --maxprocesses 4

test: python-packages app/manifest.json ## test the application; ARGS="tests/unit -k login" selects tests of any package
	@exec $(PYTEST) $(ARGS)

test-all: python-packages app/manifest.json ## run all tests, including the slow ones: deploys, browser, make commands
	@exec $(PYTEST) tests quart_upsun rehearsal embedded_postgres $(ARGS)

# Tests that take seconds and fail for most mistakes in new code.
FAST_TESTS = tests/unit tests/documents tests/features/test_policy.py

check: python-packages app/manifest.json ## lint and run the fast tests; run this after each change
	@code=0; \
	$(MAKE) --no-print-directory lint || code=1; \
	$(PYTEST) -q $(FAST_TESTS) || code=1; \
	exit $$code

lint: python-packages ## check style, types and migrations
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	$(PY) -m development.migrations_lint

format: python-packages ## sort imports and format the code; reports what it cannot fix
	$(PY) -m ruff check --fix-only
	$(PY) -m ruff format
	$(PY) -m ruff check

# An option with the value of a variable, if it was given on the command line.
given = $(if $(filter command,$(origin $(1))),--$(2)="$$$(1)")

feature: python-packages app/manifest.json ## generate a feature: NAME=notes FIELDS="title:str due:date?"; ARGS=--help
	@exec $(PY) -m development.feature $(call given,NAME,name) $(call given,FIELDS,fields) \
		$(call given,SINGULAR,singular) $(call given,API,api) $(ARGS)

migration: python-packages ## generate a migration from the models: m="add a column"
	@test -n "$$m" || { echo 'A description is required: make migration m="add a column"' >&2; exit 1; }
	@exec $(PY) -m development sh -c \
		'python -m alembic upgrade head && python -m alembic revision --autogenerate -m "$$m" && { \
		python -m development.migrations_lint head || \
		echo "Edit the migration as the recipes show; \`make lint\` checks it." >&2; }'

remove: python-packages ## remove an optional feature: FEATURE=bookmarks; ARGS=--help lists them
	@exec $(PY) -m development.remove $(FEATURE) $(ARGS)

upgrade: python-packages ## take over a newer release: FROM=<directory, archive or Git URL>; ARGS=--help lists the options
	@exec $(PY) -m development.upgrade --from "$$FROM" --release "$$RELEASE" $(ARGS)

rehearse: python-packages ## deploy the last commit to a local Upsun; ARGS=--help lists the options
	@exec $(PY) -m rehearsal --strict $(ARGS)

bench: python-packages app/manifest.json ## run the benchmarks and update their documents; ARGS="--only api" runs one
	@exec $(PY) -m benchmarks $(ARGS)

COMPILE = $(PY) -m uv pip compile pyproject.toml --universal --python-version 3.11 \
	--generate-hashes --no-annotate --no-header --no-emit-index-url --no-emit-find-links -q

lock: python-packages ## compile the lock files; ARGS=--upgrade upgrades the packages
	$(COMPILE) -o requirements.txt $(ARGS)
	$(COMPILE) --extra dev -c requirements.txt -o requirements-dev.txt $(ARGS)
	test ! -d benchmarks/side_by_side || for own in benchmarks/side_by_side tests/legacy; do \
		test ! -d $$own || $(PY) -m uv pip compile $$own/requirements.in --universal \
			--python-version 3.11 --generate-hashes --no-annotate --no-header \
			--no-emit-index-url --no-emit-find-links -q -o $$own/requirements.txt $(ARGS) || exit 1; \
		done
	npm install --package-lock-only

audit: python-packages ## look for known vulnerabilities in the locked packages
	@exec $(PY) -m development.audit $(ARGS)

sbom: python-packages ## write a software bill of materials to build/sbom.cdx.json
	@exec $(PY) -m development.sbom $(ARGS)

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
