# Short cuts; each is a few plain commands that also work by hand (see README.md).
#
#   make demo     the whole pipeline on tiny models, on any machine
#   make test     every check of the project
#   make lock     renew envs/requirements*.txt
#   make audit    known vulnerabilities of every locked version
#   make clean    forget .venv and the demo's results

SHELL := /bin/bash
# The commands below, and those of Snakemake's jobs, are the ones in .venv.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
unexport PYTHONPATH PYTHONHOME

# Tests of one file stay together, since they share what is slow to make; each worker on one thread.
SIDE_BY_SIDE := OMP_NUM_THREADS=1 pytest --numprocesses auto --maxprocesses 8 --dist loadfile

.PHONY: help demo test test-end-to-end test-cluster lock audit clean

help:
	@sed -n 's/^#   //p' Makefile

demo: .venv/installed
	snakemake --cores all --configfile workflow/experiments/pocket.yaml
	@rsd show results/pocket

test: .venv/installed-dev
	ruff format --check .
	snakefmt --check Snakefile workflow/rules
	ruff check .
	snakemake --lint
	mypy
	$(SIDE_BY_SIDE) tests/unit tests/benchmarks
	$(SIDE_BY_SIDE) tests/dag
	@# One computes while the other waits for Slurm.
	$(MAKE) --no-print-directory --jobs 2 --output-sync=target test-end-to-end test-cluster

test-end-to-end: .venv/installed-dev
	pytest tests/integration

test-cluster: .venv/installed-dev
	pytest tests/cluster

lock: .venv/installed-dev
	python envs/lock.py

audit: .venv/installed-dev
	bash envs/audit.sh

clean:
	rm -rf .venv results/pocket

.venv/installed: envs/requirements.txt envs/requirements-cpu.txt envs/requirements-cuda.txt envs/install.sh pyproject.toml
	@python=$$(PYTHON='$(PYTHON)' bash envs/find-python.sh) && "$$python" -m venv .venv
	@echo "installing the locked packages into .venv (about 1 GB, some minutes)"
	@bash envs/install.sh .venv/bin/python
	@touch $@

.venv/installed-dev: .venv/installed envs/requirements-dev.txt envs/requirements-kubernetes.txt
	@echo "installing the packages of the tests into .venv"
	@bash envs/install.sh .venv/bin/python --dev
	@# Beside the others, for the tests that need it: Snakemake would load it at each start, which takes half a second.
	@.venv/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --require-hashes --upgrade \
		--requirement envs/requirements-kubernetes.txt --target .venv/kubernetes
	@touch $@
