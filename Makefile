# The two commands: `make course` and `make test`. Each needs only make and Python 3.11 or newer; the environment is made once, in .venv.
PYTHON ?= python3
FOLDER ?= build/versions
venv   := .venv
stamp  := $(venv)/.installed
python := $(venv)/bin/python
.PHONY: course test lab docs export outputs readme clean site-test lab-test versions kill

course: $(stamp)    ## run every notebook, render the site, print the score; NBS="05 06" for a few, OBJDET_DATA=… for other data
	@$(python) scripts/course.py
test: $(stamp)      ## the whole test suite
	@$(python) scripts/check.py
lab: $(stamp)       ## JupyterLab on the notebooks
	@$(venv)/bin/jupyter lab --notebook-dir=nbs
docs: $(stamp)      ## the site from the outputs saved in the notebooks
	@$(python) scripts/docs.py
export: $(stamp)    ## write objdet/ from the notebooks, and clean them
	@$(venv)/bin/nbdev_export && $(venv)/bin/nbdev_clean
outputs: $(stamp)   ## execute the notebooks and save their outputs in nbs/, cleaned
	@$(python) scripts/course.py --save
readme: $(stamp)    ## README.md from nbs/index.ipynb
	@$(python) scripts/readme.py
site-test: $(stamp) ## go through the site in a headless Chromium; CHROMIUM=… names another than the one on the path
	@$(python) scripts/site_test.py
lab-test: $(stamp)  ## run notebook 00 through JupyterLab's server, as the browser does
	@$(python) scripts/lab_test.py
versions: $(stamp)  ## other versions of Python, PyTorch and fastcore, 6 GB in FOLDER; ONLY="--python 3.12 --torch newest" for a few
	@$(python) scripts/versions.py --folder '$(FOLDER)' $(ONLY)
kill: $(stamp)      ## kill training, sample and download 20 times each, start again, compare
	@$(python) scripts/kill.py 20
clean:              ## remove what was made, but for the environment
	rm -rf _course _docs _proc build dist *.egg-info .pytest_cache .hypothesis nbs/sidebar.yml nbs/nbdev.yml

$(python):
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON) here. Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "$(PYTHON) is $$($(PYTHON) -V 2>&1): objdet needs Python 3.11 or newer. Name one: make PYTHON=python3.12"; exit 1; }
	@echo "Making a virtual environment in $(venv)"
	@$(PYTHON) -m venv $(venv) || { rm -rf $(venv); exit 1; }
$(stamp): settings.ini setup.py pyproject.toml $(python)
	@echo "Installing objdet and its tools into $(venv): PyTorch is large, so this takes minutes, once"
	@$(python) -m pip install --quiet --disable-pip-version-check --no-compile -e '.[dev]'
	@touch $@
