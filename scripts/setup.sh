#!/usr/bin/env bash
# Makes the environments: .venv serves and tests; .venv-kernels (with `kernels`) compiles and interprets Triton kernels,
# which must not be importable beside vLLM's CPU build. With `scale-out`, .venv has Ray Serve and vllm-router too. A stamp
# makes the second run a matter of moments.
set -euo pipefail
cd "$(dirname "$0")/.."

# A server is three processes that import vLLM, one after the other. Where Python keeps no bytecode, each would compile
# it anew, 9 s of the 17 s of an import.
export UV_COMPILE_BYTECODE=1

python=${PYTHON:-python3}
target=${1:-server}

# Where wheels are offered in a folder, uv has to be told; elsewhere the CPU build of torch comes from its public index.
if [ -n "${PIP_FIND_LINKS:-}" ]; then
  export UV_FIND_LINKS="${PIP_FIND_LINKS}"
  torch=()
else
  torch=(--torch-backend cpu)
fi

uv_bin=.uv/bin/uv
if [ ! -x "$uv_bin" ]; then
  "$python" -m venv .uv
  .uv/bin/pip install --quiet --disable-pip-version-check "$(grep '^uv==' requirements/bootstrap.txt)"
fi

stamp_of() { cat pyproject.toml requirements/*.txt packaging/vllm-metadata/pyproject.toml scripts/setup.sh | sha256sum; }

make_env() { # folder, then what to install
  local folder=$1 stamp
  shift
  stamp="$(stamp_of) $*"
  if [ -f "$folder/.stamp" ] && [ "$(cat "$folder/.stamp")" = "$stamp" ]; then
    return
  fi
  echo "setting up $folder ..."
  "$uv_bin" venv --quiet --clear --python "$python" "$folder"
  "$uv_bin" pip install --quiet --python "$folder/bin/python" "${torch[@]}" "$@"
  echo "$stamp" >"$folder/.stamp"
}

if [ "$target" = kernels ]; then
  make_env .venv-kernels -r requirements/kernels.txt
else
  make_env .venv --constraints requirements/cpu.txt --excludes requirements/cpu-excludes.txt \
    -e '.[cpu,dev]' ./packaging/vllm-metadata
  if [ "$target" = scale-out ] && ! cmp -s requirements/scale-out.txt .venv/.scale-out; then
    echo "adding Ray Serve and vllm-router to .venv ..."
    "$uv_bin" pip install --quiet --python .venv/bin/python \
      --constraints requirements/cpu.txt --requirements requirements/scale-out.txt
    cp requirements/scale-out.txt .venv/.scale-out
  fi
  if [ ! -f models/tiny-llava-dfmr/config.json ] && [ ! -f models/standin/config.json ]; then
    echo "making a random-weight stand-in model in models/standin ..."
    .venv/bin/python -m server.standin models/standin
  fi
fi
