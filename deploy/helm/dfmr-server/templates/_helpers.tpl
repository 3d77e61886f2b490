{{- define "dfmr.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "dfmr.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "dfmr.labels" -}}
{{ include "dfmr.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "dfmr.args" -}}
{{- $args := list -}}
{{- with .Values.model }}{{ $args = append $args . }}{{ end -}}
{{- with .Values.servedModelName }}{{ $args = concat $args (list "--served-model-name" .) }}{{ end -}}
{{- if gt (int .Values.gpus) 1 }}{{ $args = concat $args (list "--tensor-parallel-size" (toString .Values.gpus)) }}{{ end -}}
{{- range $name, $value := .Values.dfmr -}}
{{- $args = concat $args (list (printf "--dfmr-%s" $name) (kindIs "string" $value | ternary $value (toJson $value))) -}}
{{- end -}}
{{- if .Values.profilesConfigMap }}{{ $args = concat $args (list "--dfmr-profiles" "/profiles/profiles.yaml") }}{{ end -}}
{{- with concat $args .Values.args }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{- define "dfmr.scope" -}}
{{- printf "namespace=%q, service=%q" .Release.Namespace (include "dfmr.fullname" .) -}}
{{- end -}}

{{/* Requests in the engine's queue and, by Little's law, pictures before the encoder. */}}
{{- define "dfmr.waitingQuery" -}}
{{- $scope := include "dfmr.scope" . -}}
sum({__name__=~"vllm[:_]num_requests_waiting", {{ $scope }}}) + (sum(rate(dfmr_encode_queue_seconds_sum{ {{- $scope -}} }[2m])) or vector(0))
{{- end -}}

{{- define "dfmr.runningQuery" -}}
sum({__name__=~"vllm[:_]num_requests_running", {{ include "dfmr.scope" . }}})
{{- end -}}
