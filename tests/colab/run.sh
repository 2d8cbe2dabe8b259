#!/usr/bin/env bash
# Every chapter, as Colab would run it: Colab's versions, adv_lib installed as a reader installs it. Then the
# tests of the sliders with Colab's ipywidgets. The times go to the page of benchmarks.
# The environment .venv-colab is made once for each constraints file; COLAB_PYTHON chooses its Python.
set -euo pipefail
cd "$(dirname "$0")/../.."
uv=${UV:-.venv/bin/uv}
constraints=$(printf '%s\n' tests/colab/constraints-*.txt | tail -n 1)
environment=$PWD/.venv-colab
python=$environment/bin/python
stamp=$environment/$(basename "$constraints").$(cksum <"$constraints" | cut -d' ' -f1)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ ! -e "$stamp" ]; then
  echo "Colab environment: $constraints"
  rm -rf "$environment"
  "$uv" venv --quiet --no-python-downloads --python "${COLAB_PYTHON:-3.13}" "$environment" 2>/dev/null ||
    "$uv" venv --quiet "$environment"
  "$uv" pip install --quiet --python "$python" -r "$constraints"
  touch "$stamp"
fi
echo "Python $("$python" -c 'import platform; print(platform.python_version())') in .venv-colab (Colab: 3.13)"

# A copy, so that nothing is built in the working tree; the same options as the chapters' install cell.
mkdir "$work/source" "$work/run"
cp -R pyproject.toml README.md LICENSE adv_lib "$work/source"
start=$(date +%s)
"$python" -m pip uninstall --quiet --yes adversarial-robustness-book 2>/dev/null || true
"$python" -m pip install --quiet --no-deps "$work/source"
installed=$(($(date +%s) - start))
echo "adv_lib installed as a wheel in $installed s"
"$python" -m pip check

chapters=$PWD/chapters
results=$PWD/benchmarks/results
"$uv" pip install --quiet --python "$python" pytest hypothesis
"$python" -m pytest tests/test_widgets.py -p no:cacheprovider
cd "$work/run"
env -u PYTHONPATH JUPYTER_PREFER_ENV_PATH=1 PYDEVD_DISABLE_FILE_VALIDATION=1 \
  "$python" "$OLDPWD/tests/colab/run_chapters.py" "$chapters" --times "$results/colab.json" --installed "$installed"
